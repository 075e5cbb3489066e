"""Images of a set stop by a rule, each by itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from image_sets import go, settings, write_images

import oes_fast as oes
from oes_fast.batch import settings as of_batch
from oes_fast.pipelines.stop_rule import StopRule

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")

STEPS = 60


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "in", "a.png")


def quick(name: str, *, seed: int) -> StopRule | None:
    """Looks every step and makes up its mind soon."""
    return {"variance": oes.VarianceStop(window=3, patience=2, every=1), "none": None}[name]


@pytest.mark.parametrize("runs", [1, 2])
def test_images_stop(runs: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_batch, "rule_of", quick)
    wanted = settings(stop="variance", train_steps=STEPS, train_lr=0.1, runs=runs)
    done = go([images / "a.png"], tmp_path / "set", settings=wanted)
    figures = json.loads((done.folder / "a.json").read_text())["figures"]
    assert figures["steps"] < STEPS
    assert not done.interrupted
    (line,) = csv.DictReader((done.folder / "batch.csv").open(encoding="utf-8"))
    if runs == 1:
        assert figures["stop_step"] == figures["steps"] - 3  # two without a lower variance, and the last
        assert line["stop_step"] == str(figures["stop_step"])
    else:
        found = json.loads((done.folder / "a.json").read_text())["runs"]
        assert all(0 < each["stop_step"] < STEPS for each in found)
    assert json.loads((done.folder / "batch.json").read_text())["settings"]["stop"] == "variance"


def test_another_rule_is_another_set(images: Path, tmp_path: Path) -> None:
    go([images / "a.png"], tmp_path / "set", settings=settings())
    with pytest.raises(oes.InputError, match="stop"):
        go([images / "a.png"], tmp_path / "set", settings=settings(stop="holdout"))
    with pytest.raises(oes.InputError, match="stop: expected one of variance, holdout"):
        settings(stop="soon")
