"""Bytes per second of an elementwise operation, beside those of a plain copy in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

NUMEL = 3_008_867  # parameters of the published generator


def report_bandwidth(
    benchmark: Any, operation: Callable[[], object], *, moved_bytes: int, threads: int, device: str
) -> None:
    """Time ``operation`` and a copy of as many bytes in turn.

    Args:
        benchmark: the pytest-benchmark fixture.
        operation: what to time.
        moved_bytes: bytes it has to read and write.
        threads: of torch, while it runs.
        device: of its tensors.
    """
    source = torch.ones(moved_bytes // 8, device=device)  # a copy reads and writes 4 bytes an element
    target = torch.zeros_like(source)
    copies: list[float] = []

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def copy() -> None:
        finish()
        begin = time.perf_counter()
        target.copy_(source)
        finish()
        copies.append(time.perf_counter() - begin)

    def run() -> None:
        operation()
        finish()

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark.pedantic(run, setup=copy, rounds=30, warmup_rounds=3)
    finally:
        torch.set_num_threads(before)
    times = benchmark.stats.stats
    benchmark.extra_info["GB/s"] = round(moved_bytes / times.median / 1e9, 2)
    benchmark.extra_info["share of copy, median"] = round(statistics.median(copies) / times.median, 3)
    benchmark.extra_info["share of copy, minimum"] = round(min(copies) / times.min, 3)
    benchmark.extra_info["threads"] = threads
    benchmark.extra_info["precision"] = "float32"  # no products of matrices
