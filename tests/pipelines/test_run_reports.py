"""Peak, end and average of a run."""

from __future__ import annotations

import math

import pytest
import torch
from short_runs import BOTH, start

import oes_fast as oes

NAN = float("nan")


def history(*rows):
    made = oes.History()
    for row in rows:
        made.add(row[0], torch.tensor(0.1), *row[1:])
    return made


def test_peak_end_and_average():
    report = history((0, 10.0, 10.0), (5, 30.0, 20.0), (10, 25.0, 28.0), (15, 24.0, 27.5)).report()
    assert report == {
        "peak": 30.0, "peak_step": 5, "end": 24.0, "end_step": 15,
        "average": 27.5, "peak_average": 28.0, "peak_average_step": 10,
    }  # fmt: skip


def test_what_is_not_known_is_none():
    report = history((0, NAN, NAN), (5, NAN, NAN)).report()
    assert report.pop("end_step") == 5
    assert set(report.values()) == {None}
    assert set(oes.History().report().values()) == {None}
    assert history((0, 12.0, NAN)).report()["average"] is None


def test_of_equal_peaks_the_first_counts():
    assert history((0, 10.0, NAN), (5, 10.0, NAN)).report()["peak_step"] == 0


@BOTH
@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_every_result_has_one(problem, run):
    result = start(run, problem, steps=3, **({"average": 0.5} if run == "train" else {}))
    report = result.report()
    assert report["end"] == result.history[-1].psnr
    assert report["end_step"] == 3
    assert report["peak"] == max(result.history.psnr)
    if run == "train":
        assert report["end"] == pytest.approx(float(oes.psnr(result.output, problem.clean)))
        assert report["average"] == pytest.approx(float(oes.psnr(result.average, problem.clean)))
    else:
        assert report["average"] is None
    assert all(value is None or math.isfinite(value) for value in report.values())
