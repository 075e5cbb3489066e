"""Locks on files: held by the operating system, so that they end with the process, however it ends."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import socket
import sys
import time
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock

_TRIES = 20  # a lock file may be removed between opening and locking it, by the run that ends


class Busy(Exception):
    """Another process holds the lock."""


class NoLocks(Exception):
    """The file system has no locks, or the lock file cannot be made; the message says why."""


class FileLock:
    """One lock file, removed when it is released.

    A lock file that its holder removes may be locked by one process and missing for the next: after locking,
    the name must still lead to the same file.

    Args:
        path: of the lock file.

    Raises:
        Busy: another process holds it.
        NoLocks: it cannot be locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.005)
            try:
                path.touch()
                before = path.stat()
                lock = _new_lock(path)
                lock.acquire(timeout=0)
            except filelock.Timeout:
                if attempt < 3:  # the holder may be leaving
                    continue
                raise Busy from None
            except FileNotFoundError:
                continue
            except (OSError, NotImplementedError) as error:
                raise NoLocks(getattr(error, "strerror", None) or str(error)) from error
            self._lock = lock
            with suppress(OSError):
                if os.path.samestat(before, path.stat()):
                    return
            lock.release(force=True)
        raise NoLocks("its file does not stay")

    def release(self) -> None:
        """Remove the file, then let go of it."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self._lock.release(force=True)
        if os.name == "nt":  # Windows removes no file that is open; elsewhere it may be another's by now
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def _new_lock(path: Path) -> filelock.BaseFileLock:
    options: dict[str, Any] = {"thread_local": False}
    # Newer versions of filelock take a mere file for a lock where there are none: no death would release it.
    if "fallback_to_soft" in inspect.signature(filelock.FileLock.__init__).parameters:
        options["fallback_to_soft"] = False
    return filelock.FileLock(path, **options)


def label(target: Path) -> str:
    """8 hex digits for the name of a file, to name others after it whatever its length."""
    name = target.name
    if sys.platform in ("win32", "darwin"):  # Out.png and out.png are one file there
        name = unicodedata.normalize("NFC", name).casefold()
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


class RunLocks:
    """The files that one run writes, kept from every other run until it ends.

    Each has a lock file of its own beside it, .oes-XXXXXXXX.lock, which says who holds it.

    Args:
        targets: the files, with symbolic links resolved.

    Raises:
        Busy: another run writes one of them; the message names both.

    Attributes:
        missing: why there are no locks, by folder, where there are none.
    """

    def __init__(self, targets: Iterable[Path]) -> None:
        self._held: list[FileLock] = []
        self.missing: dict[Path, str] = {}
        owner = json.dumps(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": " ".join(["oes-fast", *sys.argv[1:]]),
            }
        )
        try:
            # In one order, so that of two runs that start at once one gets all it needs.
            for target in sorted(set(targets)):
                self._take(target, owner)
        except BaseException:
            self.release()
            raise

    def _take(self, target: Path, owner: str) -> None:
        if target.parent in self.missing:
            return
        path = target.with_name(f".oes-{label(target)}.lock")
        found = _read(path)
        try:
            self._held.append(FileLock(path))
        except Busy:
            found = _read(path) or found
            if found:
                with suppress(OSError):  # older versions of filelock empty the file they fail to lock
                    if path.stat().st_size == 0:
                        path.write_text(found, "utf-8")
            raise Busy(f"{target}: {_describe(found)} is writing it") from None
        except NoLocks as error:
            self.missing[target.parent] = str(error)
            return
        with suppress(OSError):  # a full disk: the lock holds all the same
            path.write_text(owner, "utf-8")

    def release(self) -> None:
        """Let go of the files."""
        while self._held:
            self._held.pop().release()


def _read(path: Path) -> str:
    with suppress(OSError, ValueError):
        return path.read_text("utf-8")
    return ""


def _describe(text: str) -> str:
    try:
        found = json.loads(text)
        where = "" if found["host"] == socket.gethostname() else f" on {found['host']}"
        return f"another run (process {found['pid']}{where}, since {found['started']}: {found['command']})"
    except (ValueError, LookupError, TypeError):
        return "another run"
