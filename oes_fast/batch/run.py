"""Runs one job, so that any process goes on where another one was killed.

While an image is under way, everything of it lies in a folder of its own, with checkpoints that any process
that sees the folder goes on from. At its end the image takes its name, then the record, which says what it
was made of: a job that finds its record does nothing. Nothing else is left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from oes_fast.batch.job import (
    DONE,
    FAILED,
    SPREAD,
    SPREAD_NUMBERS,
    UNMASKED,
    Entry,
    Job,
    MaskSearch,
    Options,
    Outcome,
    Stopped,
)
from oes_fast.batch.masks import searched
from oes_fast.batch.restoring import Unmasked, mask_digest, restored
from oes_fast.errors import InputError, OESError, OESWarning, OutputError, one_line
from oes_fast.io.files import write_json
from oes_fast.io.image import SKIMAGE_PREFIX
from oes_fast.io.locks import Busy, FileLock, NoLocks
from oes_fast.pipelines.differences import Difference
from oes_fast.workers import LONGEST

RECORD = "record.json"
_FORMAT = "oes_fast batch record 1"
_LOCK_SECONDS = 0.2  # from one look at a lock that another process holds to the next
_PATIENCE_SECONDS = 900.0  # with one that has written nothing meanwhile, or three times its checkpoints
# What no other image of the set would fare better with.
_FATAL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE")} - {None}
_FATAL_TO_READ = _FATAL - {errno.EIO}  # a bad sector of one file, which is not to end the set for ever


def run_job(job: Job | MaskSearch, options: Options) -> Outcome:
    """Restore an image or search a mask, or go on with it, or find that it is done.

    Any number of processes may be given one job, one after another or at once: they wait for each other, and
    all but one find it done.

    Args:
        job: which.
        options: how to run.

    Returns:
        :class:`Outcome`, also where the image or the job is bad.

    Raises:
        Stopped: before the end.
    """
    try:
        with _owned(job.work, options):
            if isinstance(job, MaskSearch):
                return Outcome(job.name, DONE, searched(job, options))
            return _run(job, options)
    except OutputError as error:
        return _failed(job, one_line(error), fatal=error.errno in _FATAL)
    except OESError as error:
        return _failed(job, one_line(error))
    except OSError as error:
        return _failed(job, one_line(error), fatal=error.errno in _FATAL)
    except Stopped:
        raise
    except Exception as error:  # a fault of ours or of a library, or no memory: the others go on
        if os.environ.get("OES_FAST_DEBUG", "") not in ("", "0"):
            raise
        return _failed(job, f"{type(error).__name__}: {one_line(error)}", broken=_breaks(error))


def leave_if_broken(outcome: Outcome | None) -> None:
    """End this process, a worker that is replaced, where an outcome says that it can compute nothing more."""
    if outcome is not None and outcome.broken:
        print(f"{outcome.name}: {outcome.failure}; another process goes on", file=sys.stderr, flush=True)
        os._exit(1)


def _breaks(error: Exception) -> bool:
    """Whether CUDA does nothing more for this process: whatever follows fails with the same error."""
    text = str(error)
    return torch.cuda.is_initialized() and "CUDA error" in text and "out of memory" not in text


def _run(job: Job, options: Options) -> Outcome:
    stamp = stamp_of(job.entry)
    inputs = {"image": _digest(job.entry.source)}
    if job.entry.clean is not None:
        inputs["clean"] = _digest(job.entry.clean)
    kept = _finished(job, inputs)
    if kept is None:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                content = restored(job, options)
        except Unmasked as error:
            return Outcome(job.name, UNMASKED, {"channels": error.channels}, stamp=stamp)
        content["warnings"] = [str(w.message) for w in caught if issubclass(w.category, OESWarning)]
        head = {"format": _FORMAT, "name": job.name, "source": job.entry.source}
        kept = {**head, "inputs": inputs, "settings": _settings(job), **content}
        write_json(job.work / RECORD, kept)
        _place(job, kept)
    return Outcome(job.name, DONE, kept["figures"], stamp=stamp)


def _settings(job: Job) -> dict[str, Any]:
    return job.settings.plain(searched=not job.masks)


def _finished(job: Job, inputs: dict[str, str]) -> dict[str, Any] | None:
    """The record of the job if it is done, or needs but its files to take their names; None if not.

    Raises:
        InputError: a file of that name is there that is none of the set, or was made by other settings.
    """
    waiting = _read(job.work / RECORD)
    if waiting is not None and _is_made_of(waiting, inputs) and not _clauses(job, waiting):
        _place(job, waiting)  # a process was killed between the last two steps
        return waiting
    found = _read(job.record)
    if found is None:
        for path in (job.record, *job.files.values()):
            if waiting is None and path.exists():
                raise InputError(
                    f"{path}: a file of that name is there already, and no record says that it is a result "
                    "of this set; move it, or give the set another folder (-o)"
                )
        return None
    if clauses := _clauses(job, found):
        others = ", ".join(path.name for path in job.files.values() if path.exists())
        raise InputError(
            f"{job.record}: the image was restored {clauses}; remove it{others and f' and {others}'} to "
            "restore it anew"
        )
    return found if _is_made_of(found, inputs) and job.image.exists() else None


def _is_made_of(record: dict[str, Any], inputs: dict[str, str]) -> bool:
    """Whether a record is of these files; one that was measured serves where there is no clean image now."""
    return inputs.items() <= record["inputs"].items()


def _clauses(job: Job, found: dict[str, Any]) -> str:
    """In what a record is of other settings."""
    before, now = found["settings"], json.loads(json.dumps(_settings(job)))
    keys = [key for key in dict.fromkeys((*now, *before)) if before.get(key) != now.get(key)]
    differences = [Difference(key, before.get(key), now.get(key)) for key in keys]
    mask = mask_digest(job, found["figures"].get("channels"))
    if not keys and mask != found.get("mask", {}).get("digest"):
        differences = [Difference("mask", found.get("mask"), mask)]
    return "; ".join(difference.clause() for difference in differences)


def _place(job: Job, record: dict[str, Any]) -> None:
    """Let the results take their names, the record last."""
    job.image.parent.mkdir(parents=True, exist_ok=True)
    for made, path in job.files.items():
        if made in (SPREAD, SPREAD_NUMBERS) and record["figures"].get("spread") is None:
            path.unlink(missing_ok=True)  # of an earlier image of the name, with more sound runs
            continue
        with suppress(FileNotFoundError):  # it has its name
            os.replace(job.work / made, path)
    os.replace(job.work / RECORD, job.record)


def _read(path: Path) -> dict[str, Any] | None:
    """A record, None where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("format") == _FORMAT
    parts = ("inputs", "settings", "figures")
    return found if whole and all(isinstance(found.get(part), dict) for part in parts) else None


