"""Several networks of one mask trained at once on a GPU: milliseconds a step and network.

    python -m benchmarks.gpu_batches [--mask mask.npz]

Batches are those that :func:`oes_fast.train_many` makes: each network with an input of its own, one image each,
steps recorded. Beside them stands one network at a time on the backend that ``auto`` takes. What is compared is
measured in turn. The last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch

import oes_fast as oes
from benchmarks.gpu_parts import SIZE, available, noted, problem
from benchmarks.timer import interleave
from oes_fast.bench.steps import Step, stepper
from oes_fast.pipelines.batched import BatchedFunction, BatchRun
from oes_fast.pipelines.cuda_graphs import graphed
from oes_fast.pipelines.functions import RewrittenFunction, make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.precision import PRECISIONS

COUNTS = (1, 2, 4, 8, 16, 32)
SINGLE, ENGINE = "triton", "cuda"


def batches(
    mask: str | None = None,
    device: str = "cuda",
    *,
    counts: Sequence[int] = COUNTS,
    precisions: Sequence[str] = PRECISIONS,
    size: int = SIZE,
    rounds: int = 20,
    channels: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """A row for each precision.

    Args:
        mask: mask file; None for a drawn one.
        device: of the networks.
        counts: numbers of networks at once.
        precisions: see :func:`oes_fast.precision`.
        size: side of the images.
        rounds: how often each is timed.
        channels: of a smaller network, for tests.
    """
    net, kept, z, noisy = problem(mask, size, device, channels)
    inputs = [oes.noise_input(32, (size, size), seed=seed, device=device) for seed in range(max(counts))]
    singles, left_out = available([SINGLE, ENGINE])
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        steps: dict[str, tuple[int, Step]] = {}
        with oes.precision(precision), noted() as said:
            if SINGLE in singles and precision != "tf32x3":  # a setting of the other engine alone
                function, chosen = make_function(net, z, kept, SINGLE, verify=False)
                run = TrainRun(function, SquaredError(noisy), 1e-2, None, chosen)
                steps[f"{SINGLE}, 1"] = 1, stepper(graphed(run, chosen, z.device))
            for count in counts if ENGINE in singles else ():
                steps[f"{ENGINE}, {count}"] = count, several_step(net, kept, inputs[:count], noisy)
            times = interleave({name: step for name, (_, step) in steps.items()}, rounds=rounds, warmup=3)
        ms = {
            name: {key: value / steps[name][0] for key, value in found.items()}
            for name, found in times.items()
        }
        row: dict[str, Any] = {"size": size, "precision": precision, "ms a step and network": ms}
        rows.append(row | ({"warnings": said} if said else {}) | ({"left out": left_out} if left_out else {}))
    return rows


def several_step(
    net: torch.nn.Module, mask: oes.Mask, inputs: Sequence[torch.Tensor], noisy: torch.Tensor
) -> Step:
    """A step of the CUDA engine of as many networks as there are inputs."""
    function, chosen = make_function(net, inputs[0], mask, ENGINE, verify=False)
    assert isinstance(function, RewrittenFunction)
    if len(inputs) == 1:
        return stepper(
            graphed(TrainRun(function, SquaredError(noisy), 1e-2, None, chosen), chosen, noisy.device)
        )
    count = len(inputs)
    together = BatchedFunction(function, [net] * count, inputs, mask, noisy=False)
    target = SquaredError(noisy.expand(count, -1, -1, -1).contiguous())
    run = BatchRun(together, target, count, lr=1e-2, decay=None, backend=chosen)
    return stepper(graphed(run, chosen, noisy.device))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.gpu")
    options = parser.parse_args()
    print(json.dumps(batches(options.mask)))


if __name__ == "__main__":
    main()
