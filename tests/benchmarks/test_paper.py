"""The published settings end to end: phases go on after a kill, and are made once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_generator import small_generator

import oes_fast as oes
from benchmarks import paper, paper_page, table_text
from oes_fast.pipelines.presets import PRESETS

SIZE, SEARCH, TRAIN = 32, 7, 8
TIMES = ("date", "command", "environment", "seconds", "ms a step")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The command, with a small network, and what it wrote."""
    monkeypatch.setattr(oes, "fresh_generator", small_generator)
    monkeypatch.setattr(paper, "WARM_UP", 2)
    monkeypatch.setattr(paper, "STOPS", (2, 5))
    monkeypatch.setattr(paper_page, "STOPS", (2, 5))
    published = {"method": "published", "noisy": 20.0, "peak": {"step": 2, "psnr": 28.0}, "at": {"5": 27.0}}
    monkeypatch.setitem(paper.PUBLISHED, ("noise", SIZE), published)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    oes.save_image(tmp_path / "noise.png", image)
    net, _ = small_generator(image, seed=0)
    bits = np.arange(sum(p.numel() for p in net.parameters())) % 3 > 0
    np.savez(tmp_path / "noise_mask.npz", bits=np.packbits(bits), count=len(bits))
    common = ["paper", "--image", str(tmp_path / "noise.png"), "--size", str(SIZE), "--device", "cpu"]
    common += ["--published-mask", str(tmp_path / "noise_mask.npz"), "--checkpoint-seconds", "0"]

    def call(
        work: str, *args: str, search: int = SEARCH, train: int = TRAIN, backend: str = "reference"
    ) -> dict:
        path = tmp_path / f"{work}.json"
        where = ["--work", str(tmp_path / work), "--json", str(path)]
        steps = ["--search-steps", str(search), "--train-steps", str(train), "--backend", backend]
        monkeypatch.setattr(sys, "argv", [*common, *where, *steps, *args])
        paper.main()
        return json.loads(path.read_text("utf-8"))

    return call


def without_times(value: object) -> object:
    """A result but for what differs from one run to the next."""
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name not in TIMES}
    return value


