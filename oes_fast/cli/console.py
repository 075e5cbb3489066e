"""One-line messages on stderr, and the exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from oes_fast.errors import OESWarning

PROGRAM = "oes-fast"
EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_BAD_INPUT = 2


def say(kind: str, message: object) -> None:
    """Print "oes-fast: KIND: MESSAGE" on stderr, in one line."""
    print(f"{PROGRAM}: {kind}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def warn(message: object) -> None:
    """Print a warning."""
    say("warning", message)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print the library's own warnings in one line each instead of with file and line."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", OESWarning)
        show = warnings.showwarning

        def show_plainly(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, OESWarning):
                warn(message)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = show_plainly
        yield
