"""The study of searches: runs are made once, on the size asked for, and its table is of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from small_generator import small_generator

import oes_fast as oes
from benchmarks import search_study
from benchmarks.search_study import REFERENCE, Configuration

SIDE = 32
NAMES = {REFERENCE: Configuration(2, 0.1), "small": Configuration(2, 0.3, "cosine", 1e-7, 0.5, 0.3, side=16)}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    monkeypatch.setattr(search_study, "CONFIGURATIONS", NAMES)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for name in ("one", "two"):
        oes.save_image(tmp_path / f"{name}.png", image)
    common = ["search_study", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--images", "one"]
    common += ["two", "--side", str(SIDE), "--density", "0.5", "--json", str(tmp_path / "out.json")]

    def call(*args: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [*common, "--train-steps", "3", *args])
        search_study.main()
        return json.loads((tmp_path / "out.json").read_text("utf-8"))["configurations"]

    return call


def test_runs_are_made_once(run, monkeypatch):
    sides = []
    search = oes.search_mask

    def watched(net, z, noisy, **options):
        sides.append((z.shape[-1], noisy.shape[-1], options["start"]))
        return search(net, z, noisy, **options)

    monkeypatch.setattr(oes, "search_mask", watched)
    found = run()
    assert sides == [(SIDE, SIDE, None)] * 2 + [(16, 16, 0.3)] * 2
    assert [row["configuration"] for row in found] == list(NAMES)
    runs = found[1]["runs"]
    assert [(each["image"], each["seed"]) for each in runs] == [("one", 0), ("two", 0)]
    assert runs[0]["peak"] == runs[1]["peak"] >= runs[0]["last"]
    monkeypatch.setattr(search_study, "run_cell", lambda *_: pytest.fail("made twice"))
    assert run() == run("--summary") == found
    assert [len(row["runs"]) for row in run("--images", "one")] == [1, 1]
    with pytest.raises(SystemExit, match="'train_steps': 3"):
        run("--train-steps", "4")
    monkeypatch.setattr(search_study, "CONFIGURATIONS", NAMES | {"small": Configuration(3, 0.3)})
    with pytest.raises(SystemExit, match="searched with"):
        run()


def test_the_table_compares_runs_that_both_have(run, tmp_path, monkeypatch):
    run("--configurations", "small")
    run("--configurations", REFERENCE, "--images", "one")
    rows = run("--summary")
    reference, small = rows
    ahead = search_study.losses(rows, "peak of average")
    difference = small["runs"][0]["peak of average"] - reference["runs"][0]["peak of average"]
    assert ahead == {REFERENCE: (0.0, 1), "small": (pytest.approx(difference), 1)}
    monkeypatch.setattr(search_study, "load", lambda name: json.loads((tmp_path / "out.json").read_text()))
    lines = search_study.tables().splitlines()
    (line,) = [line for line in lines if line.startswith("| small |")]
    assert "| 2 | 0.3, cosine | 1e-07 | 0.5 | 0.3 | 16 |" in line
    assert line.endswith(f"| {difference:+.2f} |")
