"""The timer of all benchmarks: alternatives in turn, or the work of a device by itself.

Times are in milliseconds. What is compared is measured in turn: a busy machine, whose timings vary by tens of
percent between runs, hits all contestants alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import oes_fast
from oes_fast.timing import times_in_turn, without_collections


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": min(milliseconds),
        "median": statistics.median(milliseconds),
        "max": max(milliseconds),
    }


def interleave(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time every contestant ``rounds`` times in turn.

    Args:
        contestants: calls to time, by name.
        rounds: how often.
        warmup: rounds before the first that counts.

    Returns:
        For each name the :func:`summary` of its times.
    """
    with without_collections():
        times = times_in_turn(
            list(contestants.values()), rounds=rounds, warmup=warmup, before=synchronize, after=synchronize
        )
    return {name: summary([1e3 * t for t in taken]) for name, taken in zip(contestants, times, strict=True)}


def ratios(times: Mapping[str, Mapping[str, float]], baseline: str) -> dict[str, dict[str, float]]:
    """How many times faster than ``baseline`` each contestant is, by minimum and by median."""
    base = times[baseline]
    return {name: {key: base[key] / t[key] for key in ("min", "median")} for name, t in times.items()}


def compared(
    contestants: Mapping[str, Callable[[], object]],
    baseline: str,
    *,
    rounds: int,
    warmup: int = 2,
    precision: str = "float32",
) -> dict[str, Any]:
    """:func:`interleave` and :func:`ratios` as a row of a result, all contestants in one precision.

    Args:
        contestants, rounds, warmup: see there.
        baseline: one of the contestants.
        precision: of all of them, see :func:`oes_fast.precision`.

    Returns:
        "ms" and "times faster" by contestant, and "precision", the setting of each.
    """
    with oes_fast.precision(precision):
        times = interleave(contestants, rounds=rounds, warmup=warmup)
    return {
        "ms": times,
        "times faster": ratios(times, baseline),
        "precision": dict.fromkeys(contestants, precision),
    }


def device_time(
    call: Callable[[], object], *, device: str, calls: int = 10, rounds: int = 7
) -> dict[str, float]:
    """:func:`summary` of one call in a row of calls, on a GPU of a recorded row that it works off alone.

    Args:
        call: what to time; on a GPU, it can be recorded as a CUDA graph.
        device: "cpu" or "cuda".
        calls: in the row.
        rounds: rows to time.
    """

    def row() -> None:
        for _ in range(calls):
            call()

    if device == "cpu":
        call()
        return summary([1e3 * taken / calls for taken in times_in_turn([row], rounds=rounds)[0]])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        row()
    times = []
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / calls)
    return summary(times)


def fixture_time(
    benchmark: Any,
    operation: Callable[[], object],
    *,
    threads: int,
    rivals: Mapping[str, Callable[[], object]] | None = None,
    in_turn: bool = False,
    rounds: int = 20,
    warmup: int = 3,
) -> dict[str, dict[str, float]]:
    """Time an operation with the fixture of pytest-benchmark, which reports it, and others beside it.

    Args:
        benchmark: the fixture; the number of threads and the precision are noted in it.
        operation: what to time.
        threads: of torch meanwhile.
        rivals: calls to time as well, by name.
        in_turn: whether a call of each rival comes before each of the operation, so that all of them find the
            caches as the others left them; without, each is timed by itself.
        rounds: calls of the operation.
        warmup: calls before them.

    Returns:
        The :func:`summary` of each rival and, under "ours", of the operation.
    """
    others = dict(rivals or {})
    beside: list[list[float]] = []

    def run() -> None:
        operation()
        synchronize()

    def rivals_first() -> None:
        beside.append([t[0] for t in times_in_turn(list(others.values()), rounds=1, after=synchronize)])

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        setup = rivals_first if in_turn else None
        benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=warmup)
        if in_turn:
            rows = zip(*beside[warmup:], strict=True)
            found = {name: summary([1e3 * t for t in row]) for name, row in zip(others, rows, strict=True)}
        else:
            found = {}
            for name, call in others.items():
                found |= interleave({name: call}, rounds=10, warmup=1)
    finally:
        torch.set_num_threads(before)
    stats = benchmark.stats.stats
    found["ours"] = {key: 1e3 * getattr(stats, key) for key in ("min", "median", "max")}
    benchmark.extra_info["threads"] = threads
    benchmark.extra_info["precision"] = "float32"
    return found


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
