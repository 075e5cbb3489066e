"""The fixed input of the generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import unchanged

import oes_fast as oes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_between_0_and_a_tenth(dtype):
    z = oes.noise_input(32, (60, 50), seed=0, dtype=dtype)
    assert z.shape == (1, 32, 60, 50)
    assert z.dtype == dtype
    assert z.min() >= 0
    assert z.max() <= 0.1
    counts = torch.histc(z, bins=10, min=0, max=0.1)
    expected = z.numel() / 10
    assert (counts - expected).abs().max() < 5 * expected**0.5
    assert z.unique().numel() > 0.9 * min(z.numel(), 2**20)


def test_seed():
    with unchanged():
        first, again, other = (oes.noise_input(3, (4, 5), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert oes.noise_input(1, (2, 2), seed=2**64 - 1).shape == (1, 1, 2, 2)


def test_sizes_of_every_integer_type():
    expected = oes.noise_input(2, (4, 6))
    for size in ([4, 6], torch.Size((4, 6)), np.array([4, 6]), tuple(np.uint8([4, 6]))):
        assert torch.equal(oes.noise_input(2, size), expected)


def test_the_default_device_of_the_caller_does_not_matter():
    expected = oes.noise_input(2, (4, 6))
    with torch.device("meta"):
        z = oes.noise_input(2, (4, 6), device="cpu")
    assert torch.equal(z, expected)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"channels": 0}, "channels"),
        ({"channels": 2.0}, "channels"),
        ({"size": (4,)}, "size"),
        ({"size": 4}, "size"),
        ({"size": torch.tensor(4)}, "size"),
        ({"channels": 10**30}, "channels"),
        ({"size": (0, 4)}, "size"),
        ({"size": (4, -1)}, "size"),
        ({"size": (4.5, 4)}, "size"),
        ({"size": ("4", 4)}, "size"),
        ({"size": ("four", 4)}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        oes.noise_input(**({"channels": 2, "size": (4, 4)} | arguments))
