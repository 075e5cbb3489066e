"""Several networks of one mask trained at once on a GPU: milliseconds a step and network.

    python -m benchmarks.gpu_batches --mask mask.npz --json benchmarks/results/batches-h100.json

Batches are those that :func:`oes_fast.train_many` makes: each network has an input of its own, and steps are
recorded. Beside them stands one network at a time on "triton". What is compared is measured in turn. The last
line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

import oes_fast as oes
from benchmarks.gpu_parts import SIZE, available, noted, problem
from benchmarks.report import write_result
from benchmarks.table_text import caption, load, table, two
from benchmarks.timer import interleave
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import Step, stepper
from oes_fast.pipelines.batched import BatchedFunction, BatchRun
from oes_fast.pipelines.cuda_graphs import graphed
from oes_fast.pipelines.functions import RewrittenFunction, make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.precision import PRECISIONS

NAME = "batches-h100"
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
    beside: bool = True,
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
        beside: whether one network on "triton" is timed as well.
        channels: of a smaller network, for tests.
    """
    net, kept, z, noisy = problem(mask, size, device, channels)
    inputs = [oes.noise_input(32, (size, size), seed=seed, device=device) for seed in range(max(counts))]
    singles, left_out = available([SINGLE, ENGINE])
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        steps: dict[str, tuple[int, Step]] = {}
        with oes.precision(precision), noted() as said:
            if beside and SINGLE in singles and precision != "tf32x3":  # a setting of the other engine alone
                function, chosen = make_function(net, z, kept, SINGLE, verify=False)
                run = TrainRun(function, SquaredError(noisy), 1e-2, None, chosen)
                steps[f"{SINGLE}, 1"] = 1, stepper(graphed(run, chosen, z.device))
            if ENGINE in singles:
                function, _ = make_function(net, z, kept, ENGINE, verify=False)
                assert isinstance(function, RewrittenFunction)
                for count in counts:
                    several = several_step(function, net, kept, inputs[:count], noisy)
                    steps[f"{ENGINE}, {count}"] = count, several
            times = interleave({name: step for name, (_, step) in steps.items()}, rounds=rounds, warmup=3)
        ms = {
            name: {key: value / steps[name][0] for key, value in found.items()}
            for name, found in times.items()
        }
        row: dict[str, Any] = {"size": size, "precision": precision, "ms a step and network": ms}
        rows.append(row | ({"warnings": said} if said else {}) | ({"left out": left_out} if left_out else {}))
    return rows


def several_step(
    function: RewrittenFunction,
    net: nn.Module,
    mask: oes.Mask,
    inputs: Sequence[Tensor],
    noisy: Tensor,
) -> Step:
    """A step of the CUDA engine of as many networks as inputs; ``function`` is that of the first."""
    count, target = len(inputs), SquaredError(noisy.expand(len(inputs), -1, -1, -1).contiguous())
    if count == 1:
        run = TrainRun(function, target, 1e-2, None, ENGINE)
    else:
        together = BatchedFunction(function, [net] * count, inputs, mask, noisy=False)
        run = BatchRun(together, target, count, lr=1e-2, decay=None, backend=ENGINE)
    return stepper(graphed(run, ENGINE, noisy.device))


def table_of_batches() -> str:
    """Milliseconds a step and network, one column a precision."""
    result = load(NAME)
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["ms a step and network"]))
    lines: list[list[object]] = []
    for name in names:
        backend, count = name.split(", ")
        found = [row["ms a step and network"].get(name) for row in result["rows"]]
        lines.append([backend, count, *("" if times is None else two(times, 2) for times in found)])
    header = ["backend", "networks at once", *(f"ms, {row['precision']}" for row in result["rows"])]
    return f"{caption(NAME, result)}\n{table(header, lines)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.gpu")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of networks at once")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=20, help="how often each is timed")
    parser.add_argument("--engine-alone", action="store_true", help="without triton beside it")
    parser.add_argument("--json", help="where to write the result as well")
    options = parser.parse_args()
    rows = batches(
        options.mask,
        counts=options.counts,
        precisions=options.precision,
        rounds=options.rounds,
        beside=not options.engine_alone,
    )
    if options.json:
        write_result(options.json, {"environment": environment(), "rows": rows})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
