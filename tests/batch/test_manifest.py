"""The manifest: what is known of each image survives, whatever is killed, and little of it is in memory."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from image_sets import settings

import oes_fast as oes
from oes_fast.batch import (
    Entry,
    Job,
    Manifest,
    MaskSearch,
    Options,
    Outcome,
    SharedMask,
    image_set,
    masks,
    restore_all,
)
from oes_fast.batch.manifest import RUNNING, WAITING


def entries(count: int) -> Iterator[Entry]:
    return (Entry(f"/in/{k:06}.png", f"{k:06}") for k in range(count))


def states(manifest: Manifest) -> dict[str, str]:
    return {row.entry.name: row.state for row in manifest.rows()}


def test_what_is_noted_is_there_for_the_next_process(tmp_path: Path) -> None:
    done = Outcome(
        "000001", "done", {"channels": 3, "psnr": 30.0, "psnr_noisy": 20.0, "seconds": 2.0}, stamp="s"
    )
    with Manifest(tmp_path / "m.sqlite") as manifest:
        assert manifest.settings is None
        manifest.note_settings({"a": [1, None]})
        assert manifest.add(entries(3)) == 3
        manifest.end(done)
        manifest.end(Outcome("000002", "failed", failure="bad"))
    with Manifest(tmp_path / "m.sqlite") as manifest:
        assert manifest.settings == {"a": [1, None]}
        assert manifest.add(entries(3)) == 3
        assert states(manifest) == {"000000": WAITING, "000001": "done", "000002": "failed"}
        (row,) = manifest.rows("done")
        assert (row.figures, row.stamp, row.failure) == (dict(done.figures), "s", None)
        assert manifest.counts() == {"waiting": 1, "running": 0, "unmasked": 0, "failed": 1, "done": 1}
        assert manifest.means()["psnr"] == 30.0


def test_what_was_running_waits_again(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add(entries(1))
        manifest.mark("000000", RUNNING)
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add(entries(1))
        assert states(manifest) == {"000000": WAITING}


def test_a_process_that_is_killed_loses_what_it_had_not_written(tmp_path: Path) -> None:
    path = tmp_path / "m.sqlite"
    with Manifest(path) as manifest:
        manifest.add(entries(2))
    killed = os.fork()
    if killed == 0:
        manifest = Manifest(path)
        manifest.end(Outcome("000000", "done"))
        manifest.commit()
        manifest.end(Outcome("000001", "done"))
        os._exit(0)
    os.waitpid(killed, 0)
    with Manifest(path) as manifest:
        manifest.add(entries(2))
        assert states(manifest) == {"000000": "done", "000001": WAITING}


def test_a_file_that_fails_is_told_of_in_words(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add(entries(2))
        path = manifest.path
        # In the place of a disk that fails while it is read.
        manifest._db.execute("alter table entries rename to others")
        for read in (manifest.counts, manifest.means, manifest.unmasked, lambda: manifest.holds("done")):
            with pytest.raises(oes.OutputError, match=r"m\.sqlite: cannot write: no such table"):
                read()
            manifest._db.execute("begin")
            manifest._db.execute("alter table entries rename to others")
    assert path.exists()


def test_images_of_earlier_runs_are_left_alone(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add(entries(3))
        manifest.end(Outcome("000000", "done"))
    with Manifest(tmp_path / "m.sqlite") as manifest:
        manifest.add([Entry("/in/x.png", "x"), Entry("/elsewhere/000001.png", "000001")])
        assert states(manifest) == {"x": WAITING, "000001": WAITING}
        assert [row.entry.source for row in manifest.rows()] == ["/elsewhere/000001.png", "/in/x.png"]
        assert len(list(manifest.rows(everything=True))) == 4


def test_order_by_name_or_as_listed(tmp_path: Path) -> None:
    given = [Entry("/b.png", "b"), Entry("/a.png", "a")]
    for by_name, order in ((True, ["a", "b"]), (False, ["b", "a"])):
        with Manifest(tmp_path / f"{by_name}.sqlite", by_name=by_name) as manifest:
            manifest.add(given)
            assert list(states(manifest)) == order


class TestRefusals:
    def test_two_images_of_one_name(self, tmp_path: Path) -> None:
        with Manifest(tmp_path / "m.sqlite") as manifest:
            with pytest.raises(oes.InputError, match=r"/x\.png: .* but x is also that of /x\.jpg"):
                manifest.add([Entry("/x.jpg", "x"), Entry("/y.jpg", "y"), Entry("/x.png", "x")])
            assert states(manifest) == {}
            with pytest.raises(oes.InputError, match="each image once, got it twice"):
                manifest.add([Entry("/x.jpg", "x"), Entry("/x.jpg", "x")])

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "m.sqlite").write_text("no database at all" * 100)
        with pytest.raises(oes.InputError, match="expected the manifest of a set"):
            Manifest(tmp_path / "m.sqlite")

    def test_another_database(self, tmp_path: Path) -> None:
        with sqlite3.connect(tmp_path / "m.sqlite") as database:
            database.execute("create table notes (key text primary key, value text)")
            database.execute("insert into notes values ('format', 'something else')")
        with pytest.raises(oes.InputError, match="expected oes_fast batch manifest 1, got something else"):
            Manifest(tmp_path / "m.sqlite")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(oes.OutputError, match="cannot write"):
            Manifest(tmp_path / "none" / "m.sqlite")


def shuffled(jobs: Iterator[Job | MaskSearch], options: Options, **more: Any) -> Iterator[Outcome]:
    """In the place of workers: a few jobs ahead, which end in another order than they began in."""
    taken: list[str] = []
    for number, job in enumerate(jobs):
        taken.append(job.name)
        if len(taken) == 7:
            yield Outcome(taken.pop(number % 7), "done", {"channels": 3, "seconds": 1.0})
    yield from (Outcome(name, "done", {"channels": 3, "seconds": 1.0}) for name in taken)


def listed(folder: Path, count: int) -> Path:
    path = folder / f"{count}.txt"
    path.write_text("".join(f"/in/{k % 10}/{k:06}.png\n" for k in range(count)))
    return path


def test_a_long_list_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/many-images.md has the figures of 100,000 images."""
    monkeypatch.setattr(image_set, "found_masks", lambda *_: (SharedMask(3, 1),))
    monkeypatch.setattr(masks, "candidates", lambda *_: pytest.fail("nothing is to be read"))

    def peak(count: int, turn: int) -> int:
        tracemalloc.start()
        done = restore_all(listed(tmp_path, count), tmp_path / f"{count} {turn}", settings(), engine=shuffled)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert done.counts == {"done": count, "failed": 0, "waiting": 0}
        assert sum(1 for _ in done.lines()) == count
        return found

    # Of two each: threads and modules of other tests may take something meanwhile.
    short, long = (min(peak(count, turn) for turn in range(2)) for count in (300, 2_000))
    assert long < short + 100_000  # of 1,700 images more


def test_jobs_are_taken_as_they_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "found_masks", lambda *_: (SharedMask(3, 1),))
    taken: list[str] = []

    def one_by_one(jobs: Iterator[Job], options: Options, **more: Any) -> Iterator[Outcome]:
        for job in jobs:
            taken.append(job.name)
            assert len(taken) - ended == 1
            yield Outcome(job.name, "done")

    class Counting(image_set.Watcher):
        def ended(self, outcome: Outcome) -> None:
            nonlocal ended
            ended += 1

    ended = 0
    restore_all(listed(tmp_path, 600), tmp_path / "out", settings(), engine=one_by_one, watcher=Counting())
    assert (len(taken), ended) == (600, 600)
    assert taken == [f"in/{k % 10}/{k:06}" for k in range(600)]


def test_a_job_can_be_sent(tmp_path: Path) -> None:
    job = Job(tmp_path, Entry("/in/a.png", "a"), settings(), (SharedMask(3, 1),))
    assert pickle.loads(pickle.dumps(job)) == job
    options = Options(verify=False)
    assert pickle.loads(pickle.dumps(options)) == replace(options)
