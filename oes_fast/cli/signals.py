"""Ctrl-C, SIGTERM and SIGHUP: the first ends a run with what it has, the second at once.

Containers and schedulers send SIGTERM, a terminal that is closed sends SIGHUP. All three are handled
explicitly, since a process that is number 1 of a container gets none that it does not handle. A signal that
was ignored when the process started (nohup, a job in the background) stays ignored.

One request often comes as two signals: a terminal and its shell both send SIGHUP, timeout(1) sends SIGTERM to
the process and to its group, systemd SIGHUP after SIGTERM. Only a second Ctrl-C counts at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

SAME_SECONDS = 2.0  # SIGTERM or SIGHUP so soon after another signal is the same request


class Stopped(KeyboardInterrupt):
    """A signal ended the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """The signal that asked the command to stop, if one has.

    Attributes:
        number: of the first signal, None where there was none.
        patient: the first signal is noted only, as there are results to finish; else it raises
            :class:`Stopped` where it comes, as the second always does.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.patient = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        second = self.number is not None
        if second and number != signal.SIGINT and time.monotonic() - self._since < SAME_SECONDS:
            return
        self.note(number)
        if second or not self.patient:
            raise Stopped(number)

    def note(self, number: int) -> None:
        """Take a signal for one that asked to stop."""
        if self.number is None:
            self.number, self._since = number, time.monotonic()

    def reset(self) -> None:
        """Forget it."""
        self.number, self.patient = None, False

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def words(self) -> str:
        """ "interrupted", or "stopped by SIGTERM"."""
        return words(self.number or signal.SIGINT)


stop = Stop()
_ours = False  # whether the process is the command line


def words(number: int) -> str:
    """What a message says of a signal."""
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def exit_code(error: BaseException) -> int:
    """Exit code for a KeyboardInterrupt."""
    return 128 + getattr(error, "number", signal.SIGINT)


def say_stopped(error: BaseException) -> None:
    """One line on stderr for a KeyboardInterrupt."""
    print(f"oes-fast: error: {words(getattr(error, 'number', signal.SIGINT))}", file=sys.stderr, flush=True)


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals by :data:`stop` while inside, but for those that are ignored or the host's own."""
    stop.reset()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    usual = (signal.SIG_DFL, signal.default_int_handler, _end_at_once)
    for number, handler in before.items():
        if handler in usual:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, handler)


def own_process() -> None:
    """Until there are commands to stop: end the process, with one line."""
    global _ours
    _ours = True
    _handle(_end_at_once)


def leave(code: int) -> None:
    """All is done: a signal while the interpreter ends changes nothing of that."""
    if _ours:
        _handle(lambda number, frame: os._exit(code))


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in STOPPING:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # Not an exception: libraries that are being imported catch those.
    with suppress(OSError):
        os.write(2, f"oes-fast: error: {words(number)}\n".encode())
    os._exit(128 + number)
