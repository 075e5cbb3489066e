"""Runs that belong to a server, without a page."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_same_run, run_in
from conftest import forget_choices
from PIL import Image as PillowImage
from ui_runs import LONG, form, over, picture_file, training, wait_for

from oes_fast.cli.watched import run_watched
from oes_fast.errors import InputError
from oes_fast.ui import runs, views
from oes_fast.ui.run import CUT_OFF, DONE, FAILED, PAUSED, RUNNING, STOPPED, WAITING, Run
from oes_fast.ui.runs import RunQueue


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunQueue]:
    """A queue whose process is there for all tests of this file."""
    queue = RunQueue(tmp_path_factory.mktemp("runs"), run_watched, tmp_path_factory.mktemp("shown"))
    yield queue
    queue.close()


@pytest.fixture(autouse=True)
def nothing_left(queue: RunQueue) -> Iterator[None]:
    yield
    for run in queue.runs():
        queue.stop(run)
    for run in queue.runs():
        wait_for(run, over)


def repeat(run: Run, folder: Path) -> Path:
    """Run the command line that a run says repeats it, in another folder; the image."""
    folder.mkdir()
    for file in run.folder.iterdir():
        if file.is_file() and file.name in run.arguments:
            (folder / file.name).write_bytes(file.read_bytes())
    program, *arguments = shlex.split(views.command(run))
    assert program == "oes-fast"
    forget_choices()
    run_in(folder, arguments)
    return folder / run.output


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_a_run_equals_the_command_line_that_it_names_bit_for_bit(queue: RunQueue, tmp_path: Path):
    run = queue.submit(form(upload=picture_file(tmp_path / "my photo.png"), size=None).prepare)
    wait_for(run, over)
    assert (run.state, run.output) == (DONE, "my_photo_restored.png")
    assert [path.suffix for path in run.files] == [".png", ".safetensors", ".json"]
    assert_same_run(run.folder / run.output, repeat(run, tmp_path / "again"))
    assert run.frame is not None
    assert (run.frame.phase, run.frame.step) == ("train", 12)
    shown = np.asarray(PillowImage.open(run.folder / run.output))
    np.testing.assert_array_equal(views.best(run.frame), shown)  # what was seen is what was written


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_a_run_of_a_layer_profile_is_repeated_bit_for_bit(queue: RunQueue, tmp_path: Path):
    run = queue.submit(form(mask_from="profile").prepare)
    wait_for(run, over)
    assert (run.state, run.layers) == (DONE, ())
    assert [path.suffix for path in run.files] == [".png", ".safetensors", ".json"]
    assert {point.phase for point in run.points} == {"train"}
    assert_same_run(run.folder / run.output, repeat(run, tmp_path / "again"))


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_a_stopped_run_names_the_command_that_ends_where_it_did(queue: RunQueue, tmp_path: Path):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    queue.stop(run)
    began = time.monotonic()
    wait_for(run, over)
    assert time.monotonic() - began < 5
    assert run.state == STOPPED
    assert run.frame is not None
    result = json.loads((run.folder / "camera_restored.json").read_text())
    assert result["interrupted"]
    assert result["steps"]["train"] == run.frame.step
    assert run.command[-2:] == ("--train-steps", str(run.frame.step))
    again = repeat(run, tmp_path / "again")
    assert again.read_bytes() == (run.folder / run.output).read_bytes()


def test_several_trainings_are_watched_as_one(queue: RunQueue):
    run = queue.submit(form(runs=2).prepare)
    wait_for(run, over)
    assert run.state == DONE
    assert run.frame is not None
    assert (run.frame.step, run.frame.steps) == (24, 24)
    run = queue.submit(form(runs=2, train_steps=LONG).prepare)
    wait_for(run, training)
    queue.stop(run)
    wait_for(run, over)
    assert (run.state, run.command) == (STOPPED, run.arguments)


def test_a_run_that_is_stopped_in_the_search_has_a_mask_alone(queue: RunQueue):
    run = queue.submit(form(search_steps=LONG).prepare)
    wait_for(run, lambda run: run.frame is not None)
    queue.stop(run)
    wait_for(run, over)
    assert (run.state, run.command) == (STOPPED, run.arguments)
    assert [path.suffix for path in run.files] == [".safetensors", ".json"]


def test_the_newest_frame_changes_and_the_layers_form(queue: RunQueue):
    run = queue.submit(form(search_steps=400, train_steps=LONG).prepare)
    wait_for(run, lambda run: run.frame is not None)
    first = run.frame
    wait_for(run, training)
    assert first is not None
    assert run.frame is not None
    assert (first.phase, first.step, first.average) == ("search", 0, None)
    assert run.frame.output.shape == first.output.shape == (32, 32)
    assert run.frame.average is not None
    assert (run.frame.output != first.output).any()
    names = [name for name, _ in run.layers]
    assert names[0].startswith("conv 1: ")
    assert names[-1].startswith("batch norm ")
    kept = [share for _, share in run.layers]
    assert 0.2 < np.mean(kept) < 0.8
    assert len(set(kept)) > 2
    assert {point.phase for point in run.points} == {"search", "train"}
    assert all(point.psnr is not None for point in run.points)


def test_a_paused_run_makes_no_step_until_it_goes_on(queue: RunQueue):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    queue.pause(run)
    wait_for(run, lambda run: run.state == PAUSED)
    step = run.frame.step
    pid, ticks = queue._process.pid, os.sysconf("SC_CLK_TCK")

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / ticks

    used = cpu_seconds() if Path("/proc").exists() else 0.0
    time.sleep(0.3)
    assert run.frame.step == step
    if Path("/proc").exists():
        assert cpu_seconds() - used < 0.1
    queue.go_on(run)
    wait_for(run, lambda run: run.state == RUNNING and run.frame.step > step)


def test_kept_frames_stay(queue: RunQueue):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    kept = queue.keep(run)
    assert kept is not None
    wait_for(run, lambda run: run.frame.step > kept.step)
    assert run.kept == [kept]
    files = views.kept_files(run)
    stem = f"camera_restored_train_{kept.step}"
    assert [path.name for path in files] == [f"{stem}.png", f"{stem}_average.png"]
    np.testing.assert_array_equal(np.asarray(PillowImage.open(files[0])), kept.output)


def test_a_paused_run_can_be_stopped(queue: RunQueue):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    queue.pause(run)
    wait_for(run, lambda run: run.state == PAUSED)
    queue.stop(run)
    wait_for(run, over)
    assert run.state == STOPPED
    assert len(run.files) == 3


def test_runs_wait_for_each_other_and_are_found_by_number(queue: RunQueue):
    first = queue.submit(form(train_steps=LONG).prepare)
    second, third = queue.submit(form().prepare), queue.submit(form().prepare)
    wait_for(first, training)
    assert (second.state, third.state) == (WAITING, WAITING)
    assert [queue.ahead(run) for run in (second, third)] == [1, 2]
    assert views.words(third, queue) == f"Run {third.number} waits: 2 runs ahead of it"
    assert queue.find(second.number) is second
    assert queue.find(10**6) is None
    queue.stop(second)
    assert (second.state, second.files) == (STOPPED, [])
    queue.stop(first)
    wait_for(third, over)
    assert third.state == DONE


def test_what_the_command_line_refuses_is_one_sentence(queue: RunQueue):
    run = queue.submit(form(density=2.0).prepare)
    wait_for(run, over)
    assert (run.state, run.said) == (FAILED, "--density: expected a finite number > 0.0 and < 1.0, got 2.0")


def test_a_process_that_is_killed_ends_its_run_alone(queue: RunQueue):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    os.kill(queue._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    wait_for(run, over)
    assert run.state == CUT_OFF
    assert "killed" in run.said
    after = queue.submit(form().prepare)
    wait_for(after, over)
    assert after.state == DONE


def test_frames_take_a_small_share_of_the_time(queue: RunQueue):
    run = queue.submit(form(train_steps=LONG).prepare)
    wait_for(run, training)
    time.sleep(1.0)
    queue.stop(run)
    wait_for(run, over)
    assert run.spent is not None
    assert run.spent < 0.05


def test_the_queue_has_an_end_and_old_runs_go(queue: RunQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "MOST_WAITING", 1)
    first = queue.submit(form(train_steps=LONG).prepare)
    wait_for(first, lambda run: run.state == RUNNING)
    second = queue.submit(form().prepare)
    with pytest.raises(InputError, match="queue: expected fewer than 1 waiting runs"):
        queue.submit(form().prepare)
    queue.stop(second)
    monkeypatch.setattr(runs, "MOST_KNOWN", 2)
    third = queue.submit(form().prepare)
    assert queue.find(second.number) is None
    assert not second.folder.exists()
    assert queue.runs() == [third, first]
