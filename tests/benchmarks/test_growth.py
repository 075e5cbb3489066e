"""The benchmark of growth: the work that is counted, what it measures, its tables and picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import oes_fast as oes
from benchmarks import growth, memory, table_text
from oes_fast.bench.measure import Bench, BenchRow
from oes_fast.bench.steps import PUBLISHED


def test_work_is_that_of_kept_weights_at_their_pixels(monkeypatch):
    def small(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Conv2d(32, 4, 1), torch.nn.Conv2d(4, 3, 3, padding=1))

    monkeypatch.setattr(oes.models, "skip", small)
    net = small(0)
    # What depends on the input alone is computed, too: its weights are trained.
    macs, values = (32 * 4 + 4 * 3 * 9) * 64, (4 + 3) * 64
    assert growth.work(None, 8) == pytest.approx({"GMAC": 3 * macs / 1e9, "GB": 5 * 4 * values / 1e9})
    keep = torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.bool)
    keep[:10] = False  # of the first convolution
    keep[-3 - 4 * 9 :] = False  # the last channel's weights and all biases
    fewer = growth.work(oes.Mask.from_flat(net, keep), 8)
    assert fewer["GMAC"] == pytest.approx(3 * (32 * 4 - 10 + 4 * 2 * 9) * 64 / 1e9)
    assert fewer["GB"] < 5 * 4 * values / 1e9


def test_memory_is_that_of_the_process():
    before = memory.peak_of_this_process()
    block = torch.ones(30_000_000)  # 120 MB
    after = memory.peak_of_this_process()
    assert after - before < 2 * 120
    assert after > block.nbytes / 1e6


def test_the_command_writes_rows_tables_and_a_picture(tmp_path: Path, monkeypatch, capsys):
    net = oes.models.skip(seed=0)
    numel = sum(p.numel() for p in net.parameters())
    mask, out, picture = tmp_path / "mask.safetensors", tmp_path / "growth.json", tmp_path / "growth.png"
    oes.Mask.from_flat(net, torch.arange(numel) % 2 == 0).save(mask)
    peaks = {PUBLISHED: 200.0, growth.OURS: 100.0}

    def bench(sizes, threads, cases, mask, **limits):
        # What is timed there has tests of its own.
        ms = {PUBLISHED: [30.0, 33.0, 36.0], growth.OURS: [3.0, 3.3, 4.0]}
        rows = [BenchRow(case, *sizes, *threads, "float32", mask.density, ms) for case in cases]
        return Bench({}, rows, {})

    monkeypatch.setattr(growth, "bench", bench)
    monkeypatch.setattr(growth, "peak_of", lambda case, way, path, size, steps: peaks[way])
    monkeypatch.setattr(growth, "MATRIX", 64)
    monkeypatch.setattr(growth, "COPY", 1024)
    words = ["growth", "--mask", str(mask), "--size", "32", "--threads", "1", "2"]
    words += ["--size-of-few-threads", "16", "--density", "0.5", "--density-size", "32"]
    words += ["--rounds", "3", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--picture", str(picture)])
    growth.main()
    found = json.loads(out.read_text())
    places = [(row["case"], row["size"], row["threads"], row["asked"]) for row in found["steps"]]
    first = [("training", 32, 2, None), ("search", 32, 2, None)]
    assert places == [*first, ("training", 32, 1, 0.5), ("training", 32, 2, 0.5)]
    drawn = found["steps"][3]
    assert drawn["ms"][growth.OURS] == {"10": 3.06, "50": 3.3, "90": 3.86}
    assert drawn["times faster"]["50"] == pytest.approx(10)
    assert drawn["density"] == pytest.approx(0.5, abs=0.01)
    assert drawn["GMAC/s"] == pytest.approx(1e3 * drawn["GMAC"] / drawn["ms"][growth.OURS]["50"], abs=0.01)
    assert found["memory"][0] == {"case": "training", "size": 32, "peak MB": peaks}
    assert picture.stat().st_size > 10_000
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = growth.tables()
    assert text.count("| search | 32 | 2 |") == 1
    assert f"| {100 * drawn['density']:.3g} % | 32 | 2 |" in text
    assert "| training | 32 | 200 | 100 |" in text
    assert "training, 32 px, 2 threads, 50 %" in capsys.readouterr().out
    # Again with another density: what is there is kept, and the new row has its place.
    monkeypatch.setattr(growth, "peak_of", lambda *_: pytest.fail("measured twice"))
    asked = []
    monkeypatch.setattr(
        growth, "bench", lambda **where: asked.append(where["mask"].density) or bench(**where)
    )
    words[words.index("0.5")] = "0.25"
    words.insert(words.index("0.25") + 1, "0.5")
    monkeypatch.setattr(sys, "argv", words)
    growth.main()
    again = json.loads(out.read_text())
    assert asked == [pytest.approx(0.25, abs=0.01)] * 2
    assert [row["asked"] for row in again["steps"]] == [None, None, 0.25, 0.5, 0.25, 0.5]
    assert [row for row in again["steps"] if row["asked"] != 0.25] == found["steps"]
    assert again["memory"] == found["memory"]
    # Asked for less, and stopped at the first row: nothing that is there is lost.
    stopped = ["growth", "--mask", str(mask), "--size", "64", "--threads", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", stopped)
    monkeypatch.setattr(growth, "bench", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        growth.main()
    assert json.loads(out.read_text()) == again
