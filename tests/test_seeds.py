"""One seed serves for everything in a run, so what is drawn under it must not depend on each other."""

from __future__ import annotations

import math

import torch

import oes_fast as oes

SIDE = 128


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1]))


def test_image_noise_is_no_function_of_the_input() -> None:
    """torch makes normal numbers by Box-Muller from uniform ones: with one plain seed, those of z."""
    uniform = oes.noise_input(32, (SIDE, SIDE), seed=0).flatten()[: 3 * SIDE**2].view(-1, 16) * 10
    noise = (oes.add_noise(torch.full((1, 3, SIDE, SIDE), 0.5), 0.05, 0) - 0.5) / 0.05
    radius = (-2 * torch.log(1 - uniform[:, :8])).sqrt()
    angle = 2 * math.pi * uniform[:, 8:]
    predicted = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    assert correlation(predicted, noise) < 0.02


def test_weights_are_no_function_of_the_input() -> None:
    weight = oes.models.skip(seed=5).get_parameter("1.1.1.weight").detach()
    z = oes.noise_input(32, (SIDE, SIDE), seed=5).flatten()[: weight.numel()]
    assert correlation(weight, z) < 0.05


def test_seeds_differ() -> None:
    for draw in (
        lambda seed: oes.noise_input(1, (8, 8), seed=seed),
        lambda seed: oes.add_noise(torch.full((1, 1, 8, 8), 0.5), 0.1, seed),
    ):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))
        assert not torch.equal(draw(0), draw(2**64 - 1))
