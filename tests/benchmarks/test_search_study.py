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
NAMES = {
    REFERENCE: Configuration(2, 0.1, trained=4, density=0.5),
    "small": Configuration(2, 0.3, "cosine", 1e-7, 0.5, 0.3, side=16, trained=2, density=0.5),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    monkeypatch.setattr(search_study, "CONFIGURATIONS", NAMES)
    monkeypatch.setattr(search_study, "STOPS", (2, 4))
    monkeypatch.setattr(search_study, "EVERY", 1)
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for name in ("one", "two"):
        oes.save_image(tmp_path / f"{name}.png", image)
    common = ["search_study", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--images", "one"]
    common += ["two", "--side", str(SIDE), "--json", str(tmp_path / "out.json")]

    def call(*args: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", [*common, *args])
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
    assert [list(row["runs"][0]["averages"]) for row in found] == [["2", "4"], ["2"]]
    monkeypatch.setattr(search_study, "run_cell", lambda *_: pytest.fail("made twice"))
    assert run() == run("--summary") == found
    assert [len(row["runs"]) for row in run("--images", "one")] == [1, 1]
    with pytest.raises(SystemExit, match=r"'train_lr': 0\.01"):
        run("--train-lr", "0.1")
    monkeypatch.setattr(search_study, "CONFIGURATIONS", NAMES | {"small": Configuration(3, 0.3)})
    with pytest.raises(SystemExit, match="searched with"):
        run()


def test_the_table_has_the_runs_of_the_reference_of_the_study_of_masks(run, tmp_path, monkeypatch):
    run("--configurations", "small")
    run("--configurations", REFERENCE, "--images", "one")
    reference, small = run("--summary")
    history = {"step": [0, 1, 2], "psnr_average": [None, 20.0, 21.25]}
    study = {
        "options": {"image": "skimage:one", "search_steps": 6_000, "search_lr": 0.1, "kl": 1e-9},
        "runs": [
            {"mask": mask, "seed": seed, "history": history}
            for seed in (0, 7)
            for mask in ("searched", "random")
        ],
    }
    written = {
        search_study.NAME: json.loads((tmp_path / "out.json").read_text()),
        "mask-study-256-cpu": study,
    }
    monkeypatch.setattr(search_study, "load", written.get)
    lines = {line.split(" | ")[0].strip("| "): line for line in search_study.tables().splitlines()}
    assert lines["search"].endswith("| one, seed 0 | one, seed 7 | two, seed 0 |")
    ours = " / ".join(f"{value:.2f}" for value in reference["runs"][0]["averages"].values())
    assert lines[REFERENCE].endswith(
        f"| {ours} | 21.25 / - |  |"
    )  # its own run goes before that of the study
    assert "| 2 | 0.3, cosine | 1e-07 | 0.5 | 0.3 | 16 |" in lines["small"]
    first, second = (f"{run['averages']['2']:.2f} / -" for run in small["runs"])
    assert lines["small"].endswith(f"| {first} |  | {second} |")


def test_the_reference_needs_no_run_of_this_study(run, tmp_path, monkeypatch):
    run("--configurations", "small")
    written = {search_study.NAME: json.loads((tmp_path / "out.json").read_text())}
    load = search_study.load
    monkeypatch.setattr(search_study, "load", lambda name: written.get(name) or load(name))
    (line,) = [line for line in search_study.tables().splitlines() if line.startswith(f"| {REFERENCE} |")]
    assert "|  |" in line  # no seconds
