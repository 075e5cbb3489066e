"""Images an hour and what a million of them cost."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import oes_fast as oes
from benchmarks import table_text, throughput


def test_rows_and_costs(monkeypatch, tmp_path, capsys):
    net = oes.models.skip(seed=0)
    numel = sum(p.numel() for p in net.parameters())
    keep = torch.rand(numel, generator=torch.Generator().manual_seed(0)) < 0.02
    mask, out = tmp_path / "mask.safetensors", tmp_path / "throughput.json"
    oes.Mask.from_flat(net, keep).save(mask)
    monkeypatch.setattr(throughput, "IDLE", 100.0)
    before = {"bound, s": 0.5, "verified, s": 4.0, "reckoned, MB": 1.0, "measured, MB": 1.0}
    monkeypatch.setattr(throughput, "before_the_steps", lambda *_: before)
    options = [
        "--size",
        "32",
        "--case",
        "1x1",
        "2x1",
        "--steps",
        "2",
        "--rounds",
        "1",
        "--cores",
        "2",
        "--image-steps",
        "100",
    ]
    monkeypatch.setattr(sys, "argv", ["throughput", "--mask", str(mask), "--json", str(out), *options])
    throughput.main()
    found = json.loads(out.read_text())
    one, two = found["rows"]
    for row in (one, two):
        seconds = row["ms a step and image"]["median"] / 10 + 0.5 / row["at once"]
        assert row["images an hour"] == pytest.approx(3600 / seconds)
        assert row["core seconds an image"] == pytest.approx(2 * seconds)
    (cpu,) = found["a million photographs"]
    assert cpu["core hours"] == pytest.approx(
        1e6 * min(row["core seconds an image"] for row in (one, two)) / 3600
    )
    gpus = {(row["precision"], row["networks"], row["backend"]): row for row in throughput.gpu_costs(found)}
    assert all("measured" in row["on"] for row in gpus.values())
    eight = table_text.load("batches-h100")["rows"][0]["ms a step and network"]["cuda, 8"]["median"]
    assert gpus["float32", 8, "cuda"]["GPU hours"] == pytest.approx(1e6 * 100 * eight / 3.6e6)
    assert gpus["float32", 8, "cuda"]["dollars"] == pytest.approx(3 * gpus["float32", 8, "cuda"]["GPU hours"])
    assert gpus["float32", 1, "triton"]["GPU hours"] < gpus["float32", 1, "cuda"]["GPU hours"]
    assert "32 px, 2 x 1" in capsys.readouterr().out
    monkeypatch.setattr(throughput, "IDLE", 0.0)  # others are at work
    throughput.main()
    busy = json.loads(out.read_text())
    assert not any("images an hour" in row for row in busy["rows"])
    assert "CPU, measured" not in {row["on"] for row in busy["a million photographs"]}


def test_threads_are_what_they_were():
    before = torch.get_num_threads()
    made = []
    took, used, others = throughput.at_once([lambda: made.append(0)] * 2, 1, 3)
    assert len(made) == 2 * (1 + 3)
    assert took > 0
    assert min(used, others) >= 0
    assert torch.get_num_threads() == before
