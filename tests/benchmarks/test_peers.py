"""Other ways to train the network, beside ours in one run."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from optional_packages import deepinv

import oes_fast as oes
from benchmarks import bench_steps, peers, report, table_text
from oes_fast.bench import steps as bench
from oes_fast.bench.steps import drawn_mask


def problem():
    generator = torch.Generator().manual_seed(0)
    net = oes.models.skip(4, 3, num_channels_down=(8, 8), seed=0)
    return net, drawn_mask(net), torch.rand(1, 4, 32, 32, generator=generator), torch.rand(1, 3, 32, 32)


@pytest.fixture
def without_others(monkeypatch):
    """No compiler, no SparseProp, no deepinv."""

    def refuse(*arguments):
        raise RuntimeError("no compiler here in /usr/local/bin\nmore; and more")

    monkeypatch.setattr(peers, "_compiled", refuse)
    monkeypatch.setitem(sys.modules, "sparseprop.modules", None)
    monkeypatch.setitem(sys.modules, "deepinv", None)


def test_a_peer_that_cannot_be_had_is_absent_with_its_reason(without_others):
    found, absent = peers.peers(*problem())
    assert list(found) == ["auto", "published"]
    assert absent["compiled"] == "no compiler here in bin"
    assert absent["sparseprop"].startswith("sparseprop: expected the package of that name")
    assert "deepinv" in absent["deepinv"]


def test_the_loop_of_deepinv_is_timed_by_step():
    deepinv()
    net, _, z, noisy = problem()
    before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    peer = peers._deepinv(net, z, noisy)
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert peer.call().shape == noisy.shape
    times = peers.measure({"deepinv": peer, "one": peers.Peer(peer.call)}, rounds=2)
    assert times["deepinv"]["min"] < times["one"]["min"] / 5


def test_the_command_writes_rows_and_what_is_absent(without_others, monkeypatch, tmp_path):
    net, mask, *_ = problem()
    monkeypatch.setattr(peers.oes.models, "skip", lambda seed: net)
    monkeypatch.setattr(peers.oes, "noise_input", lambda channels, size, seed: torch.rand(1, 4, *size))
    mask.save(tmp_path / "mask.safetensors")
    words = ["peers", "--mask", str(tmp_path / "mask.safetensors"), "--size", "32", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--rounds", "2", "--json", str(tmp_path / "peers.json")])
    peers.main()
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    text = peers.tables()
    assert "| pixels | threads | oes_fast, ms | published code, ms |" in text
    assert "| 32 | 1 | " in text
    assert "Not measured: published code, torch.compile, no compiler here in bin." in text


class Benchmark:
    """What the fixture of pytest-benchmark is asked for."""

    def __init__(self):
        self.extra_info = {}
        self.stats = types.SimpleNamespace(stats=None)

    def pedantic(self, call, *, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            if setup is not None:
                setup()
            call()
        data = [0.001 * n for n in range(1, rounds + 1)]
        found = {"min": min(data), "median": float(np.median(data)), "max": max(data), "data": data}
        self.stats.stats = types.SimpleNamespace(**found)


def test_rows_say_percentiles_rates_and_shares(monkeypatch):
    net, mask, z, noisy = problem()
    monkeypatch.setattr(bench_steps, "problem", lambda size: (net, z, noisy))
    monkeypatch.setattr(bench_steps, "work", lambda mask, size: {"GMAC": 0.3, "GB": 0.06})
    monkeypatch.setattr(bench_steps, "ceiling", lambda threads: {"GMAC/s": 1000.0, "GB/s": 40.0})
    monkeypatch.setattr(bench_steps, "drawn_mask", lambda net, density: mask)
    before = torch.get_num_threads()
    for test in (bench_steps.test_training_step, bench_steps.test_search_step):
        row = Benchmark()
        options = {"density": 0.1} if test is bench_steps.test_training_step else {}
        test(row, size=32, threads=before, **options)
        info = row.extra_info
        assert info["50 % of rounds, ms"] == 3.0
        assert info["10 % of rounds, ms"] == pytest.approx(1.4)
        assert info["GMAC/s"] == pytest.approx(100.0)
        assert info["GMAC/s, share of the ceiling"] == pytest.approx(0.1)
        assert info["GB/s, share of the ceiling"] == pytest.approx(0.5)
        assert info["published, ms"] > 0
        assert info["environment"]["torch"] == torch.__version__
        assert info["threads"] == before
    assert report.PERCENTILES == (10, 50, 90)


def test_a_drawn_mask_of_half_a_percent_leaves_an_image():
    net = oes.models.skip(seed=0)
    mask = bench.drawn_mask(net, 0.005)
    assert mask.density == pytest.approx(0.005, rel=0.05)
    image = oes.sparsify(net, mask, verify=False)(oes.noise_input(32, (64, 64), seed=0))
    assert float(image.detach().std()) > 0.01
