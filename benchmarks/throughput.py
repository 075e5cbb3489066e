"""Images an hour: trainings at the same time x threads of each, and what a million photographs cost.

    python -m benchmarks.throughput --mask pepper_mask.npz --json benchmarks/results/throughput.json

A step is that of the pipelines, on the published network; trainings at the same time are threads, as
:func:`oes_fast.train_many` makes them. What is compared is measured in turn.

Images an hour are reckoned from the time of a step, which says something on a machine that is idle alone:
beside it stands how many cores others had meanwhile. Where that is more than a tenth of a core, no images an
hour are given. What comes before the steps (the network is rewritten; it is verified, once for all of a kind)
is measured by itself.

The cost on a GPU is that of the steps of benchmarks.gpu_batches and, where those were not measured, of the
predictions of benchmarks.gpu_model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import oes_fast as oes
from benchmarks.gpu_batches import NAME as BATCHES
from benchmarks.gpu_batches import SINGLE
from benchmarks.options import training_step
from benchmarks.report import write_result
from benchmarks.table_text import caption, load, machine, table, two
from benchmarks.timer import summary
from oes_fast.bench.environment import environment
from oes_fast.pipelines.functions import RewrittenFunction

NAME = "throughput"
SINGLE_STEPS = "gpu-nvidia-h100-80gb-hbm3-2026-11-27"  # of one network, on both backends
GPU_SIZE = 512
PHOTOGRAPHS = 1_000_000
IDLE = 0.1  # cores that others have on a machine that is called idle
Step = Callable[[], object]


def busy_seconds() -> float:
    """Seconds that the processes of the machine have kept its cores busy; 0 where it does not tell."""
    with suppress(OSError, ValueError):
        user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:5])
        return (user + nice + system) / 100
    return 0.0


def at_once(steps: Sequence[Step], threads: int, count: int) -> tuple[float, float, float]:
    """Make ``count`` steps of each run, all runs at the same time.

    Returns:
        (seconds, processor seconds of this process, those of other processes) for a step of one image.
    """
    ready = threading.Barrier(len(steps) + 1)

    def work(step: Step) -> None:
        torch.get_num_threads()
        torch.set_num_threads(threads)
        step()
        ready.wait()
        for _ in range(count):
            step()

    workers = [threading.Thread(target=work, args=(step,)) for step in steps]
    before = torch.get_num_threads()
    gc.collect()
    for worker in workers:
        worker.start()
    ready.wait()
    began, used, busy = time.perf_counter(), time.process_time(), busy_seconds()
    for worker in workers:
        worker.join()
    took, used = time.perf_counter() - began, time.process_time() - used
    others = max(0.0, busy_seconds() - busy - used)
    torch.set_num_threads(before)
    images = len(steps) * count
    return took / images, used / images, others / images


def resident() -> float:
    """MB of this process in memory; 0 where the system does not tell."""
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
    return 0.0


def before_the_steps(mask_file: str, size: int) -> dict[str, Any]:
    """Processor seconds that come before the steps, and what a run takes of memory."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {}
    kept, memory = [], []
    torch.set_num_threads(1)
    for number, verify in enumerate((False, True, False, False, False)):
        net, z = oes.fresh_generator(image, seed=number)
        mask = oes.Mask.load(mask_file, net)
        gc.collect()
        size_before, used = resident(), time.process_time()
        function = RewrittenFunction(net, z, mask, "cpu", verify=verify)
        weights = function.initial_weights().requires_grad_()
        image_of = function(weights, update_stats=True)
        torch.autograd.grad(image_of.sum(), weights)
        seconds = time.process_time() - used
        if verify:
            found["verified, s"] = seconds
        elif number:  # the first imports and compiles
            found["bound, s"] = min(seconds, found.get("bound, s", seconds))
            memory.append(resident() - size_before)
        found["reckoned, MB"] = function.memory / 1e6
        kept.append(function)
    return found | {"measured, MB": statistics.median(memory)}


