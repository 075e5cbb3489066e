"""Norms of the Jacobian against the whole of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import unchanged
from dense_derivatives import full_jacobian, tiny_problem
from torch import nn

import oes_fast as oes
from oes_fast.analysis import jacobian_norm
from oes_fast.analysis.weights import probe


@pytest.fixture(scope="module")
def tiny():
    return tiny_problem()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_norms_are_those_of_the_whole_jacobian(tiny, masked, backend):
    mask = tiny.mask if masked else None
    full = full_jacobian(tiny.net, mask, tiny.z)
    found = jacobian_norm(
        tiny.net, mask, tiny.z, probes=5, iterations=3000, tolerance=1e-9, backend=backend, verify=False
    )
    assert (found.pixels, found.weights) == full.shape
    assert found.spectral == pytest.approx(float(torch.linalg.svdvals(full)[0]), rel=1e-9)
    squares = [
        float((full.T @ probe(0, i, tiny.noisy.shape, tiny.noisy).flatten()).square().sum()) for i in range(5)
    ]
    mean = torch.tensor(squares, dtype=torch.float64)
    assert found.frobenius == pytest.approx(math.sqrt(mean.mean()), rel=1e-9)
    error = float(mean.std() / math.sqrt(5)) / (2 * found.frobenius)
    assert found.frobenius_error == pytest.approx(error, rel=1e-9)
    assert found.stable_rank == pytest.approx((found.frobenius / found.spectral) ** 2)


def test_the_estimate_comes_to_the_frobenius_norm(tiny):
    exact = float(full_jacobian(tiny.net, tiny.mask, tiny.z).norm())
    found = jacobian_norm(tiny.net, tiny.mask, tiny.z, probes=200, iterations=0, verify=False)
    assert abs(found.frobenius - exact) < 4 * found.frobenius_error < 0.2 * exact
    assert math.isnan(found.spectral)
    assert (found.iterations, found.probes) == (0, 200)


def test_a_squared_singular_value_lies_within_the_residual(tiny):
    squares = torch.linalg.svdvals(full_jacobian(tiny.net, tiny.mask, tiny.z)).square()
    for iterations in (1, 3, 10):
        found = jacobian_norm(
            tiny.net, tiny.mask, tiny.z, probes=1, iterations=iterations, tolerance=0.0, verify=False
        )
        square = found.spectral**2
        assert float((squares - square).abs().min()) <= found.residual * square * (1 + 1e-9)
        assert square <= float(squares[0]) * (1 + 1e-9)
        assert math.isnan(found.frobenius_error)


def test_the_iteration_stops_at_the_tolerance(tiny):
    loose = jacobian_norm(tiny.net, tiny.mask, tiny.z, probes=1, tolerance=0.5, verify=False)
    tight = jacobian_norm(
        tiny.net, tiny.mask, tiny.z, probes=1, tolerance=1e-6, iterations=1000, verify=False
    )
    assert loose.residual <= 0.5
    assert loose.iterations < tight.iterations < 1000


def test_runs_repeat_bit_for_bit_and_leave_everything_alone(tiny):
    def run(seed):
        return jacobian_norm(
            tiny.net, tiny.mask, tiny.z, probes=3, iterations=5, tolerance=0.0, seed=seed, verify=False
        )

    with unchanged(tiny.net, tiny.z):
        first = run(1)
    torch.manual_seed(5)
    assert run(1) == first
    assert run(2).frobenius != first.frobenius


def test_weights_that_change_nothing_have_no_jacobian(tiny):
    """A bias in front of a batch norm, alone."""
    names = [name for name, _ in tiny.net.named_parameters()]
    masks = {name: torch.full(p.shape, name == names[1]) for name, p in tiny.net.named_parameters()}
    mask = oes.Mask.from_dict(tiny.net, masks)
    found = jacobian_norm(tiny.net, mask, tiny.z, probes=2, verify=False)
    assert (found.frobenius, found.frobenius_error, found.spectral, found.weights) == (0.0, 0.0, 0.0, 2)
    assert math.isnan(found.stable_rank)


def test_networks_in_float32_and_in_evaluation_mode_are_seen_as_in_training(tiny):
    exact = jacobian_norm(tiny.net, tiny.mask, tiny.z, probes=2, iterations=5, verify=False)
    net = tiny_problem().net.float().eval()
    found = jacobian_norm(net, tiny.mask, tiny.z.float(), probes=2, iterations=5)
    assert found.frobenius == pytest.approx(exact.frobenius, rel=1e-4)
    assert found.spectral == pytest.approx(exact.spectral, rel=1e-4)
    assert not net.training


def test_signs_are_of_a_counter_and_fair():
    like = torch.zeros(1, dtype=torch.float32)
    signs = probe(3, 7, torch.Size([20_000]), like)
    assert signs.dtype == torch.float32
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.03
    assert torch.equal(signs[:100].double(), probe(3, 7, torch.Size([100]), like.double()))
    assert not torch.equal(signs, probe(3, 8, torch.Size([20_000]), like))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "cpu"}, "backend: expected one of torch, reference"),
        ({"probes": 0}, "probes: expected an integer >= 1"),
        ({"iterations": -1}, "iterations: expected an integer >= 0"),
        ({"seed": -1}, "seed: expected an integer >= 0"),
        ({"tolerance": math.nan}, "tolerance: expected a finite number"),
        ({"verify": 1}, "verify: expected True or False"),
        ({"mask": "mask"}, "mask: expected an oes_fast.Mask or None"),
        ({"z": torch.zeros(4, 12, 12, dtype=torch.float64)}, "z: expected 4 dimensions"),
        ({"z": torch.full((1, 4, 12, 12), math.nan, dtype=torch.float64)}, "z: expected finite values"),
        ({"net": nn.Identity()}, "net: expected a network with parameters"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(tiny, change, message):
    arguments = {"net": tiny.net, "mask": tiny.mask, "z": tiny.z} | change
    with pytest.raises(oes.InputError, match=message):
        jacobian_norm(**arguments)


def test_masks_that_do_not_fit_are_refused(tiny):
    nothing = oes.Mask.from_flat(tiny.net, torch.zeros(tiny.mask.flat.numel(), dtype=torch.bool))
    with pytest.raises(oes.InputError, match="mask: expected one that keeps a weight"):
        jacobian_norm(tiny.net, nothing, tiny.z)
    with pytest.raises(oes.MaskMismatchError, match="made for the network"):
        jacobian_norm(nn.Conv2d(4, 1, 1).double(), tiny.mask, tiny.z)
