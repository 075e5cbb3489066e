"""What the engines on a GPU launch in a step of a training and of a search, and how long each launch takes.

    python -m benchmarks.gpu_trace                       # durations by torch.profiler, recorded steps
    python -m benchmarks.gpu_trace --once training       # a plain step between the profiler's marks, for ncu

The last line printed is the result as JSON: for each backend and case the launches in order with grid, block,
microseconds and the gap before each.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import oes_fast as oes
from benchmarks.gpu_parts import FAST, SIZE, available, problem
from benchmarks.sass import without_namespaces
from oes_fast.bench.steps import search_steps, training_steps
from oes_fast.precision import PRECISIONS

Row = dict[str, Any]

# Triton computes the same with "float32" and "tf32x3".
CASES = tuple(
    (backend, case, precision)
    for backend in ("cuda", "triton")
    for case in ("training", "search")
    for precision in PRECISIONS
    if (backend, precision) != ("triton", "tf32x3")
)
ON_DEVICE = ("kernel", "gpu_memset", "gpu_memcpy")  # categories of a trace
ROUNDS = 3


def launched(trace: dict[str, Any]) -> list[Row]:
    """The launches of one step, in order, from the trace that torch.profiler writes.

    Args:
        trace: of Chrome's format: "traceEvents" with "cat", "name", "ts" and "dur" in microseconds, "args".
    """
    events = [event for event in trace["traceEvents"] if event.get("cat") in ON_DEVICE]
    rows, end = [], None
    for event in sorted(events, key=lambda event: event["ts"]):
        about = event.get("args", {})
        name = without_namespaces(event["name"]) if event["cat"] == "kernel" else event["name"]
        row: Row = {"kernel": name, "us": round(event["dur"], 3)}
        if end is not None:
            row["gap us"] = round(event["ts"] - end, 3)
        end = event["ts"] + event["dur"]
        for name, key in (
            ("grid", "grid"),
            ("block", "block"),
            ("registers", "registers per thread"),
            ("shared bytes", "shared memory"),
        ):
            if key in about:
                row[name] = about[key]
        rows.append(row)
    return rows


def shortest(rounds: Sequence[list[Row]]) -> dict[str, Any]:
    """One step out of several: of each launch the shortest time and gap; the last step where they differ."""
    names = [[row["kernel"] for row in rows] for rows in rounds]
    alike = all(name == names[-1] for name in names)
    launches = [
        {
            **rows[-1],
            **{key: min(row[key] for row in rows) for key in ("us", "gap us") if key in rows[-1]},
        }
        for rows in zip(*(rounds if alike else rounds[-1:]), strict=True)
    ]
    return {
        "steps alike": alike,
        "launches": launches,
        "us in kernels": round(sum(row["us"] for row in launches), 2),
        "us between": round(sum(row.get("gap us", 0.0) for row in launches), 2),
    }


def step_of(
    case: str,
    mask: str | None,
    device: str = "cuda",
    *,
    recorded: bool = True,
    backend: str = "cuda",
    size: int = SIZE,
    channels: tuple[int, ...] | None = None,
) -> Callable[[], object]:
    """A step as benchmarks.steps has it."""
    net, kept, z, noisy = problem(mask, size, device, channels)
    if case == "training":
        return training_steps(net, kept, z, noisy, [backend], recorded=recorded)[backend]
    return search_steps(net, z, noisy, [backend], recorded=recorded)[backend]


def profiled(backend: str, case: str, precision: str, mask: str | None) -> dict[str, Any]:
    """One recorded step under torch.profiler."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    rounds = []
    with oes.precision(precision), tempfile.TemporaryDirectory() as folder:
        step = step_of(case, mask, backend=backend)
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        for number in range(ROUNDS + 1):  # the first one starts the profiler's own libraries
            with torch.profiler.profile(activities=kinds) as profile:
                step()
                torch.cuda.synchronize()
            if number:
                file = Path(folder, f"{number}.json")
                profile.export_chrome_trace(str(file))
                rounds.append(launched(json.loads(file.read_text(encoding="utf-8"))))
    return {"backend": backend, "case": case, "precision": precision, **shortest(rounds)}


def once(backend: str, case: str, mask: str | None) -> None:
    """One plain step, alone between the marks where a profiler starts and stops."""
    step = step_of(case, mask, recorded=False, backend=backend)
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def key_of(kernel: str) -> str:
    """What a launch is called in the model and in a measurement alike: "tap_sum" or "memset"."""
    name = re.sub(r"<.*", "", kernel).rpartition("::")[2].removesuffix("_kernel")
    if "elementwise" in name:
        return "elementwise"
    return "memset" if name.lower().startswith("memset") else name


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.gpu")
    parser.add_argument("--once", choices=["training", "search"], help="one step for another profiler")
    parser.add_argument("--backend", choices=FAST, help="by default all that can run here, for --once cuda's")
    options = parser.parse_args()
    found, left_out = available(FAST if options.backend is None else [options.backend])
    if not found:
        reason = "; ".join(f"backend {name} is {status}" for name, status in left_out.items())
        print(json.dumps({"left out": reason}))
    elif options.once is not None:
        once(found[-1], options.once, options.mask)
    else:
        rows = [profiled(*case, options.mask) for case in CASES if case[0] in found]
        rows += [{"backend": name, "left out": status} for name, status in left_out.items()]
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
