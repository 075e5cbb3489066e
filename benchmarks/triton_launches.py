"""What a step launches on backend "triton", recorded without a GPU and without running a kernel.

    python -m benchmarks.triton_launches [--case search] [--precision tf32]

prints the nodes of a recorded step in order: kernels of ours, and operators of PyTorch's but views and new
memory. Everything that decides what is launched runs as on an H100, on tensors of the CPU; only the kernels
are left out, so that no result means anything.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oes_fast as oes
from benchmarks.gpu_parts import SIZE
from oes_fast.bench.steps import drawn_mask
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.search import SearchRun
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.precision import PRECISIONS
from oes_fast.rewrite import plan

CASES = ("training", "search")
SEARCH: dict[str, Any] = {"density": 0.05, "lr": 1e-2, "kl": 1e-9, "temperature": 0.2, "seed": 0}
# Modules of the operators that a step may call; each operation is in the first that has its name.
OPERATIONS = (
    "batch_norm_act", "running_stats", "output_head", "sparse_conv2d", "sparse_up_conv2d", "mask_update",
    "masked_adam", "gumbel_mask",
)  # fmt: skip
# Modules whose kernels are launched in the configuration that tuning chooses.
TUNED = (
    "batch_norm_act", "masked_conv2d", "output_head", "sparse_conv2d", "sparse_taps", "sparse_up_conv2d",
)  # fmt: skip
NO_NODE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like",
    "empty_strided", "expand", "flatten", "lift_fresh", "narrow", "new_empty", "new_empty_strided",
    "permute", "resize_", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: decorated with triton.jit.
        grid: programs along its three axes.
        arguments: by name, constants too.
        options: of the compiler.
    """

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Operator:
    """One call of an operator of PyTorch's.

    Attributes:
        name: without its namespace.
    """

    name: str


Node = Launch | Operator


def bound(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], grid: Any) -> Launch:
    """A launch as its parts.

    Args:
        kernel: decorated with triton.jit.
        arguments: by position.
        options: by name: further arguments, constants, options of the compiler.
        grid: programs along one to three axes.
    """
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    named |= {name: value for name, value in options.items() if name in kernel.arg_names}
    rest = {name: value for name, value in options.items() if name not in kernel.arg_names}
    programs = (*(grid(named) if callable(grid) else grid), 1, 1)
    return Launch(kernel, programs[:3], {name: named[name] for name in kernel.arg_names}, rest)


def variant(launch: Launch) -> str:
    """What Triton compiles a launch for: types, alignments, integers that are 1, constants, options.

    The same for launches that share one compilation, and for no others.
    """
    kept = _kept_general(launch.kernel)
    parts = [launch.name]
    for name, value in launch.arguments.items():
        special, aligned = name not in kept["value"], name not in kept["alignment"]
        if name in kept["constants"] or value is None:
            parts.append(f"{name}={value}")
        elif isinstance(value, Tensor):
            multiple = aligned and value.data_ptr() % 16 == 0
            parts.append(f"{name}:{value.dtype}{':16' if multiple else ''}")
        elif isinstance(value, int) and not isinstance(value, bool):
            multiple = special and aligned and value % 16 == 0
            bits = 32 if -(2**31) <= value < 2**31 else 64
            parts.append(f"{name}:i{bits}:{'1' if special and value == 1 else '16' if multiple else ''}")
        elif isinstance(value, bool | float):
            parts.append(f"{name}:{type(value).__name__}")
        else:
            raise TypeError(f"{launch.name}: argument {name} is a {type(value).__name__}")
    return " ".join([*parts, *(f"{name}={value}" for name, value in sorted(launch.options.items()))])


def _kept_general(kernel: Any) -> dict[str, set[str]]:
    """Arguments whose value, or alignment, the kernel is not specialised to, and those that are constants."""
    return {
        "value": {p.name for p in kernel.params if p.do_not_specialize},
        "alignment": {
            p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment
        },
        "constants": {p.name for p in kernel.params if p.is_constexpr},
    }


@contextlib.contextmanager
def launches(seen: Callable[[Launch], None], *, every_config: bool = False) -> Iterator[None]:
    """Inside, kernels are not run: ``seen`` is called with each launch instead.

    Args:
        seen: called in place of every launch.
        every_config: launch whatever tuning would choose from, so that a step shows every variant there may
            be.
    """
    function = importlib.import_module("triton.runtime.jit").JITFunction

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        seen(bound(self, arguments, options, grid))

    def every(name: str, problem: Any, configs: tuple[Any, ...], launch: Callable[[Any], None]) -> None:
        for config in configs:
            launch(config)

    with contextlib.ExitStack() as patched:
        patched.enter_context(mock.patch.object(function, "run", run))
        for name in TUNED if every_config else ():
            module = importlib.import_module(f"oes_fast.kernels.{name}")
            patched.enter_context(mock.patch.object(module, "run", every))
        yield


