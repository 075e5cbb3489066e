"""The benchmark of stopping rules: trainings are made once, and where a rule stops is read off its curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_generator import small_generator

import oes_fast as oes
from benchmarks import stopping, table_text


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    pytest.importorskip("pywt")
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    path = tmp_path / "stopping.json"
    sizes = {"size": 32, "steps": 60, "dense-steps": 40, "search-steps": 2, "every": 20}
    common = ["stopping", "--work", str(tmp_path / "work"), "--json", str(path), "--seeds", "0"]
    common += [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    common += ["--images", "astronaut", "--noises", "poisson"]

    def call(*args: str) -> dict:
        monkeypatch.setattr(sys, "argv", [*common, *args])
        stopping.main()
        return json.loads(path.read_text("utf-8"))

    return call


def test_trainings_are_made_once_and_make_tables(run, monkeypatch, tmp_path):
    first = run("--networks", "0.5")
    assert [(row["noise"], row["network"]) for row in first["cells"]] == [("poisson", "0.5")]
    for row in first["cells"]:
        assert row["rules"].keys() == stopping.RULES.keys()
        best = row["best"]["average"]
        assert row["end"]["average"] <= best
        for name, found in row["rules"].items():
            assert 0 <= found["step"] <= found["steps made"] <= 60
            if stopping.RULES[name].run == "whole":
                assert found["loss"]["average"] >= 0
    with monkeypatch.context() as patch:
        patch.setattr(oes, "train_sparse", lambda *_, **__: pytest.fail("made twice"))
        again = run("--networks", "0.5")
        assert again["cells"] == first["cells"]
    both = run("--networks", "0.5", "dense")
    assert [row["network"] for row in both["cells"]] == ["0.5", "dense"]
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = stopping.tables()
    assert "| all weights | Poisson, 50 photons | 1 |" in text
    assert "All 2 runs:" in text
    assert "`DiscrepancyStop()`" in text


@pytest.mark.parametrize(
    ("curve", "patience", "stop"),
    [
        ([[0, 3.0], [10, 2.0], [20, 2.5], [30, 2.2], [40, 1.9]], 20, (10, 30)),
        ([[0, 3.0], [10, 2.0], [20, 2.5], [30, 2.2], [40, 1.9]], 30, (40, 60)),
        ([[0, 3.0], [10, 1.2], [20, 0.9], [30, 0.8]], 0, (20, 20)),
        ([[0, 3.0], [10, 1.2]], 0, (10, 60)),
        ([], 30, (60, 60)),
    ],
)
def test_where_a_rule_stops(curve, patience, stop):
    assert stopping.stop_of(curve, patience, 60) == stop
