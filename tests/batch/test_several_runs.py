"""Images restored several times: what a run that fails, a bad checkpoint or a late Ctrl-C leave."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from image_sets import SMALL, STEPS, Watching, go, results_in, settings, write_images

import oes_fast as oes
from oes_fast.autotune_cache import known_choice, take_choices
from oes_fast.batch import restoring
from oes_fast.pipelines.checkpoint import checkpoint_step

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
LAST = STEPS["train_steps"]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """A mask for RGB images."""
    net, _ = oes.fresh_generator(torch.rand(1, 3, 24, 24), options=SMALL)
    count = sum(p.numel() for p in net.parameters())
    path = tmp_path / "mask.safetensors"
    oes.Mask.from_flat(net, torch.arange(count) % 2 == 0, network_seed=5).save(path)
    return path


@pytest.fixture(autouse=True)
def every_step_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "_SHOWN_SECONDS", 0.0)


def test_a_damaged_checkpoint_loses_the_steps_of_its_own_run_alone(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_images(tmp_path / "in", "a.png")
    more = {"settings": settings(runs=2), "masks": [mask]}
    go(source, tmp_path / "whole", **more)
    go(source, tmp_path / "set", watcher=Watching(lambda s: getattr(s, "step", 0) == LAST + 2), **more)
    first, second = sorted((tmp_path / "set").rglob("train.?.ckpt"))
    assert (checkpoint_step(first), checkpoint_step(second)) == (LAST, 3)
    second.write_bytes(second.read_bytes()[:-5])
    begun: list[list[int | None]] = []

    def train_many(*args: Any, **options: Any) -> list[oes.TrainResult]:
        files = options["checkpoints"]
        begun.append([checkpoint_step(path) if path.exists() else None for path in files])
        return oes.train_many(*args, **options)

    monkeypatch.setattr(restoring, "train_many", train_many)
    go(source, tmp_path / "set", **more)
    assert begun == [[LAST, None], [LAST, None]]
    assert results_in(tmp_path / "set") == results_in(tmp_path / "whole")
    said = json.loads((tmp_path / "set" / "a.json").read_text())["warnings"]
    assert [text.endswith("; begun again") and "train.1.ckpt" in text for text in said] == [True]


def test_going_on_begins_again_what_is_refused_and_ends(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    calls: list[tuple[bool, list[bool]]] = []

    def call(resume: bool) -> str:
        there = [path.exists() for path in paths]
        calls.append((resume, there))
        if not resume:
            return "done"
        error = oes.CheckpointError("bad")
        error.errors = [None, error, None] if there[1] else [error, None, None]
        raise error

    for path in paths:
        path.touch()
    assert restoring.going_on(paths, call) == "done"
    assert calls == [(True, [True] * 3), (True, [True, False, True]), (False, [False] * 3)]


def test_the_choices_of_a_checkpoint_are_for_its_image_alone(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[object] = []

    def train_sparse(*args: Any, **options: Any) -> oes.TrainResult:
        found.append(known_choice("of another machine"))
        take_choices({"of another machine": 1})
        return oes.train_sparse(*args, **options)

    monkeypatch.setattr(restoring, "train_sparse", train_sparse)
    source = write_images(tmp_path / "in", "a.png", "b.png")
    assert go(source, tmp_path / "set", masks=[mask]).counts["done"] == 2
    assert found == [None, None]
    assert known_choice("of another machine") is None


def test_an_error_of_files_is_no_failed_run(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_many(*args: Any, **options: Any) -> list[oes.TrainResult]:
        first = oes.OESError("run 0: train: the loss is nan at step 3")
        first.errors = [first, None, oes.OutputError("run 2: no space")]
        first.results = [None, oes.train_many(*args, **options)[1], None]
        raise first

    monkeypatch.setattr(restoring, "train_many", train_many)
    source = write_images(tmp_path / "in", "a.png")
    done = go(source, tmp_path / "set", settings=settings(runs=3), masks=[mask])
    assert [why for _, why in done.failures] == ["run 2: no space"]
    assert len(list((tmp_path / "set").rglob("train.?.ckpt"))) == 3


@pytest.mark.parametrize(
    ("phase", "options"),
    [
        ("train", {}),
        ("train", {"runs": 2}),
        ("search", {"search": "each"}),
        ("search", {"search": "first"}),
    ],
    ids=str,
)
def test_ctrl_c_during_the_last_step_ends_the_set(
    phase: str, options: dict[str, Any], mask: Path, tmp_path: Path
) -> None:
    source = write_images(tmp_path / "in", "a.png", "b.png")
    masks = [] if phase == "search" else [mask]
    pressed: list[object] = []

    def at_the_end(step: Any) -> bool:
        if getattr(step, "phase", "") == phase and step.step == step.steps and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)
        return False

    more = {"settings": settings(**options), "masks": masks}
    stopped = go(source, tmp_path / "set", watcher=Watching(at_the_end), **more)
    assert pressed
    assert stopped.interrupted
    assert stopped.counts == {"done": 0, "failed": 0, "waiting": 2}
    assert go(source, tmp_path / "set", **more).counts["done"] == 2
    go(source, tmp_path / "whole", **more)
    for name in ("a.png", "b.png"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
