"""Quality by the clock: trainings are made once, and seconds are steps times the time of one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_generator import small_generator

import oes_fast as oes
from benchmarks import time_to_quality, time_to_quality_page
from benchmarks.time_to_quality_page import Line
from oes_fast.pipelines.presets import PRESETS

STEPS = 100
SHORT = {
    name: replace(PRESETS[name], search_steps=2, train_steps=50, density=0.5) for name in ("fast", "quick")
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    pytest.importorskip("pywt")
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    monkeypatch.setattr(time_to_quality, "PRESETS", {**PRESETS, **SHORT})
    common = ["time_to_quality", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")]
    common += ["--picture", str(tmp_path / "out.png"), "--side", "32", "--rounds", "1"]
    common += ["--steps", str(STEPS), "--dense-steps", "50", "--images", "astronaut", "coffee"]

    def call(*args: str) -> dict:
        monkeypatch.setattr(sys, "argv", [*common, *args])
        time_to_quality.main()
        return json.loads((tmp_path / "out.json").read_text("utf-8"))

    return call


def test_everything_is_made_once_and_drawn(run, tmp_path, monkeypatch):
    first = run("--runs", "1")
    ways = [(curve["image"], curve["way"], curve["seed"]) for curve in first["curves"]]
    astronaut = [("astronaut", way, 0) for way in ("fast", "quick", "dense")]
    assert ways == astronaut + [("coffee", way, 0) for way in ("reused", "fast", "quick", "dense")]
    assert (tmp_path / "out.png").stat().st_size > 10_000
    curves = dict(zip(ways, first["curves"], strict=True))
    assert curves["astronaut", "fast", 0]["step"] == [50, STEPS]
    assert curves["astronaut", "dense", 0]["step"] == [50]
    assert curves["astronaut", "fast", 0]["means"] == []
    assert curves["coffee", "reused", 0]["average"] != curves["coffee", "fast", 0]["average"]
    assert first["steps"]["ms"].keys() == {
        *("published search", "published training", "published dense", "search", "dense"),
        *("training, fast", "training, quick"),
    }
    made = time_to_quality.run_cell
    cells = []
    monkeypatch.setattr(
        time_to_quality, "run_cell", lambda options, cell: (cells.append(cell), made(options, cell))
    )
    second = run("--runs", "2")
    assert [tuple(cell) for cell in cells] == [("astronaut", way, 1) for way in ("fast", "quick")]
    assert second["steps"] == first["steps"]
    (mean,) = second["curves"][0]["means"]
    assert mean["runs"] == 2
    alone = [curve["average"] for curve in second["curves"] if curve["way"] == "fast"][:2]
    assert mean["average"][-1] > min(each[-1] for each in alone)
    assert run("--runs", "2", "--summary")["curves"] == second["curves"]
    with pytest.raises(SystemExit, match=r"'sigma': 0\.1"):
        run("--sigma", "0.2")


def test_seconds_are_those_of_the_search_and_of_the_steps(run, monkeypatch):
    result = run("--runs", "2")
    for name, ms in {"search": 100, "training, fast": 10, "published dense": 1000, "dense": 500}.items():
        result["steps"]["ms"][name]["median"] = ms
    found = {line.label: line for line in time_to_quality_page.lines_of(result, "astronaut")}
    assert found["--preset fast"].at(50) == pytest.approx(0.2 + 0.5)
    assert found["--preset fast, mean of 2 runs"].at(50) == pytest.approx(0.2 + 1.0)
    assert found["dense DIP, plain PyTorch"].at(50) == pytest.approx(50)
    assert found["dense DIP, oes_fast"].at(50) == pytest.approx(25)
    assert not any("6,000" in label for label in found)  # that was at another size
    other = {line.label: line for line in time_to_quality_page.lines_of(result, "coffee")}
    assert other["the mask that fast found on astronaut"].at(50) == pytest.approx(0.5)
    result["settings"]["side"] = 256
    found = {line.label: line for line in time_to_quality_page.lines_of(result, "astronaut")}
    assert found["6,000 steps of search, oes_fast"].at(20) == pytest.approx(600 + 0.2)
    monkeypatch.setattr(time_to_quality_page, "load", lambda name: result)
    monkeypatch.setattr(time_to_quality_page, "reference", lambda *_: [])
    rows = [row.split(" | ") for row in time_to_quality_page.tables().splitlines()]
    (row,) = (row for row in rows if row[0] == "| --preset fast, mean of 2 runs")
    assert row[1] == "0"
    assert row[2].endswith("after 1 s")
    (row,) = (row for row in rows if row[:2] == ["| coffee", "reused"])
    assert row[2] == "1"


def test_what_a_line_reaches():
    line = Line("", 10.0, 2.0, [50, 100, 150], [20.0, 26.0, 25.0], 100, "")
    assert line.best == 1
    assert line.reaches(25.0) == 210.0
    assert line.reaches(26.5) is None
    row = time_to_quality_page.row_of(line, [20, 27])
    assert row == ["", "10", "26.00 after 210 s", "26.00 after 210 s", "100", "110", ""]
