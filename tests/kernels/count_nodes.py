"""Counts what one step launches on backend "triton", with the kernels left out; prints JSON.

python count_nodes.py train search

A program of its own, since it needs Triton's interpreter from the start, and never runs it: each launch is
counted by its name. Of torch's operators those count that would be a node of a recorded step; views and new
memory are none. A value read back to the host would end a recording.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton.runtime.interpreter as interpreter
from oes_fast.kernels import (
    batch_norm_act,
    gumbel_mask,
    mask_update,
    masked_adam,
    output_head,
    running_stats,
    sparse_conv2d,
    sparse_up_conv2d,
    tuning,
)
from torch.utils._python_dispatch import TorchDispatchMode

import oes_fast as oes
from benchmarks.gpu_compile import launches, variant
from benchmarks.gpu_parts import drawn_mask
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.search import SearchRun
from oes_fast.pipelines.train import TrainRun

# Each operation is in the first that has its name.
KERNEL_FILES = (
    batch_norm_act, running_stats, output_head, sparse_conv2d, sparse_up_conv2d, mask_update, masked_adam,
    gumbel_mask,
)  # fmt: skip
NO_NODE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "flatten", "lift_fresh", "narrow", "new_empty", "new_empty_strided",
    "permute", "resize_", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
READ_BACK = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "item"}


class Counting(TorchDispatchMode):
    """Counts operators by name, those inside the kernels' operators too."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name
        if name.startswith("oes_fast::"):
            operation = name.removeprefix("oes_fast::").removesuffix("_triton")
            launch = next(getattr(m, operation) for m in KERNEL_FILES if hasattr(m, operation))
            with self:
                return launch(*arguments)
        if name.split("::")[1] not in NO_NODE:
            self.seen[name.split("::")[1]] += 1
        return function(*arguments, **(options or {}))


def make(which, size):
    """A run of the published network."""
    net = oes.models.skip(seed=0)
    z, noisy = oes.noise_input(32, (size, size), seed=0), torch.rand(1, 3, size, size)
    if which == "train":
        function, chosen = make_function(net, z, drawn_mask(net), "triton", verify=False)
        return TrainRun(function, SquaredError(noisy), 1e-2, None, chosen)
    function, chosen = make_function(net, z, None, "triton", verify=False)
    options = {"density": 0.05, "lr": 1e-2, "kl": 1e-9, "temperature": 0.2, "seed": 0}
    return SearchRun(function, SquaredError(noisy), chosen, **options)


def count(which, size=192):
    """(kernels by name, operators by name) of the second step, and what Triton would compile in the first."""
    tuning.interpreted = lambda: False  # the configurations of a device
    kernels, operators = collections.Counter(), collections.Counter()

    def launched(self, *arguments, grid, warmup, **options):
        kernels[self.__name__] += 1

    interpreter.InterpretedFunction.run = launched
    run = make(which, size)
    clock = run.clock()
    clock.show(0)
    for _ in range(2):
        kernels.clear()
        operators.clear()
        with Counting(operators):
            run.forward(clock, final=False)
            run.update(clock)
            clock.tick()
    variants = set()

    def compiled(kernel, grid, arguments, options):
        variants.add(variant(kernel, arguments, options))

    with launches(compiled, interpreter.InterpretedFunction):
        run.forward(clock, final=False)
        run.update(clock)
    return kernels, operators, sorted(variants)


if __name__ == "__main__":
    names = ("kernels", "operators", "variants")
    print(json.dumps({which: dict(zip(names, count(which), strict=True)) for which in sys.argv[1:]}))
