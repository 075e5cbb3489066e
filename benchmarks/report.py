"""What benchmarks report: an operation beside what the machine does at best, and results as JSON."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.timer import fixture_time
from oes_fast.bench.environment import environment

UNTOLD = ("--json", "--out", "--began")  # options that say nothing of what was measured
NUMEL = 3_008_867  # parameters of the published generator
PERCENTILES = (10, 50, 90)
MATRIX = 1024  # side of the matrices whose product is the machine's rate


def describe(benchmark: Any, **facts: object) -> None:
    """Note in a row what it was measured on and with, the percentiles of its rounds in ms, and ``facts``."""
    # The number of threads is that of the row, which may be another one outside of it.
    benchmark.extra_info["environment"] = {k: v for k, v in environment().items() if k != "threads"}
    times = np.percentile(benchmark.stats.stats.data, PERCENTILES)
    for percent, seconds in zip(PERCENTILES, times, strict=True):
        benchmark.extra_info[f"{percent} % of rounds, ms"] = round(1e3 * float(seconds), 4)
    benchmark.extra_info.update(facts)


def report_bandwidth(
    benchmark: Any, operation: Callable[[], object], *, moved_bytes: int, threads: int, device: str
) -> None:
    """Bytes per second of an elementwise operation, beside those of a plain copy in the same rounds.

    Args:
        benchmark: the pytest-benchmark fixture.
        operation: what to time.
        moved_bytes: bytes it has to read and write.
        threads: of torch, while it runs.
        device: of its tensors.
    """
    source = torch.ones(moved_bytes // 8, device=device)  # a copy reads and writes 4 bytes an element
    target = torch.zeros_like(source)
    rivals = {"copy": lambda: target.copy_(source)}
    times = fixture_time(benchmark, operation, threads=threads, rivals=rivals, in_turn=True, rounds=30)
    describe(benchmark, device=device, bytes=moved_bytes)
    ours, copy = times["ours"], times["copy"]
    benchmark.extra_info["GB/s"] = round(moved_bytes / ours["median"] / 1e6, 2)
    benchmark.extra_info["share of copy, median"] = round(copy["median"] / ours["median"], 3)
    benchmark.extra_info["share of copy, minimum"] = round(copy["min"] / ours["min"], 3)


def report_rate(
    benchmark: Any,
    operation: Callable[[], object],
    *,
    macs: int,
    threads: int,
    dense: Callable[[], object] | None = None,
) -> None:
    """Multiply-accumulates a second, beside those of a matrix product, and the time of the dense operation.

    Args:
        benchmark: the pytest-benchmark fixture.
        operation: what to time.
        macs: multiply-accumulates it has to make.
        threads: of torch, while it runs.
        dense: the operation that it takes the place of.
    """
    matrix = torch.randn(MATRIX, MATRIX, generator=torch.Generator().manual_seed(0))
    rivals: dict[str, Callable[[], object]] = {"matrix": lambda: matrix @ matrix}
    if dense is not None:
        rivals["dense"] = dense
    times = {
        name: found["median"]
        for name, found in fixture_time(benchmark, operation, threads=threads, rivals=rivals).items()
    }
    describe(benchmark, **{"multiply-accumulates": macs})
    rate, ceiling = macs / times["ours"] / 1e6, MATRIX**3 / times["matrix"] / 1e6
    benchmark.extra_info["GMAC/s"] = round(rate, 2)
    benchmark.extra_info["share of sgemm"] = round(rate / ceiling, 3)
    benchmark.extra_info["sgemm GMAC/s"] = round(ceiling, 1)
    if dense is not None:
        benchmark.extra_info["dense ms"] = round(times["dense"], 3)
        benchmark.extra_info["times faster than dense"] = round(times["dense"] / times["ours"], 2)


def write_result(path: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, indented for reading and for diffs, with today's date (UTC) and the command."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"date": date, "command": _command(), **result}, file, indent=1)
        file.write("\n")


def _command() -> str:
    """What this process was started with, without the folders of its files and without :data:`UNTOLD`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = [os.path.basename(sys.argv[0])] if spec is None else ["python", "-m", spec.name]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word in UNTOLD:
            next(arguments, None)
        elif word.partition("=")[0] not in UNTOLD:
            words.append(os.path.basename(word))
    return shlex.join(words)