def rows_of(options: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """The cases of one size."""
    most = max(runs for runs, _ in options.case)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    steps = []
    for seed in range(most):
        net, z = oes.fresh_generator(image, seed=seed)
        steps.append(training_step(net, oes.Mask.load(options.mask, net), z, image, "cpu"))
    times: dict[tuple[int, int], list[tuple[float, float, float]]] = {case: [] for case in options.case}
    for _ in range(options.rounds):
        for case, found in times.items():
            found.append(at_once(steps[: case[0]], case[1], max(1, options.steps // case[0])))
    start = before_the_steps(options.mask, size)
    rows = []
    for (runs, threads), found in times.items():
        took, used, others = (list(column) for column in zip(*found, strict=True))
        row: dict[str, Any] = {
            "size": size,
            "at once": runs,
            "threads of each": threads,
            "ms a step and image": summary([1e3 * t for t in took]),
            "processor ms a step and image": summary([1e3 * t for t in used]),
            "cores that others had": statistics.median(o / t for o, t in zip(others, took, strict=True)),
        }
        if row["cores that others had"] < IDLE:
            seconds = row["ms a step and image"]["median"] / 1e3 * options.image_steps
            seconds += start["bound, s"] / min(runs, options.cores)
            row["core seconds an image"] = seconds * options.cores
            row["images an hour"] = 3600 / seconds
        rows.append(row | {"before the steps": start})
    return rows


def costs(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a million photographs take on the CPU at each size, as measured."""
    found: list[dict[str, Any]] = []
    for size in options.size:
        there = [
            row["core seconds an image"]
            for row in rows
            if row["size"] == size and "core seconds an image" in row
        ]
        if not there:  # the machine was not idle
            continue
        hours = PHOTOGRAPHS * min(there) / 3600
        found.append(
            {"on": "CPU, measured", "size": size, "core hours": hours, "dollars": hours * options.core_hour}
        )
    return found


def table_of_rows() -> str:
    """Times of a step and images an hour."""
    result = load(NAME)
    steps = result["steps of an image"]
    header = ["image", "runs at once", "threads of each", "ms a step and image", "processor ms", "others had"]
    header += [f"images of {steps:,} steps an hour"]
    cells = []
    for row in result["rows"]:
        found = row.get("images an hour")
        cells.append(
            [
                f"{row['size']} x {row['size']}",
                row["at once"],
                row["threads of each"],
                two(row["ms a step and image"], 0),
                two(row["processor ms a step and image"], 0),
                f"{row['cores that others had']:.1f} cores",
                "" if found is None else f"{found:.0f}",
            ]
        )
    return f"{caption(NAME, result)}\n{table(header, cells)}"


def gpu_costs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The same on a GPU at 512 x 512, as measured.

    Args:
        result: with the steps of an image and the price of an hour.
    """
    times: dict[tuple[str, int, str], tuple[str, float]] = {}
    batches = load(BATCHES)
    for row in batches["rows"]:
        for name, found in row["ms a step and network"].items():
            backend, count = name.split(", ")
            if row["size"] == GPU_SIZE:
                place = row["precision"], int(count), backend
                times[place] = f"{machine(batches)}, measured", found["median"]
    single = load(SINGLE_STEPS)
    for row in single["parts"]["steps float32"]["result"]["training"]:
        if row["size"] == GPU_SIZE:
            ms = row["ms"][SINGLE]["median"]
            times["float32", 1, SINGLE] = f"{machine(single)}, measured", ms
    costs = []
    for (precision, count, backend), (on, milliseconds) in sorted(times.items()):
        hours = PHOTOGRAPHS * result["steps of an image"] * milliseconds / 3.6e6
        how = {"on": on, "networks": count, "precision": precision, "backend": backend}
        costs.append({**how, "GPU hours": hours, "dollars": hours * result["dollars"]["a GPU hour"]})
    return costs


def photographs() -> str:
    """What a million take."""
    result = load(NAME)
    cells = []
    for row in result["a million photographs"]:
        hours, dollars = f"{row['core hours']:,.0f} core hours", f"{row['dollars']:,.0f} dollars"
        cells.append([row["on"], f"{row['size']} x {row['size']}", "a run a core", hours, dollars])
    for row in gpu_costs(result):
        how = f"{row['networks']} at once, `{row['backend']}`, {row['precision']}"
        hours, dollars = f"{row['GPU hours']:,.0f} GPU hours", f"{row['dollars']:,.0f} dollars"
        cells.append([row["on"], f"{GPU_SIZE} x {GPU_SIZE}", how, hours, dollars])
    return f"{caption(NAME, result, command=False)}\n{table(['on', 'image', 'how', 'takes', 'costs'], cells)}"


def _case(text: str) -> tuple[int, int]:
    runs, threads = text.split("x")
    return int(runs), int(threads)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="image sides")
    parser.add_argument(
        "--case", type=_case, nargs="+", default=[(1, 2), (1, 1), (2, 1), (2, 2), (4, 1)],
        help="runs at once x threads of each, as 2x1",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=12, help="in a round, of all runs together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=torch.get_num_threads())
    parser.add_argument("--image-steps", type=int, default=2500, help="of a run")
    parser.add_argument("--core-hour", type=float, default=0.04, help="dollars")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="dollars")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    rows = []
    for size in options.size:
        for row in rows_of(options, size):
            rows.append(row)
            took, used = row["ms a step and image"], row["processor ms a step and image"]
            print(
                f"{size} px, {row['at once']} x {row['threads of each']}: {took['min']:.1f} ms, "
                f"processor {used['median']:.1f} ms, others {row['cores that others had']:.1f} cores, "
                f"{row.get('images an hour', 0):.0f} images an hour",
                flush=True,
            )
        print(row["before the steps"], flush=True)
    found = costs(options, rows)
    for cost in found:
        print(cost)
    if options.json:
        result = {
            "environment": environment(),
            "steps of an image": options.image_steps,
            "dollars": {"a core hour": options.core_hour, "a GPU hour": options.gpu_hour},
            "rounds": options.rounds,
            "rows": rows,
            "a million photographs": found,
        }
        write_result(options.json, result)


if __name__ == "__main__":
    main()
