"""What is measured of an image may be flat, or leave all bounds: collapse and divergence in any unit."""

from __future__ import annotations

import functools

import pytest
import torch
from conftest import assert_close
from objectives import drawn, fourier, half
from torch import nn

import oes_fast as oes
from oes_fast.pipelines.objective import make_objective

pytestmark = pytest.mark.usefixtures("unverified")

pytest_plugins = ("objectives",)


@pytest.mark.parametrize(
    "forward", [half, fourier, lambda x: x.flatten()[::7], lambda x: (3 * x + 1).square()[0, 1]]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_flat_images_have_no_spread(small, forward, weighted):
    target = forward(small.noisy)
    weight = drawn(*target.shape) if weighted else None
    objective = make_objective(target, forward=forward, weight=weight)
    flat = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 16, 20)
    spread, expected = objective.spreads(flat)
    assert spread < 1e-3 * expected
    spread, expected = objective.spreads(small.noisy)
    assert_close(spread, expected)


def test_the_spread_of_known_pixels(small):
    """That of half the pixels, the others being flat or not, and nearly that by way of an operator."""
    known = (drawn(1, 1, 16, 20) > 0.5).double()
    noisy = known * small.noisy
    objective = make_objective(noisy, weight=known)
    spread, expected = objective.spreads(torch.where(known > 0, 0.5, small.noisy))
    assert spread < 1e-12
    channels = [noisy[0, c][known[0, 0] > 0].std(correction=0) for c in range(3)]
    assert_close(expected, torch.stack(channels).mean()[None])
    blind = known * torch.tensor([1.0, 0.0, 1.0]).double().view(1, 3, 1, 1)
    assert torch.isfinite(make_objective(noisy, weight=blind).spreads(noisy)[1])


def test_a_collapsed_run_says_so(small):
    net = nn.Sequential(nn.Conv2d(4, 3, 1)).double()
    with torch.no_grad():
        net[0].weight.zero_()
    with pytest.warns(
        oes.CollapsedRunWarning, match=r"flat \(standard deviation 0.0000 of its measurement, the noisy one"
    ):
        fit = oes.baselines.dense_dip(net, small.z, half(small.noisy), forward=half, steps=0)
    assert fit.collapsed

    def picky(image):
        if image.unique().numel() < 10:
            raise ValueError("flat")
        return half(image)

    fit = oes.train_sparse(small.net, small.mask, small.z, half(small.noisy), forward=picky, steps=1)
    assert not fit.collapsed


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_run_that_leaves_is_said_whatever_the_unit(small, scale):
    """Also where all losses are below those that count as equal for images in 0..1."""
    forward = lambda image: scale * half(image)  # noqa: E731
    fit = functools.partial(
        oes.baselines.dense_dip, small.net, small.z, forward(small.noisy), forward=forward, record_every=1
    )
    assert not fit(steps=20, lr=1e-2).diverged
    with pytest.warns(oes.DivergedRunWarning, match="has diverged"):
        assert fit(steps=20, lr=30.0).diverged
