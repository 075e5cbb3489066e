"""Steps of training and search of the published generator: over image sizes, densities and threads.

Each row has percentiles, multiply-accumulates and bytes a second as benchmarks.growth counts them, their
shares of a product of matrices and of a copy, and the times of the published way in the same rounds. At 5 %
and up to 512 x 512 the other peers of benchmarks.peers stand beside it; which of them is absent, and why, is
in the row.

pytest benchmarks/bench_steps.py -k "512 and training" --benchmark-json=steps.json
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.growth import ceilings, work
from benchmarks.peers import OURS, Peer, peers
from benchmarks.report import describe
from benchmarks.timer import fixture_time
from oes_fast.bench.steps import PUBLISHED, drawn_mask, search_steps, training_steps

SIZES = (128, 256, 512, 1024, 2048)
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
THREADS = (1, 2)
WITH_PEERS = 0.05, 512  # density, largest size
ROUNDS = 5

ceiling = functools.cache(ceilings)


def problem(size: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Network, input and image."""
    noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return oes.models.skip(seed=0), oes.noise_input(32, (size, size), seed=0), noisy


def report(benchmark: Any, found: Mapping[str, Peer], mask: oes.Mask | None, size: int, threads: int) -> None:
    """Time them in turn and note what the row says."""
    rivals = {name: peer.call for name, peer in found.items() if name != OURS}
    call = found[OURS].call
    times = fixture_time(
        benchmark, call, threads=threads, rivals=rivals, in_turn=True, rounds=ROUNDS, warmup=1
    )
    density = 1.0 if mask is None else mask.density
    describe(benchmark, image=[1, 3, size, size], input=[1, 32, size, size], density=round(density, 5))
    median = times.pop("ours")["median"]
    for name, taken in times.items():
        ms = taken["median"] / found[name].steps
        benchmark.extra_info[f"{name}, ms"] = round(ms, 3)
        benchmark.extra_info[f"times faster than {name}"] = round(ms / median, 2)
    for unit, amount in work(mask, size).items():
        rate = 1e3 * amount / median
        benchmark.extra_info[f"{unit}/s"] = round(rate, 2)
        benchmark.extra_info[f"{unit}/s, share of the ceiling"] = round(
            rate / ceiling(threads)[f"{unit}/s"], 3
        )


@pytest.fixture(autouse=True)
def threads_of(threads: int) -> Iterator[None]:
    """Plans and compiled steps are made with the threads that they are timed with."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("size", SIZES)
def test_training_step(benchmark: Any, size: int, density: float, threads: int) -> None:
    net, z, noisy = problem(size)
    mask = drawn_mask(net, density)
    if density == WITH_PEERS[0] and size <= WITH_PEERS[1]:
        found, absent = peers(net, mask, z, noisy)
        benchmark.extra_info["absent"] = absent
    else:
        steps = training_steps(net, mask, z, noisy, [OURS])
        found = {name: Peer(step) for name, step in steps.items()}
    report(benchmark, found, mask, size, threads)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", SIZES)
def test_search_step(benchmark: Any, size: int, threads: int) -> None:
    net, z, noisy = problem(size)
    found = {name: Peer(step) for name, step in search_steps(net, z, noisy, [OURS]).items()}
    assert found.keys() == {PUBLISHED, OURS}
    report(benchmark, found, None, size, threads)
