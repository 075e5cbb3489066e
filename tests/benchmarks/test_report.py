"""Results say when and how they were measured, and pages are made from them."""

from __future__ import annotations

import datetime
import json
import sys

import pytest

from benchmarks import report, tables


def test_a_result_has_its_date_and_command(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    words = ["steps.py", "--mask", "/data/pepper mask.npz", "--json", str(file), "--json=x", "--threads", "2"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    report.write_result(str(file), {"steps": []})
    result = json.loads(file.read_text())
    age = datetime.datetime.now(datetime.timezone.utc).date() - datetime.date.fromisoformat(result["date"])
    assert age.days in (0, 1)
    assert result["command"] == "steps.py --mask 'pepper mask.npz' --threads 2"
    assert result["steps"] == []


def test_the_newest_result_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, date in (
        ("steps-cpu-a", "2026-01-02"),
        ("steps-cpu-b", "2026-02-01"),
        ("steps-gpu", "2026-03-01"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": date}))
    assert tables.measured("steps-cpu-*") == ["steps-cpu-b", "steps-cpu-a"]


def test_a_region_is_rewritten_and_nothing_else():
    text = "before\n<!-- table: memory -->\nold\n<!-- end -->\nafter\n"
    made = tables.rewritten(text)
    assert made.startswith("before\n<!-- table: memory -->\n\n2026-")
    assert made.endswith("|\n\n<!-- end -->\nafter\n")
    assert "old" not in made
    assert tables.rewritten(made) == made
    with pytest.raises(KeyError):
        tables.rewritten("<!-- table: nothing -->\n<!-- end -->")
