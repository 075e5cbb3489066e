"""Sharpness against the exact maximum where there is a formula, and its parts everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import skip_unless_available, unchanged
from dense_derivatives import full_hessian, loss_of, tiny_problem
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.analysis import sharpness
from oes_fast.analysis.weights import probe


@pytest.fixture(scope="module")
def tiny():
    return tiny_problem()


def highest_rise(gradient: Tensor, curvature: Tensor, rho: float) -> float:
    """max g u + u H u / 2 over |u| <= rho, convex: (a - H) u = g with a above all eigenvalues."""
    values, vectors = torch.linalg.eigh(curvature)
    along = vectors.T @ gradient
    low, high = float(values[-1]), float(values[-1]) + float(gradient.norm()) / rho
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((along / (middle - values)).norm()) > rho else (low, middle)
    u = along / (high - values)
    return float(along @ u + 0.5 * values @ u**2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_it_is_the_maximum_of_a_quadratic_loss(rho, adaptive):
    generator = torch.Generator().manual_seed(0)
    net = nn.Conv2d(3, 2, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(net.weight.shape, generator=generator))
    mask = oes.Mask.from_flat(net, [True, True, False, True, True, True])
    z = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=generator)
    noisy = torch.rand(1, 2, 8, 8, dtype=torch.float64, generator=generator)
    loss, weights = loss_of(net, mask, z, noisy)
    gradient = torch.autograd.functional.jacobian(loss, weights)
    axes = torch.diag(weights.abs() if adaptive else torch.ones_like(weights))
    exact = highest_rise(axes @ gradient, axes @ full_hessian(net, mask, z, noisy) @ axes, rho)
    found = sharpness(net, mask, z, noisy, rho=rho, adaptive=adaptive, steps=300, backend="torch")
    assert found.largest == pytest.approx(exact, rel=1e-4)
    assert found.largest <= exact * (1 + 1e-9)
    assert (found.rho, found.adaptive) == (rho, adaptive)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_its_parts_are_those_of_the_definition(tiny, masked, adaptive):
    mask, rho = (tiny.mask if masked else None), 0.3
    loss, weights = loss_of(tiny.net, mask, tiny.z, tiny.noisy)
    axes = weights.abs() if adaptive else torch.ones_like(weights)
    middle = float(loss(weights))

    def rise(direction: Tensor) -> float:
        return float(loss(weights + axes * direction * (rho / direction.norm()))) - middle

    found = sharpness(
        tiny.net,
        mask,
        tiny.z,
        tiny.noisy,
        rho=rho,
        adaptive=adaptive,
        steps=10,
        probes=3,
        seed=2,
        backend="reference",
    )
    gradient = torch.autograd.functional.jacobian(loss, weights)
    rises = [rise(probe(2, i, weights.shape, weights)) for i in range(3)]
    assert found.loss == pytest.approx(middle, rel=1e-12)
    assert found.first_order == pytest.approx(rise(axes * gradient), rel=1e-9)
    assert found.average == pytest.approx(sum(rises) / 3, rel=1e-9)
    error = float(torch.tensor(rises, dtype=torch.float64).std()) / math.sqrt(3)
    assert found.average_error == pytest.approx(error, rel=1e-9)
    assert found.largest > found.first_order
    assert found.evaluations <= 16


def test_more_steps_never_find_less(tiny):
    def largest(steps):
        return sharpness(
            tiny.net, tiny.mask, tiny.z, tiny.noisy, steps=steps, backend="torch", verify=False
        ).largest

    rises = [largest(steps) for steps in (0, 1, 3, 10)]
    assert rises == sorted(rises)
    assert rises[0] > 0


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_backends_agree(tiny, backend):
    skip_unless_available(backend)
    with unchanged(tiny.net, tiny.z, tiny.noisy):
        found = sharpness(tiny.net, tiny.mask, tiny.z, tiny.noisy, backend=backend)
    wanted = sharpness(tiny.net, tiny.mask, tiny.z, tiny.noisy, backend="reference")
    for name in ("loss", "largest", "first_order", "average"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-7), name


def test_runs_repeat_bit_for_bit(tiny):
    def run(seed):
        return sharpness(tiny.net, tiny.mask, tiny.z, tiny.noisy, seed=seed, verify=False)

    first = run(1)
    torch.manual_seed(5)
    assert run(1) == first
    assert run(2).average != first.average


def test_a_minimum_rises_in_every_direction():
    """There is no gradient to follow."""
    net = nn.Conv2d(2, 1, 1, bias=False).double()
    z = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    noisy = net(z).detach()
    found = sharpness(net, None, z, noisy, rho=0.1, steps=100, backend="torch")
    exact = 0.5 * 0.1**2 * float(torch.linalg.eigvalsh(full_hessian(net, None, z, noisy))[-1])
    assert found.loss == pytest.approx(0, abs=1e-30)
    assert found.largest == pytest.approx(exact, rel=1e-4)
    nothing = sharpness(net, None, z, noisy, probes=0, steps=0, backend="torch", verify=False)
    assert math.isnan(nothing.average)
    assert math.isnan(nothing.average_error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0.0}, "rho: expected a finite number > 0"),
        ({"steps": -1}, "steps: expected an integer >= 0"),
        ({"probes": -1}, "probes: expected an integer >= 0"),
        ({"adaptive": 1}, "adaptive: expected True or False"),
        ({"backend": "fast"}, "backend: expected one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(tiny, change, message):
    with pytest.raises(oes.InputError, match=message):
        sharpness(tiny.net, tiny.mask, tiny.z, tiny.noisy, **change)
