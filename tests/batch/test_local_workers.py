"""Sets of images in several processes, which are killed: every image restored once, to the same bits."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from image_sets import Watching, files_in, go, results_in, settings, write_images

from oes_fast.batch import Outcome, Step, local

NAMES = ["a.png", "b.png", "grey.png", "c.png", "corrupt.png"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("images"), *NAMES)
    (folder / "corrupt.png").write_bytes(b"nothing")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_workers_that_are_killed_change_nothing(source: Path, tmp_path: Path) -> None:
    wanted = settings(train_steps=60)
    go(source, tmp_path / "one", settings=wanted, threads=1)
    # The search for a mask would have the threads of both workers, and others bits.
    masks = [tmp_path / "one" / f"batch_mask_{colour}.safetensors" for colour in ("rgb", "grey")]
    killed: list[int] = []

    def kill(message: Step | Outcome) -> bool:
        if isinstance(message, Step) and not killed:
            killed.extend(child.pid for child in multiprocessing.active_children() if child.pid is not None)
            os.kill(killed[0], signal.SIGKILL)
        return False

    watching = Watching(kill)
    more = {"masks": masks, "workers": 2, "threads": 1, "watcher": watching, "checkpoint_seconds": 0.0}
    done = go(source, tmp_path / "two", settings=wanted, **more)
    assert killed
    assert done.counts == {"done": 4, "failed": 1, "waiting": 0}
    assert sorted(outcome.name for outcome in watching.outcomes) == ["a", "b", "c", "corrupt", "grey"]
    images = [
        {name: data for name, data in results_in(tmp_path / folder).items() if name.endswith(".png")}
        for folder in ("one", "two")
    ]
    assert images[0] == images[1]
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")


def test_an_image_that_kills_its_process_fails_in_the_end(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TRIES", 1)

    def kill(message: Step | Outcome) -> bool:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)
        return False

    watching = Watching(kill)
    # The search runs in this process, and tells no step of an image.
    done = go(source / "a.png", tmp_path / "set", settings=settings(), workers=2, threads=1, watcher=watching)
    assert done.counts["failed"] == 1
    assert "its process was killed" in done.failures[0][1]
    again = go(source / "a.png", tmp_path / "set", settings=settings())
    assert again.counts == {"done": 1, "failed": 0, "waiting": 0}
