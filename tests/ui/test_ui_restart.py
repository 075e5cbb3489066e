"""Runs outlive the server that they belong to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import assert_same_run
from ui_runs import LONG, form, over, training, wait_for

from oes_fast.cli.watched import run_watched
from oes_fast.errors import InputError, OutputError
from oes_fast.io.files import save_tensors
from oes_fast.ui import history, store, views
from oes_fast.ui import run as run_module
from oes_fast.ui.history import FOLDER, Point, read_kept, write_kept
from oes_fast.ui.run import CUT_OFF, DONE, FAILED, STOPPED, Run
from oes_fast.ui.runs import RunQueue
from oes_fast.ui.store import RunStore, write_record
from oes_fast.ui.worker import Began, Frame

Serve = Callable[[], RunQueue]
RECORD = {"arguments": ["denoise"], "output": "a.png", "state": "running", "said": ""}
# A server as a process of its own, to be killed.
SERVER = """
import sys, time
from pathlib import Path
from oes_fast.cli.watched import run_watched
from oes_fast.ui.runs import RunQueue
from ui_runs import LONG, form, training, wait_for

if __name__ == "__main__":
    root = Path(sys.argv[1])
    queue = RunQueue(root / "runs", run_watched, root / "shown")
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    queue.keep(run)
    queue.submit(form().prepare)
    print("under way", flush=True)
    time.sleep(600)
"""


def kept_run(folder: Path) -> Run:
    """A run without a process."""
    return Run(1, ("denoise",), folder, folder, "a.png")


def frame(phase: str, step: int) -> Frame:
    """A frame of 5 x 4 pixels."""
    pixels = np.full((4, 5, 3), step, np.uint8)
    return Frame(phase, step, 100, pixels, pixels + 1, 0.5, None, 20.0, None, (("conv 1: 3x3", 0.25),))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function that starts a server on the same folders."""
    queues = []

    def started() -> RunQueue:
        queues.append(RunQueue(tmp_path / "runs", run_watched, tmp_path / f"shown-{len(queues)}"))
        return queues[-1]

    yield started
    for queue in queues:
        queue.close()


def assert_as_before(found: Run, run: Run) -> None:
    """What a page shows of a run that was found again is what it showed before, but for the newest frame."""
    assert (found.points, found.layers) == (run.points, run.layers)
    np.testing.assert_array_equal(found.first, run.first)
    assert [(each.phase, each.step, each.psnr) for each in found.kept] == [
        (each.phase, each.step, each.psnr) for each in run.kept
    ]
    before, after = views.kept_files(run), views.kept_files(found)
    assert [path.name for path in after] == [path.name for path in before]
    assert [path.read_bytes() for path in after] == [path.read_bytes() for path in before]


def assert_one_curve(run: Run) -> None:
    """From the first step on, and nowhere back."""
    order = [point.order for point in run.points]
    assert order[0] == (0, 0)
    assert order == sorted(set(order))


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_a_run_goes_on_after_the_server_and_ends_as_without_a_break(serve: Serve):
    queue = serve()
    whole = queue.submit(form(train_steps=700).prepare)
    wait_for(whole, over)
    done = queue.submit(form().prepare)
    wait_for(done, over)
    kept = {path.name: path.read_bytes() for path in views.results(whole)}
    run = queue.submit(form(train_steps=700).prepare)
    waiting = queue.submit(form().prepare)
    wait_for(run, training)
    kept_frame = queue.keep(run)
    queue.close()
    assert (run.state, waiting.state) == (CUT_OFF, CUT_OFF)
    assert (run.folder / "camera_restored.train.ckpt").exists()
    assert not done.folder.exists()

    queue = serve()
    assert [each.number for each in queue.runs()] == [waiting.number, run.number]
    found = queue.find(run.number)
    assert found is not None
    assert (found.state, found.command) == (CUT_OFF, whole.command)
    assert "Go on takes it up from its last checkpoint" in views.status(found, queue)
    assert_as_before(found, run)
    assert [each.step for each in found.kept] == [kept_frame.step]
    assert views.kept_compared(found, found.kept[0]) is not None
    queue.go_on(found)
    wait_for(found, lambda run: run.frame is not None and run.frame.phase == "train")
    assert found.frame.step >= run.frame.step  # nothing is made twice
    wait_for(found, over)
    assert found.state == DONE
    assert_one_curve(found)
    assert found.points[-1].step == 700
    assert found.points[: len(run.points)] == run.points
    assert len(found.kept) == 1
    assert not list(found.folder.glob("*.ckpt"))
    for name, data in kept.items():
        (whole.shown / name).write_bytes(data)
    assert_same_run(found.folder / found.output, whole.shown / whole.output)
    begins = queue.find(waiting.number)
    assert begins is not None
    queue.go_on(begins)
    wait_for(begins, over)
    assert begins.state == DONE


def test_what_a_killed_server_left_is_found(serve: Serve, tmp_path: Path):
    helpers = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *sys.path])
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": helpers}, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "under way\n"
        beside = serve()  # a second server
        assert beside.runs() == []
        assert beside.submit(form().prepare).number == 3
        beside.close()
        server.kill()
    queue = serve()
    assert [(run.number, run.state) for run in queue.runs()] == [(3, CUT_OFF), (2, CUT_OFF), (1, CUT_OFF)]
    run = queue.find(1)
    assert run is not None
    assert [(frame.phase, frame.average is None) for frame in run.kept] == [("train", False)]
    queue.go_on(run)
    wait_for(run, training)
    assert_one_curve(run)
    queue.stop(run)
    wait_for(run, over)
    assert run.state == STOPPED


