"""Weights in the order of a Triton chain's lists, and gradients back, against arithmetic on indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_backends import device_of, require
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from oes_fast.kernels.chain.flat_weights import FlatWeights

pytestmark = pytest.mark.device

BACKEND, WEIGHTS, NETWORKS = "triton", 2000, 2


def single(rng, taps, group, first, density=0.7):
    """Lists whose values are one weight each, from ``first`` on."""
    weights = first + rng.permutation(taps * group).reshape(taps, group, 1)
    return np.where(rng.random(weights.shape) < density, weights, -1)


def merged(rng, taps, group, first, weights):
    """Lists whose values are the sum of up to four weights, each of which is in four of them at most."""
    places = [np.repeat(np.arange(first, first + weights), 4), np.full(4 * taps * group - 4 * weights, -1)]
    return rng.permutation(np.concatenate(places)).reshape(taps, group, 4)


def values(index: np.ndarray, weights: Tensor) -> Tensor:
    """The sums of weights, [networks, taps, group]."""
    with_zero = torch.cat([weights, torch.zeros_like(weights[:, :1])], 1)
    return with_zero[:, torch.from_numpy(index).to(weights.device)].sum(-1)


@pytest.fixture
def rng():
    """Of the lists."""
    require(BACKEND)
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triton_packs_weights(rng, dtype):
    device = device_of(BACKEND)
    # In tiles, and not: of four taps and a power of two of outputs; more than a program takes.
    lists = [
        (single(rng, 8, 16, 0), 1.0),
        (merged(rng, 12, 32, 300, 250), 0.25),
        (single(rng, 7, 8, 1000), 0.25),
        (single(rng, 8, 16, 1060, density=0.1), 0.25),  # those kept, with their places
        (merged(rng, 5, 3, 1200, 10), 1.0),
        (single(rng, 180, 4, 1210), 2.0),
        (np.full((4, 8, 1), -1), 1.0),
        (np.zeros((0, 16, 1), np.int64), 1.0),
    ]
    flat = FlatWeights(WEIGHTS, NETWORKS, device, dtype)
    begins = [flat.add_packed(index, scale) for index, scale in lists]
    flat.finish()
    weights = torch.randn(NETWORKS, WEIGHTS, generator=torch.Generator().manual_seed(0), dtype=dtype).to(
        device
    )
    for _ in range(2):  # a second time it is the same
        flat.pack(weights)
    for begin, (index, scale) in zip(begins, lists, strict=True):
        taps, group, _ = index.shape
        assert begin % 32 == 0
        packed = flat.packed[:, begin : begin + taps * group].reshape(NETWORKS, taps, group)
        torch.testing.assert_close(packed, scale * values(index, weights))


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_triton_unpacks_weight_grads(rng, shared):
    device = device_of(BACKEND)
    lists = [
        (single(rng, 8, 16, 0), 1.0, 1),
        (merged(rng, 12, 32, 300, 250), 0.25, 3),
        (np.full((4, 8, 1), -1), 1.0, 2),  # a layer of which nothing is kept
        (single(rng, 180, 4, 100 if shared else 1210), 2.0, 2),
        (merged(rng, 5, 3, 1000, 10), 1.0, 13),
        (single(rng, 7, 8, 1100), 0.25, 21),
        (np.zeros((0, 16, 1), np.int64), 1.0, 1),
    ]
    flat = FlatWeights(WEIGHTS, NETWORKS, device, torch.float64)
    begins = [flat.add_grads(index, scale, chunks) for index, scale, chunks in lists]
    flat.finish()
    generator = torch.Generator().manual_seed(0)
    flat.partials.fill_(torch.nan)
    expected = torch.randn(NETWORKS, WEIGHTS, generator=generator, dtype=torch.float64).to(device)
    found = expected.clone()
    for begin, (index, scale, chunks) in zip(begins, lists, strict=True):
        taps, group, width = index.shape
        index = torch.from_numpy(index).to(device)
        kept = (index >= 0).any(-1).expand(NETWORKS, chunks, taps, group)
        # What no weight has part in is not read.
        partials = torch.randn(kept.shape, generator=generator, dtype=torch.float64).to(device)
        partials = torch.where(kept, partials, torch.nan)
        flat.partials[:, begin : begin + chunks * taps * group] = partials.reshape(NETWORKS, -1)
        for k in range(width):
            there = index[..., k] >= 0
            sums = scale * partials.sum(1)[:, there]
            expected.index_add_(1, index[..., k][there], sums)
    flat.unpack(found)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_triton_chains_without_weights(rng):
    flat = FlatWeights(0, 1, device_of(BACKEND), torch.float32)
    assert flat.add_grads(np.zeros((0, 16, 1), np.int64), 1.0, 1) == 0
    flat.finish()
    empty = torch.zeros(1, 0, device=device_of(BACKEND))
    flat.pack(empty)
    flat.unpack(empty)
    assert flat.packed.shape == flat.partials.shape == (1, 0)
