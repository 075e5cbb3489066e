"""Errors and warnings the library raises; each message says what was expected and what came."""

from __future__ import annotations


class OESError(Exception):
    """Base of every error that oes_fast raises on purpose."""


class InputError(OESError, ValueError):
    """An argument, file or option is not what the operation needs."""


class MaskMismatchError(InputError):
    """A mask was made for another network than the one it is used with."""


class CheckpointError(InputError):
    """A checkpoint is unreadable, or belongs to a run with other settings."""


class OutputError(OESError, OSError):
    """A result cannot be written: no such folder, no permission, full disk."""


class BackendError(OESError, RuntimeError):
    """A backend was asked for by name and cannot run here."""


class OESWarning(UserWarning):
    """Base of every warning of oes_fast."""


class CheckpointWarning(OESWarning):
    """A checkpoint could not be written; the run goes on, and the checkpoint before it is still there."""


class CollapsedRunWarning(OESWarning):
    """The restored image is flat: the sparse network collapsed, as the paper reports below 4 % density."""


class DivergedRunWarning(OESWarning):
    """The loss left for good: it ended clearly above where it began, or lost most of what it had reached."""
