"""Times of alternatives, one call of each in turn, so that a busy machine hits all of them.

What chooses between ways to compute the same and what benchmarks report are both measured here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def _nothing() -> None:
    """What is done before and after a call that needs nothing."""


def times_in_turn(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 0,
    before: Callable[[], object] = _nothing,
    after: Callable[[], object] = _nothing,
    enough: Callable[[list[list[float]]], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each of ``calls`` in every round.

    Args:
        calls: what to time.
        rounds: how often at most.
        warmup: rounds before the first that counts.
        before: called before each call, outside its time.
        after: called after each call, inside its time: waits for a device.
        enough: told the times so far after each round that counts; whether to end early.
        clock: gives seconds; ``time.process_time`` counts those of the processor, of all threads.

    Returns:
        For each call its times in order.
    """
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(warmup + rounds):
        for taken, call in zip(times, calls, strict=True):
            before()
            begin = clock()
            call()
            after()
            if turn >= warmup:
                taken.append(clock() - begin)
        if enough is not None and turn >= warmup and enough(times):
            break
    return times


@contextmanager
def without_collections() -> Iterator[None]:
    """Inside, Python collects no garbage by itself: it would in some call or other, for up to a second."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
