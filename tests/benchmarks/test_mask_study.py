"""The study of searched against random masks, on next to nothing: what it reports and writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_generator import small_generators

from benchmarks import mask_study


def test_reports_every_run_and_their_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    options = (
        "--size 32 --density 0.5 --search-steps 2 --train-steps 2 --seeds 0 5 --backend reference --json"
    )
    monkeypatch.setattr(sys, "argv", ["mask_study", *options.split(), str(out)])
    with small_generators():
        mask_study.main()
    result = json.loads(out.read_text())
    assert [(run["seed"], run["mask"]) for run in result["runs"]] == [
        (seed, kind) for seed in (0, 5) for kind in ("searched", "random")
    ]
    for first, second in zip(result["runs"][::2], result["runs"][1::2], strict=True):
        assert first["density"] == second["density"]
        assert first["psnr of mask alone"] != second["psnr of mask alone"]
        assert first["history"]["step"] == first["search"]["history"]["step"] == [0, 1, 2]
        assert first["search"]["density of tensors"].keys() >= {"1.1.1.weight"}
    found, random = result["summary"]["searched"], result["summary"]["random"]
    assert found["runs"] == random["runs"] == 2
    assert found["last"] == pytest.approx(sum(run["last"]["psnr"] for run in result["runs"][::2]) / 2)
    assert result["summary"]["ahead by"]["last"] == pytest.approx(found["last"] - random["last"])
    assert result["options"]["json"] == "study.json"
