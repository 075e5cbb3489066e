"""What is printed may fail to be: a display that is closed, full or gone must not end what is computed.

Everything printed (the commands', Rich's, Typer's, Python's warnings) goes to ``sys.stdout`` or
``sys.stderr``. Both are wrapped here, once, in streams that raise nothing.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# Nobody reads on: closing `| head`, a terminal that is gone, a descriptor that was closed.
_NOBODY = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


class Display:
    """A text stream whose writes never raise: what cannot be shown is dropped.

    Characters that the stream's encoding lacks are written as escapes. There is no ``buffer``: bytes
    written there would raise.

    Args:
        stream: where to write, None for nowhere (Python's ``sys.stdout`` where it was closed at start).

    Attributes:
        failure: why the first text that someone may be missing could not be written, None if it all was. A
            reader who left misses nothing.
    """

    closed = False

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: str | None = None

    def write(self, text: str) -> int:
        """Write ``text`` as far as it goes; at the end of a line, at once."""
        stream = self._stream
        if stream is None:
            return len(text)
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                stream.flush()
        except (OSError, ValueError) as error:  # ValueError: a closed file
            self._note(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written, if that can be done."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._note(error)

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """True: there is always something that takes it."""
        return True

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        number = getattr(error, "errno", None)
        if self.failure is None and number is not None and number not in _NOBODY:
            self.failure = getattr(error, "strerror", None) or str(error)


def lost_output() -> str | None:
    """Why text written to stdout is missing from where it was to go, None if nothing is."""
    sys.stdout.flush()
    return getattr(sys.stdout, "failure", None)


@contextmanager
def harmless() -> Iterator[None]:
    """``sys.stdout`` and ``sys.stderr`` as :class:`Display` while inside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _harmless(sys.stdout), _harmless(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def own_process() -> None:
    """See to the streams of a process that is ours, for as long as it lives."""
    for number in (0, 1, 2):
        _occupy(number)
    sys.stdout, sys.stderr = _harmless(sys.stdout), _harmless(sys.stderr)
    atexit.register(_settle)


def _harmless(stream: TextIO | None) -> TextIO:
    return cast(TextIO, stream if isinstance(stream, Display) else Display(stream))


def _occupy(number: int) -> None:
    """Put something under a descriptor that is closed.

    The next file opened would get it otherwise, and what a C library prints would go into a result. Like GNU
    programs: /dev/full, so that -o /dev/stdout fails and does not vanish.
    """
    try:
        os.fstat(number)
    except OSError:
        with suppress(OSError):
            name = "/dev/full" if number and os.path.exists("/dev/full") else os.devnull
            handle = os.open(name, os.O_RDWR if number else os.O_RDONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)


def _settle() -> None:
    """Leave nothing for the interpreter to flush that it cannot: it would exit with 120 and a traceback."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError, AttributeError):
                buffer: Any = stream.buffer
                getattr(
                    buffer, "raw", buffer
                ).close()  # the descriptor stays open: these streams do not own it
