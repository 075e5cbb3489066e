"""The arguments of a set, checked before anything of it is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from oes_fast._checks import check_integer
from oes_fast.backends import AUTO, NAMES, backends
from oes_fast.batch.entries import MANIFEST, SUMMARY
from oes_fast.batch.settings import Settings
from oes_fast.errors import BackendError, InputError, OutputError
from oes_fast.io.files import check_path, check_writable


def results_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of results, made where there is none.

    Raises:
        OutputError: it cannot be made or written to.
    """
    root = Path(os.path.abspath(check_path("folder", folder)))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot make the folder: {error.strerror or error}") from error
    check_writable(root / f"{SUMMARY}.json")
    check_writable(root / MANIFEST)
    return root


def check_arguments(
    settings: Settings, masks: object, workers: int, threads: int | None, *, here: bool
) -> None:
    """Refuse what does not fit.

    Args:
        settings: of the set.
        masks: a list of files.
        workers: images at once.
        threads: CPU threads of each.
        here: whether this machine restores the images.

    Raises:
        InputError: an argument does not fit.
        BackendError: the backend cannot run here.
    """
    if not isinstance(settings, Settings):
        raise InputError(f"settings: expected Settings, got {type(settings).__name__}")
    if isinstance(masks, str | os.PathLike) or not isinstance(masks, Sequence):
        raise InputError(f"masks: expected a list of files, got {masks!r}")
    check_integer("workers", workers, minimum=1)
    if threads is not None:
        check_integer("threads", threads, minimum=1, below=2**15)
    if settings.backend not in (AUTO, *NAMES):
        raise InputError(f"backend: expected one of {', '.join((AUTO, *NAMES))}, got {settings.backend!r}")
    if here and settings.backend != AUTO and not (status := backends()[settings.backend]).available:
        raise BackendError(f"backend: {settings.backend} cannot run here: {status.reason}")
