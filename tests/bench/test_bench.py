"""Steps measured beside the published way, and what has changed from one measurement to the next."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cli_runs import run

import oes_fast as oes
from oes_fast.bench import Bench, BenchRow, bench, changes
from oes_fast.bench.steps import drawn_mask


@pytest.fixture
def small(monkeypatch):
    """The published network with few channels."""
    made = oes.models.skip

    def skip(**options):
        return made(num_channels_down=(4, 6), filter_size_down=3, **options)

    import oes_fast.bench.measure as library
    import oes_fast.cli.bench as command

    monkeypatch.setattr(library, "skip", skip)
    monkeypatch.setattr(command, "skip", skip)


def row(ours, published=(10.0, 10.0, 10.0, 10.0, 10.0), **options):
    about = {"case": "training", "size": 64, "threads": 1, "precision": "float32", "density": 0.05}
    return BenchRow(**(about | options), ms={"published": list(published), "auto": list(ours)})


def of(*rows, **environment):
    return Bench({"cpu": "one", "cores": 2} | environment, rows)


def noisy(center, seed, count=15, spread=0.02):
    return center * (1 + spread * np.random.default_rng(seed).standard_normal(count))


def test_every_case_is_measured_and_told(small):
    told = []
    threads = torch.get_num_threads()
    found = bench(sizes=[32, 48], threads=[1], rounds=3, density=0.5, watch=lambda *said: told.append(said))
    assert [(r.case, r.size, r.threads) for r in found.rows] == [
        (case, size, 1) for size in (32, 48) for case in ("training", "search")
    ]
    assert all(set(r.ms) == {"published", "auto"} and len(r.ms["auto"]) == 3 for r in found.rows)
    assert found.rows[0].density == pytest.approx(0.5, abs=0.1)
    assert told[-1] == ("search, 48 x 48, 1 threads", 4, 4)
    assert torch.get_num_threads() == threads
    seconds = found.run_seconds(32, 1, "auto")
    expected = (300 * np.median(found.rows[1].ms["auto"]) + 1200 * np.median(found.rows[0].ms["auto"])) / 1e3
    assert seconds["quick"] == pytest.approx(expected)
    again = Bench.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found


def test_a_case_ends_after_its_seconds_but_not_before_three_rounds(small):
    found = bench(sizes=[32], cases=["training"], rounds=50, seconds=0)
    assert len(found.rows[0].ms["auto"]) == 3


def test_what_torch_compile_lacks_is_told(small, monkeypatch):
    import oes_fast.bench.measure as library

    def steps(*arguments, **options):
        def refuse():
            raise RuntimeError("no C++ compiler\nmore")

        return {"published": lambda: None, "auto": lambda: None, "compiled": refuse}

    monkeypatch.setattr(library, "training_steps", steps)
    found = bench(sizes=[32], cases=["training"], rounds=3, compiled=True)
    assert found.absent == {"compiled": "RuntimeError: no C++ compiler"}
    assert "compiled" not in found.rows[0].ms


def test_the_drawn_mask_keeps_what_is_said():
    mask = drawn_mask(oes.models.skip(seed=0))
    assert mask.density == pytest.approx(0.171, abs=0.002)  # as docstring and help say
    assert drawn_mask(oes.models.skip(seed=0), 0.3).density == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sizes": [16]}, "sizes"),
        ({"sizes": []}, "at least one"),
        ({"threads": [0]}, "threads"),
        ({"cases": ["both"]}, "cases"),
        ({"backends": ["fast"]}, "backends"),
        ({"rounds": 2}, "rounds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"density": 0.0}, "density"),
        ({"precision": "half"}, "precision"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, said):
    with pytest.raises(oes.InputError, match=said):
        bench(**options)


def test_a_change_is_told_from_noise():
    (same,), _ = changes(of(row(noisy(5, 1), noisy(10, 2))), of(row(noisy(5.05, 3), noisy(10, 4))))
    assert same.verdict == "no change seen"
    (slower,), notes = changes(of(row(noisy(5, 1), noisy(10, 2))), of(row(noisy(6, 3), noisy(10, 4))))
    assert (slower.verdict, notes) == ("slower", [])
    assert slower.low < 1.2 < slower.high
    assert slower.ratio == pytest.approx(1.2, abs=0.03)
    (faster,), _ = changes(of(row(noisy(5, 1), noisy(10, 2))), of(row(noisy(4, 3), noisy(10, 4))))
    assert faster.verdict == "faster"


def test_few_rounds_show_no_change():
    (found,), _ = changes(of(row([5.0] * 4, [10.0] * 4)), of(row([9.0] * 4, [10.0] * 4)))
    assert found.verdict == "no change seen"
    assert found.ratio == pytest.approx(1.8)


def test_a_slower_machine_is_no_change():
    before, after = of(row(noisy(5, 1), noisy(10, 2))), of(row(noisy(10, 3), noisy(20, 4)))
    (found,), _ = changes(before, after)
    assert found.verdict == "no change seen"
    assert found.time_ratio == pytest.approx(2, abs=0.05)


def test_cases_of_one_alone_and_other_machines_are_told():
    before, after = of(row([5.0] * 5)), of(row([5.0] * 5, size=128), cpu="two")
    found, notes = changes(before, after)
    assert found == []
    assert notes == [
        "cpu: one before, two now",
        "training, 128 px, 1 threads: only measured now",
        "training, 64 px, 1 threads: only measured before",
    ]


FOUND = of(row([5.0] * 5)).as_dict()["rows"][0]


@pytest.mark.parametrize(
    "found",
    [
        None,
        {},
        {"rows": [{}], "environment": {}},
        {"rows": [FOUND | {"ms": {"auto": [1.0]}}], "environment": {}},
        {
            "rows": [FOUND | {"ms": {"published": [-1.0]}}],
            "environment": {},
        },
        {"rows": [FOUND | {"ms": {"published": []}}], "environment": {}},
        {"rows": [FOUND | {"ms": [1]}], "environment": {}},
        {"rows": [FOUND | {"density": "x"}], "environment": {}},
    ],
)
def test_other_json_is_refused(found):
    with pytest.raises(oes.InputError, match="oes-fast bench"):
        Bench.from_dict(found)


def test_the_command_writes_and_compares(small, tmp_path, capsys):
    first, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--size", "32", "--case", "training,search", "--threads", "1", "--rounds", "3"]
    assert run(*arguments, "--json", first, "--plot", picture) == 0
    assert "a whole run at 32 x 32, 1 threads, auto: paper" in capsys.readouterr().out
    content = json.loads(first.read_text())
    assert [r["case"] for r in content["rows"]] == ["training", "search"]
    assert set(content["rows"][0]["percentiles"]["auto"]) == {"10", "25", "50", "75", "90"}
    assert picture.stat().st_size > 5_000
    assert run(*arguments, "--compare", first) == 0
    assert "training, 32 x 32, 1 threads, auto: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "64,x"), "--size: expected positive integers"),
        (("--size", "16"), "--size: expected"),
        (("--threads", "0"), "--threads"),
        (("--case", "both"), "--case"),
        (("--case", "search", "--compiled"), "--compiled"),
        (("--backend", "fast"), "--backend"),
        (("--rounds", "1"), "--rounds"),
        (("--density", "2"), "--density"),
        (("--compare", "nowhere.json"), "--compare: nowhere.json"),
        (("--plot", "bench.txt"), "--plot: expected a name"),
        (("--mask", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_bad_options_are_one_line(small, arguments, said, capsys):
    assert run("bench", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
