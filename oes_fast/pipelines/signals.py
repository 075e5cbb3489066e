"""Signals that come while a run is made step by step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SAME_SECONDS = 2.0  # timeout(1), systemd and shells send two signals for one request


@contextmanager
def delayed_signals(*, saves: bool) -> Iterator[Callable[[], bool]]:
    """Turn signals into a flag while inside, so that they never fall into the middle of an update.

    Args:
        saves: whether the run leaves a checkpoint, so that it pays to delay what is to end the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False
    deadly: int | None = None
    since = 0.0
    before: dict[int, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal requested, deadly, since
        if deadly is not None and time.monotonic() - since > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if deadly is None:
            requested, deadly, since = True, number, time.monotonic()

    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is not None and ctrl_c is not signal.SIG_IGN:  # set by C code, or a job in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    if saves:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if deadly is not None:
            signal.raise_signal(deadly)