@contextlib.contextmanager
def as_on_an_h100() -> Iterator[None]:
    """Inside, backend "triton" takes tensors of the CPU, for which it cuts its work as for an H100."""
    backends = importlib.import_module("oes_fast.backends")  # not the package's function of that name
    with (
        mock.patch.object(backends, "triton_interprets", return_value=True),
        mock.patch.object(plan, "triton_interprets", return_value=True),
        mock.patch.object(backends, "_probe", backends._probe.__wrapped__),  # without what it found before
    ):
        yield


class _Recording(TorchDispatchMode):
    """Notes operators, those inside our own operators too."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self._nodes = nodes

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        space, _, name = function._schema.name.partition("::")
        if space == "oes_fast":
            operation = name.removesuffix("_triton")
            modules = (importlib.import_module(f"oes_fast.kernels.{module}") for module in OPERATIONS)
            launch = next(getattr(module, operation) for module in modules if hasattr(module, operation))
            with self:
                return launch(*arguments)
        result = function(*arguments, **(options or {}))
        if name not in NO_NODE:
            self._nodes.append(Operator(name))
        return result


@contextlib.contextmanager
def recorded(nodes: list[Node]) -> Iterator[None]:
    """Inside, launches and operators are appended to ``nodes``."""
    with launches(nodes.append), _Recording(nodes):
        yield


def published(mask: oes.Mask | str | None) -> tuple[nn.Module, oes.Mask | None]:
    """The published network, and its mask: drawn, of a file, or as given."""
    net = oes.models.skip(seed=0)
    if mask == "drawn":
        return net, drawn_mask(net)
    return net, oes.Mask.load(mask, net) if isinstance(mask, str) else mask


def run_of(case: str, mask: oes.Mask | str, size: int = SIZE) -> Any:
    """The steps of the published network on backend "triton".

    Args:
        case: "training" or "search".
        mask: of the training: a mask, "drawn", or a file.
        size: of the image.
    """
    net, kept = published(mask if case == "training" else None)
    z, noisy = oes.noise_input(32, (size, size), seed=0), torch.rand(1, 3, size, size)
    function, chosen = make_function(net, z, kept, "triton", verify=False)
    if case == "training":
        return TrainRun(function, SquaredError(noisy), 1e-2, None, chosen)
    return SearchRun(function, SquaredError(noisy), chosen, **SEARCH)


def step(
    case: str, mask: oes.Mask | str = "drawn", *, precision: str = "float32", size: int = SIZE
) -> list[Node]:
    """The nodes of a step in order, the second one of a run, which makes nothing that later ones keep.

    Args:
        case: "training" or "search".
        mask: see :func:`run_of`.
        precision: one of :data:`oes_fast.precision.PRECISIONS`.
        size: of the image.
    """
    nodes: list[Node] = []
    with oes.precision(precision), as_on_an_h100(), launches(lambda launch: None):
        run = run_of(case, mask, size)
        clock = run.clock()
        clock.show(0)
        for _ in range(2):
            nodes.clear()
            with recorded(nodes):
                run.forward(clock, final=False)
                run.update(clock)
                clock.tick()
    return nodes


def counted(nodes: list[Node]) -> dict[str, dict[str, int]]:
    """How often each kernel is launched and each operator called."""
    return {
        "kernels": dict(collections.Counter(n.name for n in nodes if isinstance(n, Launch)).most_common()),
        "operators": dict(
            collections.Counter(n.name for n in nodes if isinstance(n, Operator)).most_common()
        ),
    }


def _said(node: Node) -> str:
    if isinstance(node, Operator):
        return node.name
    constants = {p.name: node.arguments[p.name] for p in node.kernel.params if p.is_constexpr}
    return f"{node.name} {node.grid} {constants} {node.options}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--mask", default="drawn", help="mask file, a drawn mask without it")
    options = parser.parse_args()
    for case in options.case:
        nodes = step(case, options.mask, precision=options.precision)
        for node in nodes:
            print(_said(node))
        print(json.dumps({"case": case, **counted(nodes)}))


if __name__ == "__main__":
    main()
