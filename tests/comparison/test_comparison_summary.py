"""Means, spreads, tables: of numbers that can be checked by hand."""

from __future__ import annotations

import csv
import math

import pytest

from oes_fast.comparison.cells import Cell
from oes_fast.comparison.summary import ALL, Figure, curve, rows, table, thinned, write_csv


def result(peak: float | None, end: float, *, noisy: float = 20.0, **more: object) -> dict:
    found = {
        "psnr": {"noisy": noisy, "end": end} | ({} if peak is None else {"peak": peak, "peak_step": 10}),
        "ssim": {"noisy": 0.3, "end": 0.8},
        "seconds": {"total": 61.0, "mask": 1.0},
        "settings": {"noise_seed": 7},
        "steps": 20,
    }
    if peak is not None:
        found["curve"] = {"step": [0, 10, 20], "psnr": [8.0, peak, end], "loss": [], "psnr_average": []}
        found["ssim_curve"] = [[0, 0.1], [20, 0.8]]
    return found | more


RESULTS = {
    Cell("a", "oes", 0.05, 0): result(28.0, 26.0),
    Cell("a", "tv", None, 0): result(None, 25.0),
    Cell("b", "oes", 0.05, 0): result(30.0, 29.0, collapsed=True),
    Cell("a", "oes", 0.05, 1): result(29.0, 27.0),
}


def test_means_and_spreads_over_seeds():
    assert Figure.of([1.0, None, 3.0, math.nan]) == Figure(2.0, math.sqrt(2.0), 2)
    assert Figure.of([5.0]) == Figure(5.0, None, 1)
    assert Figure.of([]) == Figure(None, None, 0)
    first = rows(RESULTS)[0]
    assert (first.image, first.method, first.seeds) == ("a", "oes", 2)
    assert first.peak.mean == pytest.approx(28.5)
    assert first.end.spread == pytest.approx(math.sqrt(0.5))
    assert first.curves["psnr"]["mean"] == [8.0, 28.5, 26.5]
    assert first.curves["ssim"]["step"] == [0, 20]


def test_all_images_are_the_seeds_that_all_of_them_have():
    whole = [row for row in rows(RESULTS) if row.image == ALL]
    assert [(row.method, row.seeds, row.peak.mean, row.collapsed) for row in whole] == [("oes", 1, 29.0, 1)]
    one = {cell: r for cell, r in RESULTS.items() if cell.image == "a"}
    assert {row.image for row in rows(one)} == {"a"}


def test_curves_have_the_steps_that_all_cells_have():
    longer = result(28.0, 26.0)
    longer["curve"] = {"step": [0, 20, 40], "psnr": [7.0, None, 30.0]}
    assert curve([result(28.0, 26.0), longer], "psnr") == {
        "step": [0],
        "mean": [7.5],
        "spread": [math.sqrt(0.5)],
    }
    assert curve([result(None, 26.0)], "psnr")["step"] == []


def test_thinned_curves_keep_their_ends_and_are_dense_at_first():
    steps = list(range(0, 40_001, 10))
    kept = thinned({"step": steps, "mean": [float(s) for s in steps]})
    assert kept["step"] == [int(m) for m in kept["mean"]]
    assert (kept["step"][0], kept["step"][-1]) == (0, 40_000)
    assert 60 < len(kept["step"]) < 110
    assert sum(step < 1_000 for step in kept["step"]) > 20
    assert thinned({"step": [0, 10]}) == {"step": [0, 10]}


def test_the_table_fits_in_80_columns():
    wide = {Cell("a" * 40, "deep_decoder", None, s): result(128.25 + s, 126.0, diverged=True) for s in (0, 1)}
    wide |= {
        Cell("a" * 40, "magnitude", 0.035, 0): result(
            28.0, 26.0, collapsed=True, diverged=True, empty_layers=["a"]
        )
    }
    wide |= {Cell("a" * 40, "nlm", None, 0): result(None, 26.0)}
    text = table(rows(RESULTS | wide))
    assert max(map(len, text.splitlines())) <= 80, text
    assert "28.50±0.71" in text
    assert "oes 5 %" in text
    assert "1:01" in text
    assert text.count("noisy image 20.00 dB") == 3  # no method is on all images


def test_csv_has_a_line_for_each_cell(tmp_path):
    write_csv(tmp_path / "a.csv", RESULTS)
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4
    assert lines[0]["psnr_peak"] == "28.0"
    assert (lines[1]["method"], lines[1]["density"], lines[1]["psnr_peak"]) == ("tv", "", "")
    assert {line["noise_seed"] for line in lines} == {"7"}
