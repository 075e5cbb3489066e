"""Rows of pytest-benchmark become a result, and the result tables."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from benchmarks import operations, table_text

MACHINE = {"cpu": "one", "cpu_capability": "AVX2", "torch": "2", "cores": 2, "gpu": None}


def row(name: str, ms: float, threads: int = 1, **info: object) -> dict[str, Any]:
    stats = {"min": ms / 2e3, "median": ms / 1e3, "max": 1.0}
    return {
        "name": name,
        "stats": stats,
        "extra_info": {"environment": {**MACHINE}, "threads": threads, **info},
    }


def write(path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"datetime": "2026-11-27T08:00:00+00:00", "benchmarks": rows}))


@pytest.fixture
def command(tmp_path, monkeypatch):
    def run() -> None:
        file = tmp_path / "operations-cpu.json"
        monkeypatch.setattr(sys, "argv", ["operations", str(tmp_path / "rows.json"), "--json", str(file)])
        operations.main()

    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    return run


def test_sparse_beside_dense_by_density(command, tmp_path):
    rates = {"forward": 2.0, "input_gradient": 4.0, "weight_gradient": 8.0}
    rows = [
        row(
            f"test_sparse_conv2d_by_density[{size}-{density}-{part}-{threads}]",
            10.0 * threads,
            threads,
            **{"GMAC/s": rate, "dense ms": 1000 * density},
        )
        for size in (1024, 128)
        for density in (0.5, 0.05)
        for part, rate in rates.items()
        for threads in (1, 2)
    ]
    write(tmp_path / "rows.json", rows)
    command()
    result = json.loads((tmp_path / "operations-cpu.json").read_text())
    assert result["date"] == "2026-11-27"
    assert result["environment"] == MACHINE
    assert result["benchmarks"][0]["ms"] == {"min": 5.0, "median": 10.0}
    assert "environment" not in result["benchmarks"][0]
    lines = [line for line in operations.by_density().splitlines() if line.startswith("|")]
    assert lines[0] == "| weights kept | threads | 128 px | 1024 px |"
    assert lines[2:] == [
        "| 5 % | 1 | 5.0 x, 5 | 5.0 x, 5 |",
        "| 50 % | 1 | 50.0 x, 5 | 50.0 x, 5 |",
        "| 5 % | 2 | 2.5 x, 5 | 2.5 x, 5 |",
        "| 50 % | 2 | 25.0 x, 5 | 25.0 x, 5 |",
    ]


def test_layers_are_added_up_and_the_first_one_has_no_input_gradient(command, tmp_path):
    rows = []
    for threads in (1, 2):
        for name in ("sparse_conv2d", "sparse_up_conv2d"):
            parts = ("forward", "backward") if "up" in name else operations.PARTS
            for layer, ms in (("32to6at515by2", 1.0), ("6to6at260by1", 3.0)):
                info = {"GMAC/s": 4.0, "dense ms": 8.0, "share of sgemm": ms / 10}
                rows += [row(f"test_{name}[{layer}-{part}-{threads}]", ms, threads, **info) for part in parts]
    write(tmp_path / "rows.json", rows)
    command()
    text = operations.convolutions()
    assert "| `sparse_conv2d`, forward | 2 | 1 | 4.0 | 4.0 | 10 % to 30 % | 4.0 x |" in text
    assert "without the first layer | 1 | 2 | 3.0 | 4.0 | 30 % to 30 % | 2.7 x |" in text


def test_rows_of_two_machines_are_no_result(command, tmp_path):
    rows = [row("test_a[1]", 1.0), row("test_b[1]", 1.0)]
    rows[1]["extra_info"]["environment"]["cpu"] = "another"
    write(tmp_path / "rows.json", rows)
    with pytest.raises(SystemExit, match="one machine"):
        command()