@contextmanager
def _owned(work: Path, options: Options) -> Iterator[None]:
    """Keep the folder ``work`` from every other process while inside; remove it after all that is whole.

    A lock ends with its process. But a file server keeps that of a machine which has died: that of NFS 4 for
    a minute or two, that of NFS 3 until the machine is back.

    Raises:
        Stopped: while another process had it.
        OSError: it cannot be made, or somebody who does nothing keeps it.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = None
    patience = max(_PATIENCE_SECONDS, 3 * options.checkpoint_seconds)
    seen, since = _traces(work), time.monotonic()
    while True:
        try:
            lock = FileLock(work.with_name(f"{work.name}.lock"))
        except Busy:
            if options.stopping():
                raise Stopped from None
            if (now := _traces(work)) != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > patience:
                raise TimeoutError(
                    f"{work}: expected the process that has the lock of this folder to go on or to end, but "
                    f"it has written nothing for {patience / 60:.0f} minutes; the file server may keep the "
                    "lock of a machine that has died"
                ) from None
            time.sleep(_LOCK_SECONDS)
            continue
        except NoLocks:  # of two processes that do the same the later one writes the same again
            pass
        break
    try:
        work.mkdir(parents=True, exist_ok=True)  # whoever had it before may have removed it
        try:
            yield
        except BaseException as error:
            if type(error) is OESError:  # the training itself fails; other kinds may be mended
                shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                work.rmdir()
            raise
        shutil.rmtree(work, ignore_errors=True)
    finally:
        if lock is not None:
            lock.release()


def _traces(work: Path) -> set[tuple[str, int]]:
    """By which is seen that somebody works in a folder: its files and the times of their changes."""
    with suppress(OSError):
        return {(path.name, path.stat().st_mtime_ns) for path in work.iterdir()}
    return set()


def _digest(source: str) -> str:
    """Of a file's bytes.

    Raises:
        InputError: it cannot be read.
        OSError: nor could the others, until the file server is well again.
    """
    if source.startswith(SKIMAGE_PREFIX):
        return source
    sha = hashlib.sha256()
    try:
        with open(source, "rb") as file:
            while block := file.read(2**20):
                sha.update(block)
    except OSError as error:
        if error.errno in _FATAL_TO_READ:
            raise
        raise InputError(f"{source}: cannot read the image: {error.strerror or error}") from error
    return sha.hexdigest()


def stamp_of(entry: Entry) -> str | None:
    """By which a change of an image is noticed: sizes and times of change of its file and of the clean one.

    None where a file is not there.
    """
    stamps = []
    for path in (entry.source, entry.clean):
        if path is None:
            continue
        if path.startswith(SKIMAGE_PREFIX):
            stamps.append("")
            continue
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        stamps.append(f"{found.st_size} {found.st_mtime_ns}")
    return "; ".join(stamps)


def _failed(job: Job | MaskSearch, failure: str, *, fatal: bool = False, broken: bool = False) -> Outcome:
    stamp = stamp_of(job.entry) if isinstance(job, Job) else None
    failure = failure[:LONGEST]
    return Outcome(job.name, FAILED, failure=failure, fatal=fatal, stamp=stamp, broken=broken)
