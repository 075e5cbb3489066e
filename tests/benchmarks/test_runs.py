"""The benchmark of several runs: runs are made once and shared by all means, and its tables are of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_generator import small_generator

import oes_fast as oes
from benchmarks import runs, table_text

RUNS, SIZE = 4, 24


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    oes.save_image(tmp_path / "noise.png", image)
    bits = np.ones(sum(p.numel() for p in small_generator(image, seed=0)[0].parameters()), bool)
    np.savez(tmp_path / "noise_mask.npz", bits=np.packbits(bits), count=len(bits))
    common = ["runs", "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--images", "noise"]
    common += ["--json", str(tmp_path / f"runs-{SIZE}.json"), "--size", str(SIZE)]
    common += ["--steps", "3", "--dense-stops", "2", "1", "--classical", "nlm"]

    def call(*args: str) -> dict:
        monkeypatch.setattr(sys, "argv", [*common, *args])
        runs.main()
        found = json.loads((tmp_path / f"runs-{SIZE}.json").read_text("utf-8"))
        return {name: found[name] for name in ("settings", "cases", "classical")}

    return call


def test_runs_are_made_once_and_shared(run, tmp_path, monkeypatch):
    first = run("--runs", "2", "--dense-runs", "1")
    cases = [(case["method"], case["steps"], len(case["runs"])) for case in first["cases"]]
    assert cases == [("oes", 3, 2), ("dense", 1, 1), ("dense", 2, 1)]
    assert [row["method"] for row in first["classical"]] == ["nlm"]
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert not [name for name in files if name.endswith((".ckpt", ".new"))]
    whole = run("--runs", str(RUNS), "--dense-runs", "2")
    for name, time in files.items():
        assert (tmp_path / "work" / name).stat().st_mtime_ns == time, name
    with monkeypatch.context() as patch:
        patch.setattr(runs, "run_cells", lambda *_: pytest.fail("made twice"))
        assert run("--runs", str(RUNS), "--dense-runs", "2") == whole
        assert run("--runs", "16", "--dense-runs", "16", "--summary") == whole
    with pytest.raises(SystemExit, match="'steps': 3"):
        run("--steps", "4")


def test_runs_that_are_made_at_once_give_the_same(run, tmp_path):
    one_by_one = run("--runs", "3", "--dense-runs", "2")["cases"]
    for path in (tmp_path / "work").iterdir():
        path.unlink()
    together = run("--runs", "3", "--dense-runs", "2", "--together", "2")["cases"]
    for first, second in zip(one_by_one, together, strict=True):
        assert [row["average"] for row in first["runs"]] == [row["average"] for row in second["runs"]]
        assert all(row["seconds"] > 0 for row in second["runs"])


def test_groups_are_of_one_image_and_method():
    options = argparse.Namespace(runs=3, dense_runs=1, images=["a", "b"], size=8, together=2)
    assert [
        [(cell.image, cell.method, cell.seed) for cell in group]
        for group in runs.groups(options, runs.cells(options))
    ] == [
        [("a", "oes", 0), ("a", "oes", 1)],
        [("b", "oes", 0), ("b", "oes", 1)],
        [("a", "dense", 0)],
        [("b", "dense", 0)],
        [("a", "oes", 2)],
        [("b", "oes", 2)],
    ]


def test_figures_are_those_of_means(run, tmp_path):
    case = run("--runs", str(RUNS), "--dense-runs", "0")["cases"][0]
    clean = oes.load_image(tmp_path / "noise.png").pixels
    images = [
        torch.from_numpy(np.load(tmp_path / "work" / f"noise-oes-{SIZE}-{seed}-3.npy"))
        for seed in range(RUNS)
    ]
    pairs = [oes.psnr((images[n] + images[n + 1]) / 2, clean) for n in (0, 2)]
    means = {mean["runs"]: mean for mean in case["means"]}
    assert set(means) == {1, 2, 4}
    assert means[2]["first"] == pytest.approx(pairs[0], abs=1e-3)
    assert means[2]["groups"]["mean"] == pytest.approx(np.mean(pairs), abs=1e-3)
    assert means[2]["groups"]["spread"] == pytest.approx(np.std(pairs, ddof=1), abs=1e-3)
    assert means[4]["first"] == pytest.approx(oes.psnr(sum(images) / 4, clean), abs=1e-3)
    assert means[4]["groups"] == {"mean": means[4]["first"], "spread": None, "count": 1}
    assert means[1]["spread"] is None
    assert means[4]["spread"] == pytest.approx(float(torch.cat(images).std(0).mean()), abs=1e-3)
    assert means[4]["seconds"] == pytest.approx(4 * means[1]["seconds"], abs=1e-3)


def test_a_run_goes_on_from_its_checkpoint_without_seconds(run, tmp_path, monkeypatch):
    clean = oes.load_image(tmp_path / "noise.png").pixels
    noisy = oes.add_noise(clean, 0.1, 0)
    net, z = small_generator(noisy, seed=0)
    mask = oes.Mask.load(tmp_path / "noise_mask.npz", net)
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / f"noise-oes-{SIZE}-0.ckpt"
    oes.train_sparse(net, mask, z, noisy, steps=2, clean=clean, average=0.99, checkpoint=path, verify=False)
    (case,) = run("--runs", "1", "--dense-runs", "0")["cases"]
    whole = oes.train_sparse(net, mask, z, noisy, steps=3, clean=clean, average=0.99, verify=False)
    assert case["runs"][0]["average"] == pytest.approx(oes.psnr(whole.average, clean), abs=1e-4)
    assert case["runs"][0]["seconds"] is None
    assert not path.exists()


def test_runs_that_collapsed_are_not_in_the_means():
    rows = [{"collapsed": seed == 1, "diverged": seed == 2} for seed in range(4)]
    assert runs.sound(rows, range(4)) == [0, 3]
    assert runs.sound(rows, [1, 2]) == [1, 2]


def test_the_tables_say_what_was_not_measured(run, tmp_path, monkeypatch):
    run("--runs", str(RUNS), "--dense-runs", "1")
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    monkeypatch.setattr(runs, "FILES", (str(SIZE),))
    text = runs.tables()
    assert f"Noise, {SIZE} x {SIZE}, noisy image" in text
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "|" in line}
    assert [cell.strip() for cell in lines["OES, dB"]][3:] == ["not measured"] * 2
    assert " ± " in lines["OES, dB"][0]
    assert [cell.strip() for cell in lines["dense DIP, 2 steps, dB"]][1:] == ["not measured"] * 4
    assert float(lines["non-local means, dB"][0]) > 0
    (tmp_path / "work" / f"noise-oes-{SIZE}-0.json").unlink()
    run("--runs", "1", "--dense-runs", "0", "--summary")
    lines = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in runs.tables().splitlines()
        if "|" in line
    }
    assert [cell.strip() for cell in lines["OES"]] == ["not measured"] * 5
    assert "dense DIP" in lines
    assert "non-local means, dB" in lines
