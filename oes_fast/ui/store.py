"""Folders of runs that outlive the server: it finds them again when it is started after its end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from oes_fast.errors import InputError, OutputError
from oes_fast.io.files import write_json
from oes_fast.io.locks import Busy, FileLock, NoLocks

RECORD = ".run.json"  # no upload's name begins with a dot
OLDEST_SECONDS = 30 * 86_400.0  # since something was written in a folder
MOST_BYTES = 2 * 2**30  # of all folders that are found
_MOST_TRIES = 10_000  # numbers that are taken


class RunStore:
    """Numbered folders of runs, each owned by one server at a time by a lock beside it.

    Several servers may share a store: none takes a run of another that is alive, and no number is given
    twice.

    Args:
        root: folder for all of them; made where it is missing, for its owner alone.

    Raises:
        InputError: it cannot be made or locked.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[int, FileLock] = {}
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            FileLock(root / "store.lock").release()
        except Busy:  # another server tries the same: there are locks
            pass
        except (OSError, NoLocks) as error:
            raise InputError(f"{root}: cannot keep runs there: {error}") from None

    def create(self) -> tuple[int, Path]:
        """A new folder with its number, from 1.

        Raises:
            InputError: it cannot be made.
        """
        first = max(self._numbers(), default=0) + 1
        for number in range(first, first + _MOST_TRIES):
            folder = self.folder(number)
            try:
                if not self._lock(number):
                    continue
                if not folder.exists():
                    folder.mkdir(mode=0o700)
                    return number, folder
            except OSError as error:
                self.release(number)
                raise InputError(f"{folder.name}: cannot be made: {error.strerror or error}") from None
            self.release(number)
        raise InputError(f"runs: expected a number that is free, got {_MOST_TRIES} that are taken")

    def adopt(self) -> list[tuple[int, Mapping[str, Any]]]:
        """The runs that servers which are gone have left, with their records, by number; they are ours now.

        What has no record, is too old, or is too much is deleted, the oldest first.
        """
        found = []
        for number in sorted(self._numbers()):
            if not self._lock(number):
                continue
            folder = self.folder(number)
            record = read_record(folder) if folder.is_dir() else None
            if record is None or time.time() - _written(folder) > OLDEST_SECONDS:
                self.remove(number)
            else:
                found.append((number, record))
        left = MOST_BYTES
        kept = []
        for number, record in sorted(found, key=lambda each: -_written(self.folder(each[0]))):
            left -= _size(self.folder(number))
            if left < 0:
                self.remove(number)
            else:
                kept.append((number, record))
        return sorted(kept, key=lambda each: each[0])

    def remove(self, number: int) -> None:
        """Delete a folder of ours, and let go of its number."""
        shutil.rmtree(self.folder(number), ignore_errors=True)
        self.release(number)

    def release(self, number: int) -> None:
        """Leave a folder to the next server."""
        if (lock := self._locks.pop(number, None)) is not None:
            lock.release()

    def close(self) -> None:
        """Leave all that are left."""
        for number in list(self._locks):
            self.release(number)

    def folder(self, number: int) -> Path:
        """The folder of that number."""
        return self.root / f"run-{number}"

    def _lock(self, number: int) -> bool:
        if number in self._locks:
            return False
        try:
            self._locks[number] = FileLock(self.root / f"run-{number}.lock")
        except (Busy, NoLocks):
            return False
        return True

    def _numbers(self) -> list[int]:
        names = [path.name.removeprefix("run-") for path in self.root.glob("run-*") if path.is_dir()]
        return [int(name) for name in names if name.isdecimal()]


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note of a run what the next server needs; a full disk ends no run."""
    with suppress(OutputError):
        write_json(folder / RECORD, dict(record))


def read_record(folder: Path) -> Mapping[str, Any] | None:
    """What was noted, None where it is nothing that a server notes."""
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
        arguments, output = found["arguments"], found["output"]
        right = all(isinstance(each, str) for each in (*arguments, output, found["state"], found["said"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if right and arguments and Path(output).name == output else None


def _written(folder: Path) -> float:
    """When the newest file of a folder was written."""
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total