def test_a_killed_run_ends_as_one_without_a_break(run, tmp_path, monkeypatch, capsys):
    whole = run("whole", "--control", "published")
    assert set(whole["trainings"]) == {"found", "published"}
    timed = [whole["search"], *whole["trainings"].values()]
    assert all(phase["seconds"] > 0 and phase["ms a step"] > 0 for phase in timed)
    assert whole["seconds"] == pytest.approx(sum(phase["seconds"] for phase in timed))
    watch = paper.Watch.__call__

    def killed(phase: str, step: int) -> None:
        def call(self, info):
            if (info.phase, info.step) == (phase, step):
                raise RuntimeError("killed")
            watch(self, info)

        with monkeypatch.context() as patch:
            patch.setattr(paper.Watch, "__call__", call)
            with pytest.raises(RuntimeError, match="killed"):
                run("killed", "--control", "published")

    killed("search", 3)
    assert not (tmp_path / "killed.json").exists()
    killed("train", 4)
    assert "profile" in json.loads((tmp_path / "killed.json").read_text("utf-8"))
    with monkeypatch.context() as patch:
        patch.setattr(oes, "search_mask", lambda *_, **__: pytest.fail("searched twice"))
        found = run("killed", "--control", "published")
    assert "train-found: goes on from step 4 of 8" in capsys.readouterr().out
    assert without_times(found) == without_times(whole)
    assert found["search"]["seconds"] is found["trainings"]["found"]["seconds"] is found["seconds"] is None
    assert found["trainings"]["published"]["seconds"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(oes, "train_sparse", lambda *_, **__: pytest.fail("trained twice"))
        again = run("whole", "--control", "published")
    assert {name: again[name] for name in again if name not in TIMES[:3]} == {
        name: whole[name] for name in whole if name not in TIMES[:3]
    }
    with pytest.raises(SystemExit, match=r"'steps': 7.*'steps': 9"):
        run("whole", search=9)


def test_a_run_that_was_stopped_says_so(run, monkeypatch):
    monkeypatch.setattr(paper.Watch, "__call__", lambda self, info: info.step == 3)
    with pytest.raises(SystemExit, match="search: stopped at step 4 of 7"):
        run("stopped")


def test_the_figures_are_those_of_the_library(run, tmp_path):
    found = run("run", backend="auto")
    assert set(found["trainings"]) == {"found"}
    clean = oes.load_image(tmp_path / "noise.png").pixels
    noisy = oes.add_noise(clean, 0.1, 0)
    net, z = small_generator(noisy, seed=0)
    density = PRESETS["paper"].density
    searched = oes.search_mask(net, z, noisy, density=density, steps=SEARCH, clean=clean, record_every=1)
    mask = oes.Mask.load(tmp_path / "run" / "mask.safetensors", net)
    assert torch.equal(mask.flat, searched.mask.flat)
    assert found["search"]["curve"]["psnr"] == pytest.approx(searched.history.psnr, abs=1e-4)
    assert found["search"]["psnr of mask alone"] == pytest.approx(oes.psnr(searched.output, clean), abs=1e-4)
    fit = oes.train_sparse(net, mask, z, noisy, steps=TRAIN, clean=clean, average=0.99, record_every=1)
    figures, report = found["trainings"]["found"]["psnr"], fit.report()
    assert figures["output"]["peak"]["step"] == report["peak_step"]
    assert figures["output"]["at"] == {str(n): pytest.approx(fit.history.psnr[n], abs=1e-4) for n in (2, 5)}
    assert figures["average"]["end"] == pytest.approx(report["average"], abs=1e-4)
    assert found["noisy"] == pytest.approx(oes.psnr(noisy, clean), abs=1e-4)
    text = (tmp_path / "run.json").read_text("utf-8")
    assert str(tmp_path) not in text
    assert "noise_mask.npz" in text  # in the command, without its folder


def test_options_that_do_not_fit(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paper"])
    with pytest.raises(SystemExit):
        paper.main()
    assert "expected --image" in capsys.readouterr().err
    monkeypatch.setattr(
        sys, "argv", ["paper", "--image", "a.png", "--work", "work", "--control", "published"]
    )
    with pytest.raises(SystemExit):
        paper.main()
    assert "expected --published-mask" in capsys.readouterr().err


def test_tables_and_picture(run, tmp_path, monkeypatch):
    found = run("paper", "--control", "--picture", str(tmp_path / "first.png"))
    seeds = {label: fit["seed of weights"] for label, fit in found["trainings"].items()}
    assert seeds == {"found": 0, "published": 0, "fresh": 1}
    words = ["paper", "--json", str(tmp_path / "paper.json"), "--picture", str(tmp_path / "again.png")]
    monkeypatch.setattr(sys, "argv", words)
    paper.main()
    first, again = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("first", "again"))
    assert np.array_equal(first, again)
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = paper_page.tables()
    lines = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "|" in line}
    assert [cell.strip() for cell in lines["published"]] == ["28.00 at 2", "", "27.00", ""]
    assert float(lines["published mask, average"][1]) > 0
    assert lines["search"][0].strip() == str(SEARCH)
    assert "conv 1: 3x3, 4 > 8" in lines
    assert "The shares of the layers in the two masks overlap by" in text
    assert "(published: 20.00)" in text
    del found["trainings"]
    assert "| search | 7 |" in paper_page.tables_of("paper", found)
    paper_page.draw(found, tmp_path / "searched.png")


def test_progress_is_printed_and_steps_are_timed(capsys):
    noisy = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    net, z = small_generator(noisy, seed=0)
    mask = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.bool))
    watch = paper.Watch("train-found", seconds=0.0)
    oes.train_sparse(net, mask, z, noisy, steps=12, clean=noisy, callback=watch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13
    assert lines[-1].startswith("train-found: step 12 of 12, loss 0.")
    assert lines[-1].endswith(" steps/s")
    assert watch.ms is not None
    assert watch.ms > 0
    quiet = paper.Watch("train-found")
    oes.train_sparse(net, mask, z, noisy, steps=5, clean=noisy, callback=quiet)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert quiet.ms is None  # too few steps


def test_records_and_points_are_few():
    assert [paper.record_every(n) for n in (0, 600, 601, 40_000, 60_000)] == [1, 1, 2, 100, 100]
    history = oes.History()
    for step in range(0, 60_001, 100):
        history.add(step, torch.tensor(0.1), 20.0, float("nan"))
    kept = paper.curve(history)
    assert set(kept) == {"step", "loss", "psnr"}
    assert 200 <= len(kept["step"]) <= paper.POINTS
    assert (kept["step"][0], kept["step"][-1]) == (0, 60_000)
    history.add(60_001, torch.tensor(0.1), 21.0, 22.0)
    assert paper.curve(history)["step"][-1] == 60_001
    assert len(paper.curve(history)["step"]) <= paper.POINTS
