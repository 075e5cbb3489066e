"""The benchmark of inverse problems: cells are made once, and its tables are made of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import optional_packages
import pytest
from PIL import Image
from small_generator import small_generator

import oes_fast as oes
from benchmarks import inverse_problems, table_text


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    optional_packages.deepinv()
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    monkeypatch.setattr(inverse_problems, "ROOT", tmp_path)
    path = tmp_path / "inverse-problems.json"
    common = ["inverse_problems", "--work", str(tmp_path / "work"), "--json", str(path), "--size", "32"]
    common += ["--search-steps", "2", "--train-steps", "2", "--tasks", "inpainting", "mri"]

    def call(*args: str) -> dict:
        monkeypatch.setattr(sys, "argv", [*common, *args])
        inverse_problems.main()
        return json.loads(path.read_text("utf-8"))

    return call


def test_cells_are_made_once(run, monkeypatch):
    first = run("--seeds", "0", "--densities", "0.5")
    cells = [tuple(row[name] for name in inverse_problems.Cell._fields) for row in first["cells"]]
    tasks = ("inpainting", "mri")
    methods = [("oes", 0.5, 0, 2), ("random", 0.5, 0, None)]
    assert cells == [(task, *each) for task in tasks for each in methods] + [
        (task, "dense", None, 0, None) for task in tasks
    ]
    assert all(row["psnr of measured"] > 0 and row["average"] > 0 for row in first["cells"])
    with monkeypatch.context() as patch:
        patch.setattr(inverse_problems, "run_cell", lambda *_: pytest.fail("made twice"))
        assert run("--seeds", "0", "--densities", "0.5") == first
    more = run("--seeds", "0", "--densities", "0.5", "0.25")
    assert more["cells"][:6] == first["cells"]
    assert [row["density"] for row in more["cells"][6:]] == [0.25] * 4
    with pytest.raises(SystemExit, match="train_steps"):
        run("--seeds", "0", "--train-steps", "3")


def test_pictures_and_tables(run, tmp_path, monkeypatch):
    run("--seeds", "0", "1", "--densities", "0.5")
    run("--pictures", "--seeds", "0", "--densities", "0.5")
    for name in ("inpainting", "mri"):
        with Image.open(tmp_path / "docs" / "images" / f"inverse-{name}.jpg") as picture:
            assert picture.width <= inverse_problems.PICTURE_WIDTH
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = inverse_problems.tables()
    assert text.count("| OES | 2 | 50 % | 2 |") == text.count("| dense |  | all | 2 |") == 2
    assert "images/inverse-mri.jpg" in text
    assert "deblurring" not in text.lower()
