"""What is printed may fail to be: a display that is closed, full or gone must not end what is computed.

Everything printed (the commands', Rich's, Typer's, Python's warnings) goes to ``sys.stdout`` or
``sys.stderr``. Both are wrapped here, once, in streams that raise nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from oes_fast.io.display import Display


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
