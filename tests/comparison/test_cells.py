"""The files of a comparison's cells: what was edited, removed or left by a kill is not taken for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_generator import small_generator

import oes_fast as oes
from oes_fast.comparison import Settings, Step, Watcher, compare, run

QUICK = {"densities": [0.5], "train_steps": 4, "search_steps": 3, "average": None, "record_every": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh generators are small."""
    monkeypatch.setattr(run, "fresh_generator", small_generator)


@pytest.fixture
def image() -> dict[str, torch.Tensor]:
    return {"a": oes.load_image("skimage:astronaut", size=32).pixels}


def go(image: dict[str, torch.Tensor], folder: Path, method: str = "random", **more: Any) -> Any:
    options = {name: more.pop(name) for name in ("watcher", "checkpoint_seconds") if name in more}
    wanted = Settings(**({"methods": [method]} | QUICK | more))
    return compare(image, folder, wanted, verify=False, draw=False, **options)


def test_a_mask_of_other_settings_is_not_taken(image: dict[str, torch.Tensor], tmp_path: Path) -> None:
    go(image, tmp_path)
    result, mask = (tmp_path / "cells" / f"a_random_0.5_seed0{end}" for end in (".json", "_mask.safetensors"))
    result.unlink()
    failed = go(image, tmp_path, scope="tensor").failed
    assert "expected the mask of this cell, got one of other settings" in "".join(failed.values())
    mask.write_bytes(b"none")
    failed = go(image, tmp_path, scope="tensor").failed
    assert "without that file, the mask is found again" in "".join(failed.values())
    mask.unlink()
    assert not go(image, tmp_path, scope="tensor").failed
    assert oes.Mask.load(mask).settings["scope"] == "tensor"


@pytest.mark.parametrize("part", ["state", "settings", "psnr", "ssim", "seconds"])
def test_a_result_without_a_part_is_refused(
    image: dict[str, torch.Tensor], tmp_path: Path, part: str
) -> None:
    go(image, tmp_path, "tv")
    path = tmp_path / "cells" / "a_tv_seed0.json"
    result = json.loads(path.read_text("utf-8"))
    del result[part]
    path.write_text(json.dumps(result), "utf-8")
    with pytest.raises(oes.InputError, match=r"a_tv_seed0.json: expected the result of a cell, got another"):
        go(image, tmp_path, "tv")


@pytest.mark.parametrize("phase", ["search", "train"])
def test_the_time_before_a_kill_counts(
    image: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """It is written while the cell runs, no less often than checkpoints are."""
    monkeypatch.setattr(run, "SHOWN_SECONDS", 0.0)
    path = tmp_path / "cells" / "a_oes_0.5_seed0.json"
    seen: list[dict[str, float]] = []

    class Watching(Watcher):
        def step(self, step: Step) -> None:
            if step.phase == phase:
                seen.append(json.loads(path.read_text("utf-8"))["seconds"])

    done = go(image, tmp_path, "oes", watcher=Watching(), checkpoint_seconds=0.0)
    known = {"search": "mask", "train": "train"}[phase]
    (result,) = done.cells.values()
    assert 0 < seen[0][known] <= result["seconds"][known]


def test_sgld_without_a_sample_has_no_average(image: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Every 50th image is one: the average of the outputs is not taken for their mean."""
    (result,) = go(image, tmp_path, "sgld", average=0.5).cells.values()
    assert result["psnr"]["average"] is None
    assert result["average_of"] is None
    with pytest.raises(oes.InputError, match="burn_in: expected fewer steps than the 4 of training, got 4"):
        go(image, tmp_path, "sgld", burn_in=4)


@pytest.mark.parametrize("wrong", [{"methods": "oes"}, {"densities": 0.5}, {"seeds": 3}, {"seeds": None}])
def test_settings_that_are_no_lists(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(oes.InputError, match=f"{name}: expected a list, got"):
        Settings(**({"methods": ["oes"]} | wrong))
