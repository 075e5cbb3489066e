"""The list of a set's images and how far each has come, in one file that is written as it goes.

It is a database of SQLite, so a process that is killed leaves it as it was at its last commit, and however
long the list is, little of it is in memory. It tells what there is to do; what is done, records tell: a job
whose end was not written here any more finds its record and ends at once.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oes_fast.batch.job import DONE, FAILED, UNMASKED, Entry, Outcome
from oes_fast.errors import InputError, OutputError

WAITING, RUNNING = "waiting", "running"
STATES = (WAITING, RUNNING, UNMASKED, FAILED, DONE)
_FORMAT = "oes_fast batch manifest 1"
_PAGE = 256  # rows that are read at once
_COMMIT_SECONDS = 1.0
_TABLES = """
create table if not exists notes (key text primary key, value text);
create table if not exists entries (
    number integer primary key,
    name blob not null unique,
    source blob not null,
    clean blob,
    run integer not null,
    state text not null,
    stamp text,
    channels integer,
    psnr_noisy real,
    psnr real,
    seconds real,
    figures text,
    failure text
);
"""


@dataclass(frozen=True)
class Row:
    """An image of the manifest.

    Attributes:
        entry: the image.
        state: "waiting", "running", "unmasked", "failed" or "done".
        figures: of :class:`~oes_fast.batch.job.Outcome`.
        failure: why it failed.
        stamp: of the file when it was restored.
    """

    entry: Entry
    state: str
    figures: Mapping[str, Any]
    failure: str | None
    stamp: str | None


class Manifest:
    """The manifest of a folder of results; one process at a time writes it.

    Args:
        path: of its file, made where there is none.
        by_name: whether the images are in the order of their names, and not in that in which they were added.

    Raises:
        InputError: it is no manifest.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, *, by_name: bool = True) -> None:
        self.path = path
        self._order = "name" if by_name else "number"
        self._written = time.monotonic()
        with self._errors():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.executescript(_TABLES)
            self._db.execute("begin immediate")
            found = self._note("format")
            if found is None:
                self._set_note("format", _FORMAT)
            elif found != _FORMAT:
                raise InputError(f"{path}: expected {_FORMAT}, got {found}")
            self.run = int(self._note("run") or 0) + 1
            self._set_note("run", str(self.run))
            self.rest()
            self.commit()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is not written yet."""
        with self._errors():
            self.commit()
            self._db.close()

    def commit(self) -> None:
        """Write what was noted so far."""
        with self._errors():
            if self._db.in_transaction:
                self._db.execute("commit")
            self._db.execute("begin")
            self._written = time.monotonic()

    @property
    def settings(self) -> dict[str, Any] | None:
        """What was noted with :meth:`note_settings`, None where nothing was."""
        with self._errors():
            found = self._note("settings")
        return None if found is None else json.loads(found)

    def note_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep settings, JSON values."""
        with self._errors():
            self._set_note("settings", json.dumps(settings))
            self.commit()

    def add(self, entries: Iterable[Entry], *, beside: Iterable[str] = ()) -> int:
        """Note the images of this run, all or none; their number.

        What is known of an image stays. Images of earlier runs that are not among them are left alone.

        Args:
            entries: the images.
            beside: endings to the name of each that name further results of it.

        Raises:
            InputError: the results of two images would have one name; both are named.
        """
        count = 0
        with self._errors():
            self.commit()
            try:
                for entry in entries:
                    self._add(entry)
                    count += 1
                for ending in beside:
                    self._check_beside(ending)
            except BaseException:
                self._db.execute("rollback")
                self._db.execute("begin")
                raise
            self.commit()
        return count

    def _add(self, entry: Entry) -> None:
        name, source = os.fsencode(entry.name), os.fsencode(entry.source)
        clean = None if entry.clean is None else os.fsencode(entry.clean)
        changed = self._db.execute(
            "insert into entries (name, source, clean, run, state) values (?, ?, ?, ?, ?) "
            "on conflict (name) do update set source = excluded.source, clean = excluded.clean, "
            "run = excluded.run where run < excluded.run",
            (name, source, clean, self.run, WAITING),
        )
        if changed.rowcount == 0:
            (other,) = self._db.execute("select source from entries where name = ?", (name,)).fetchone()
            if other == source:
                raise InputError(f"{entry.source}: expected each image once, got it twice")
            raise InputError(
                f"{entry.source}: expected images whose results have names of their own, but {entry.name} is "
                f"also that of {os.fsdecode(other)}; rename one, or restore them into folders of their own"
            )

    def _check_beside(self, ending: str) -> None:
        """Fail if a result beside that of one image would have the name of another's."""
        found = self._db.execute(
            "select a.source, b.source from entries a join entries b on b.name = cast(a.name || ? as blob) "
            "where a.run = ? or b.run = ? limit 1",
            (ending, self.run, self.run),
        ).fetchone()
        if found is not None:
            one, other = map(os.fsdecode, found)
            raise InputError(
                f"{other}: expected images whose results have names of their own, but {one} has a result of "
                f"that name and {ending!r}; rename one, or restore them into folders of their own"
            )

    def counts(self) -> dict[str, int]:
        """The number of images of this run in each state."""
        query = "select state, count(*) from entries where run = ? group by 1"
        with self._errors():
            found = self._db.execute(query, (self.run,)).fetchall()
        return dict.fromkeys(STATES, 0) | dict(found)

    def holds(self, state: str) -> bool:
        """Whether an image of this or an earlier run is in that state."""
        with self._errors():
            found = self._db.execute("select 1 from entries where state = ? limit 1", (state,)).fetchone()
        return found is not None

    def rows(self, *states: str, everything: bool = False) -> Iterator[Row]:
        """The images in order, a page at a time, so that they may change meanwhile.

        Args:
            states: only those; none for all.
            everything: those of earlier runs as well.
        """
        last: Any = b"" if self._order == "name" else 0
        marks = ", ".join("?" * len(states))
        which = f" and state in ({marks})" if states else ""
        which += "" if everything else f" and run = {self.run}"
        query = (
            f"select {self._order}, name, source, clean, state, figures, failure, stamp from entries "
            f"where {self._order} > ?{which} order by {self._order} limit {_PAGE}"
        )
        while True:
            with self._errors():
                page = self._db.execute(query, (last, *states)).fetchall()
            for _, name, source, clean, state, figures, failure, stamp in page:
                entry = Entry(os.fsdecode(source), os.fsdecode(name), clean and os.fsdecode(clean))
                yield Row(entry, state, json.loads(figures or "{}"), failure, stamp)
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def unmasked(self) -> list[int]:
        """The numbers of channels of images that wait for a mask."""
        query = "select distinct channels from entries where run = ? and state = ? order by 1"
        with self._errors():
            found = self._db.execute(query, (self.run, UNMASKED)).fetchall()
        return [channels for (channels,) in found]

    def rest(self) -> None:
        """Let all that was running wait: nothing runs."""
        with self._errors():
            self._db.execute("update entries set state = ? where state = ?", (WAITING, RUNNING))

    def mark(self, name: str, state: str) -> None:
        """Note the state of an image; what is known of it is forgotten."""
        with self._errors():
            self._db.execute(
                "update entries set state = ?, failure = null, figures = null where name = ?",
                (state, os.fsencode(name)),
            )
            self._settle()

    def end(self, outcome: Outcome) -> None:
        """Note how an image ended."""
        figures = outcome.figures
        columns = [figures.get(key) for key in ("channels", "psnr_noisy", "psnr", "seconds")]
        with self._errors():
            self._db.execute(
                "update entries set state = ?, stamp = ?, failure = ?, figures = ?, channels = ?, "
                "psnr_noisy = ?, psnr = ?, seconds = ? where name = ?",
                (
                    outcome.state,
                    outcome.stamp,
                    outcome.failure,
                    json.dumps(dict(figures)),
                    *columns,
                    os.fsencode(outcome.name),
                ),
            )
            self._settle()

    def means(self) -> dict[str, Any]:
        """Means over the images of this run that are done: psnr_noisy, psnr, and the sum of the seconds."""
        query = (
            "select avg(psnr_noisy), avg(psnr), min(psnr), max(psnr), sum(seconds) from entries "
            "where run = ? and state = ?"
        )
        names = ("psnr_noisy", "psnr", "psnr_lowest", "psnr_highest", "seconds")
        with self._errors():
            found = self._db.execute(query, (self.run, DONE)).fetchone()
        return dict(zip(names, found, strict=True))

    def _settle(self) -> None:
        if time.monotonic() - self._written >= _COMMIT_SECONDS:
            self.commit()

    def _note(self, key: str) -> str | None:
        found = self._db.execute("select value from notes where key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def _set_note(self, key: str, value: str) -> None:
        self._db.execute("insert or replace into notes values (?, ?)", (key, value))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # a full disk, no permission
                with suppress(sqlite3.Error, AttributeError):  # it may not be open
                    self._db.execute("rollback")
                raise OutputError(f"{self.path}: cannot write: {error}") from error
            raise InputError(
                f"{self.path}: expected the manifest of a set, got a file that fails: {error}; without "
                "it, it is made again from the records"
            ) from error