def test_a_run_that_is_given_up_is_gone_with_the_server(serve: Serve):
    queue = serve()
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    queue.close()
    queue = serve()
    found = queue.find(run.number)
    assert found is not None
    queue.stop(found)
    assert found.state == STOPPED
    assert not list(found.folder.glob("*.ckpt"))
    queue.close()
    assert serve().runs() == []


def test_runs_that_had_ended_are_found_as_they_were(serve: Serve, tmp_path: Path):
    for number, state in enumerate((DONE, FAILED), start=1):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        write_record(folder, {**RECORD, "state": state, "said": "so it ended"})
    assert [(run.state, run.said) for run in serve().runs()] == [
        (FAILED, "so it ended"),
        (DONE, "so it ended"),
    ]


def test_curves_that_were_seen_beyond_the_checkpoint_are_seen_once(tmp_path: Path):
    run = kept_run(tmp_path)
    for phase, step in (("search", 0), ("search", 100), ("train", 0), ("train", 50), ("train", 90)):
        run.take(frame(phase, step))
    run.end(CUT_OFF)
    again = Run(1, run.arguments, tmp_path, tmp_path, "a.png")
    again.recall()
    again.take(frame("search", 100))  # the last step of a search that was done
    again.take(frame("train", 50))
    assert [point.order for point in again.points] == [(0, 0), (0, 100), (1, 0), (1, 50)]
    again.take(frame("search", 0))  # there was no checkpoint
    assert again.points == [Point("search", 0, 0.5, None, 20.0)]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_what_is_damaged_is_left_out(tmp_path: Path, damage: str):
    run = kept_run(tmp_path)
    run.take_first(Began(np.zeros((4, 5, 3), np.uint8)))
    for step in (1, 2):
        run.take(frame("train", step))
        write_kept(tmp_path, run.keep())
    run.end(DONE)
    again = kept_run(tmp_path)
    again.recall()
    assert_as_before(again, run)
    for name in ("curves", "first", "train_1"):
        path = tmp_path / FOLDER / f"{name}.safetensors"
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-3])
        else:
            save_tensors(
                path, {"first": torch.zeros(3), "output": torch.zeros(2, 2), "points": torch.ones(2, 2)}
            )
    again.recall()
    assert (again.points, again.layers, again.first) == ([], (), None)
    assert [each.step for each in again.kept] == [2]


def test_kept_frames_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = kept_run(tmp_path)
    for step in (1, 2, 3):
        run.take(frame("train", step))
        write_kept(tmp_path, run.keep())
        assert run.keep() is None  # it is kept already
    run.take(frame("train", 4))
    monkeypatch.setattr(run_module, "MOST_KEPT", 3)
    with pytest.raises(InputError, match="kept frames: expected 3 at most"):
        run.keep()
    monkeypatch.setattr(run_module, "MOST_KEPT", 4)
    monkeypatch.setattr(run_module, "MOST_KEPT_BYTES", 4 * 2 * 60 - 1)
    with pytest.raises(InputError, match="kept frames: expected 0 MiB of pictures at most"):
        run.keep()
    monkeypatch.setattr(history, "MOST_KEPT", 2)
    assert len(read_kept(tmp_path)) == 2


def test_a_frame_that_cannot_be_written_is_kept_and_said(serve: Serve):
    queue = serve()
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    shutil.rmtree(run.folder / FOLDER)
    (run.folder / FOLDER).write_text("")
    with pytest.raises(OutputError, match=r"^the kept frame cannot be written, and ends with the server$"):
        queue.keep(run)
    assert len(run.kept) == 1
    queue.stop(run)
    wait_for(run, over)
    assert run.state == STOPPED  # nor does it end the run


def test_folders_of_a_live_server_are_left_alone_and_numbers_are_given_once(tmp_path: Path):
    first = RunStore(tmp_path)
    number, folder = first.create()
    write_record(folder, RECORD)
    second = RunStore(tmp_path)
    assert second.adopt() == []
    assert second.create()[0] == number + 1
    first.close()
    assert [each[0] for each in second.adopt()] == [number]
    assert first.adopt() == []


def test_what_is_old_too_much_or_no_run_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    maker = RunStore(tmp_path)
    folders = []
    for age in (4, 3, 2, 1):
        folder = maker.create()[1]
        (folder / "big").write_bytes(b"0" * 1000)
        write_record(folder, RECORD)
        for path in (folder / "big", folder / store.RECORD, folder):
            os.utime(path, (time.time() - 100 * age,) * 2)
        folders.append(folder)
    (maker.create()[1] / store.RECORD).write_text('{"arguments": ["denoise"], "output": "../a.png"}')
    (tmp_path / "run-other").mkdir()
    maker.close()
    monkeypatch.setattr(store, "OLDEST_SECONDS", 350)
    monkeypatch.setattr(store, "MOST_BYTES", 2500)
    assert [number for number, _ in RunStore(tmp_path).adopt()] == [3, 4]
    assert [folder.exists() for folder in folders] == [False, False, True, True]
    assert not (tmp_path / "run-5").exists()
    assert (tmp_path / "run-other").exists()


def test_a_folder_that_cannot_be_had_is_one_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep runs there"):
        RunStore(tmp_path / "file" / "runs")
