"""Errors and warnings the library raises; each message says what was expected and what came."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class OESError(Exception):
    """Base of every error that oes_fast raises on purpose."""


class InputError(OESError, ValueError):
    """An argument, file or option is not what the operation needs."""


class MaskMismatchError(InputError):
    """A mask was made for another network than the one it is used with."""


class CheckpointError(InputError):
    """A checkpoint is unreadable, or belongs to a run with other settings.

    Attributes:
        path: the file, None if it is not known.
        differences: the settings that differ, each a :class:`oes_fast.pipelines.differences.Difference`.
    """

    def __init__(self, *message: object, path: object = None, differences: tuple[Any, ...] = ()) -> None:
        super().__init__(*message)
        self.path = path
        self.differences = differences


class OutputError(OESError, OSError):
    """A result cannot be written: no such folder, no permission, full disk."""


class BackendError(OESError, RuntimeError):
    """A backend was asked for by name and cannot run here."""


class OESWarning(UserWarning):
    """Base of every warning of oes_fast."""


class CheckpointWarning(OESWarning):
    """A checkpoint could not be written, and the one before it is still there; one that is resumed was made
    in another environment; or one that is not resumed was set aside. The run goes on.
    """


class CollapsedRunWarning(OESWarning):
    """The restored image is flat: the sparse network collapsed, as the paper reports below 4 % density."""


class EmptyLayerWarning(OESWarning):
    """A mask keeps nothing of a layer, which no signal then passes."""


class ImageWarning(OESWarning):
    """An image file was read or written in a way that one should know: a range taken, a part left out."""


class DivergedRunWarning(OESWarning):
    """The loss left for good: it ended clearly above where it began, or lost most of what it had reached."""


def one_line(error: BaseException) -> str:
    """What an error says, without line ends; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


Sink = Callable[[str, type[OESWarning]], None]
_of_thread = threading.local()


@contextmanager
def warnings_to(sink: Sink) -> Iterator[None]:
    """What this thread warns of inside goes to ``sink``, and on to the caller from there.

    A thread of ours has no line of the caller's above it.
    """
    before = getattr(_of_thread, "sink", None)
    _of_thread.sink = sink
    try:
        yield
    finally:
        _of_thread.sink = before


def warn_caller(message: str, category: type[OESWarning]) -> None:
    """Warn of a line of the caller's, outside the library, however deep inside this is called."""
    sink: Sink | None = getattr(_of_thread, "sink", None)
    if sink is not None:
        with warnings_to(_warn):
            sink(message, category)
        return
    _warn(message, category)


def _warn(message: str, category: type[OESWarning]) -> None:
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "oes_fast":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
