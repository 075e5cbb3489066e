"""Results say when and how they were measured, and pages are made from them."""

from __future__ import annotations

import datetime
import json
import sys

import pytest

from benchmarks import report, table_text, tables


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
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
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


def test_a_measurement_of_a_gpu_becomes_tables(tmp_path, monkeypatch):
    def row(**ms: float) -> dict[str, object]:
        times = {way: {"min": t, "median": t, "max": t} for way, t in ms.items()}
        first = next(iter(ms))
        faster = {way: {"min": ms[first] / t, "median": ms[first] / t} for way, t in ms.items()}
        return {"size": 512, "ms": times, "times faster": faster, "precision": dict.fromkeys(ms, "float32")}

    steps = {
        "training": [row(published=40, torch=20, triton=4)],
        "search": [row(published=80, torch=40, triton=20)],
    }
    memory = [
        {"case": "training", "way": "published", "peak MB": 900.4},
        {"case": "training", "way": "triton", "error": "x"},
    ]
    result = {
        "date": "2026-01-02",
        "command": "python -m benchmarks.gpu",
        "environment": {"gpu": "GPU X", "torch": "2.13.0"},
        "parts": {
            "steps float32": {"ok": True, "result": steps},
            "memory": {"ok": True, "result": memory},
            "tests": {"ok": False, "error": "exit code 1"},
            "steps compiled": {"ok": True, "result": row(compiled=12, triton=4)},
        },
    }
    (tmp_path / "gpu-x.json").write_text(json.dumps(result))
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = tables.gpu()
    assert text.startswith("2026-01-02 · GPU X · PyTorch 2.13.0 · ")
    assert (
        "| 512 | float32 | published code | 40.0 (40.0) | 20.0 (20.0) | 4.0 (4.0) | 10.0 (10.0) x |" in text
    )
    assert "| published code, torch.compile | 12.0 (12.0) |  | 4.0 (4.0) | 3.0 (3.0) x |" in text
    assert "| training | published code | 900 MB |" in text
    assert "| GPU X, `triton`, float32 | 10.0 to 10.0 x | 4.0 to 4.0 x | 2026-01-02 |" in tables.gain()
    (tmp_path / "gpu-x.json").unlink()
    assert tables.gpu().startswith("No GPU figure")
