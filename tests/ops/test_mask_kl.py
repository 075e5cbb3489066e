"""The sparsity term against torch.distributions and its derivative against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

import oes_fast as oes
from oes_fast.functional import mask_kl
from oes_fast.reference import mask_kl_backward

DENSITIES = [0.001, 0.05, 0.5, 0.99]


def draw(*shape, dtype=torch.float64, seed=0):
    return 3 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("density", DENSITIES)
def test_is_the_divergence_of_bernoullis(density):
    logits = draw(1000)
    expected = kl_divergence(Bernoulli(logits=logits), Bernoulli(torch.tensor(density).double())).sum()
    assert mask_kl(logits, density=density) == pytest.approx(float(expected), rel=1e-4)  # the published eps
    p = 1 / (1 + torch.exp(-logits))
    terms = p * torch.log((p + 1e-6) / density) + (1 - p) * torch.log((1 - p + 1e-6) / (1 - density))
    assert mask_kl(logits, density=density) == pytest.approx(float(terms.sum()), rel=1e-12)


@pytest.mark.parametrize("density", DENSITIES)
def test_is_zero_at_the_density_and_grows_away_from_it(density):
    middle = math.log(density / (1 - density))
    values = [float(mask_kl(torch.tensor([middle + d]).double(), density=density)) for d in (-2, -1, 0, 1, 2)]
    assert values[2] == pytest.approx(0, abs=1e-5)
    assert values[0] > values[1] > values[2] < values[3] < values[4]


@pytest.mark.parametrize("density", DENSITIES)
def test_derivative(density):
    logits = draw(50).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mask_kl(s, density=density), (logits,))
    (expected,) = torch.autograd.grad(mask_kl(logits, density=density), logits)
    torch.testing.assert_close(mask_kl_backward(logits.detach(), density=density), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_finite(dtype):
    logits = torch.tensor([-1e30, -1e3, -50, 0, 50, 1e3, 1e30], dtype=dtype).requires_grad_()
    value = mask_kl(logits, density=0.05)
    value.backward()
    ends = -3 * math.log(0.95) - 3 * math.log(0.05)
    at_zero = 0.5 * math.log(0.5 / 0.05) + 0.5 * math.log(0.5 / 0.95)
    assert float(value.detach()) == pytest.approx(ends + at_zero, rel=1e-5)
    backward = mask_kl_backward(logits.detach(), density=0.05)
    for gradient in (logits.grad, backward):
        assert torch.isfinite(gradient).all()
        assert gradient[3] == pytest.approx(0.25 * math.log(19), rel=1e-5)


def test_float32_is_close_to_float64():
    logits = draw(100_000)
    single = mask_kl(logits.float(), density=0.05)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(float(mask_kl(logits, density=0.05)), rel=1e-6)
    torch.testing.assert_close(
        mask_kl_backward(logits.float(), density=0.05).double(),
        mask_kl_backward(logits, density=0.05),
        rtol=1e-5,
        atol=1e-7,
    )


def test_strides_of_memory_and_no_logits():
    logits = draw(64)
    assert mask_kl(logits[::2], density=0.1) == mask_kl(logits[::2].clone(), density=0.1)
    expanded = logits[:1].expand(8)
    assert float(mask_kl(expanded, density=0.1)) == pytest.approx(8 * float(mask_kl(logits[:1], density=0.1)))
    assert mask_kl(torch.zeros(0), density=0.1) == 0


@pytest.mark.parametrize(
    ("name", "logits", "density"),
    [
        ("logits", torch.zeros(2, 2, 2), 0.1),
        ("logits", torch.zeros(1, 4), 0.1),
        ("logits", torch.zeros(2).int(), 0.1),
        ("logits", [0.0], 0.1),
        ("density", torch.zeros(2), 0.0),
        ("density", torch.zeros(2), 1.0),
        ("density", torch.zeros(2), torch.nan),
        ("density", torch.zeros(2), True),
    ],
)
def test_bad_arguments_are_named(name, logits, density):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        mask_kl(logits, density=density)
