"""Parameters that a network holds fixed: no training moves them, and its result holds them fixed too."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED
from torch.optim import LBFGS, AdamW

import oes_fast as oes
from oes_fast.flat import flatten, unflatten_

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")

BACKENDS = ("reference", "torch", "cpu", *EMULATED)
STEPS = 3
OPTIONS = {
    "adam": {"weight_decay": 0.1},
    "adamw": {"optimizer": lambda w: AdamW(w, lr=1e-2, weight_decay=0.5)},
    "lbfgs": {"optimizer": lambda w: LBFGS(w, max_iter=2)},
}


@pytest.fixture(scope="module")
def small():
    """Every third parameter fixed: weights and biases of convolutions, scales and shifts of batch norms."""
    problem = build_problem(size=(16, 20), density=0.7)
    for number, parameter in enumerate(problem.net.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    return problem


def flags(net):
    return [parameter.requires_grad for parameter in net.parameters()]


def trained(net):
    return torch.cat([torch.full((p.numel(),), p.requires_grad) for p in net.parameters()])


def check(problem, fit, kept):
    start, found, moved = flatten(problem.net) * kept, flatten(fit.net), trained(problem.net)
    assert torch.equal(found[~moved], start[~moved])
    assert not torch.equal(found[moved], start[moved])
    assert flags(fit.net) == flags(problem.net)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [*((b, k) for b in ("reference", "torch", "cpu") for k in OPTIONS), *((b, "adam") for b in EMULATED)],
)
def test_a_training_leaves_them(small, backend, kind):
    skip_unless_available(backend)
    before = flatten(small.net)
    options = {"steps": STEPS, "backend": backend, "verify": False, **OPTIONS[kind]}
    check(small, oes.train_sparse(small.net, small.mask, small.z, small.noisy, **options), small.mask.flat)
    check(small, oes.baselines.dense_dip(small.net, small.z, small.noisy, **options), True)
    assert torch.equal(flatten(small.net), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_langevin_dynamics_leave_them(small, backend):
    skip_unless_available(backend)
    options = {"steps": STEPS, "backend": backend, "verify": False, "burn_in": 0, "sample_every": 1}
    fit = oes.baselines.sgld(small.net, small.z, small.noisy, weight_decay=0.1, param_noise=2.0, **options)
    check(small, fit, True)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_it_is_the_training_of_plain_pytorch(small, backend):
    skip_unless_available(backend)
    net, kept = copy.deepcopy(small.net).train(), small.mask.flat
    unflatten_(net, flatten(net) * kept)
    sizes = [parameter.numel() for parameter in net.parameters()]
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = (net(small.z) - small.noisy).square().mean()
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        for parameter, part in zip(net.parameters(), kept.split(sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad *= part.view_as(parameter)
        adam.step()
    options = {"steps": STEPS, "record_every": 1, "backend": backend, "verify": False}
    fit = oes.train_sparse(small.net, small.mask, small.z, small.noisy, **options)
    assert fit.history.loss[:-1] == pytest.approx(losses, rel=1e-8)
    assert_close(fit.output, net(small.z).detach(), rtol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_iterative_pruning_leaves_what_it_keeps(small, backend):
    skip_unless_available(backend)
    options = {"densities": [0.6, 0.4], "steps": STEPS, "rewind_step": 2, "backend": backend}
    found = oes.pruning.imp_rounds(small.net, small.z, small.noisy, **options, verify=False)
    fixed = ~trained(small.net) & found.mask.flat
    assert torch.equal(flatten(found.net)[fixed], flatten(small.net)[fixed])
    assert flags(found.net) == flags(small.net)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_search_may_mask_them(small, backend):
    """They have logits that move like those of any other weight."""
    skip_unless_available(backend)
    options = {"density": 0.5, "steps": STEPS, "backend": backend, "verify": False}
    free = copy.deepcopy(small.net).requires_grad_(True)
    found, wanted = (
        oes.search_mask(net, small.z, small.noisy, **options).logits for net in (small.net, free)
    )
    assert torch.equal(found, wanted)


def test_a_network_of_nothing_else_is_trained(small):
    """All of them fixed is how networks come that were prepared for inference."""
    net = copy.deepcopy(small.net).requires_grad_(False)
    free = copy.deepcopy(small.net).requires_grad_(True)
    for backend in ("reference", "torch"):
        fixed, wanted = (
            oes.baselines.dense_dip(each, small.z, small.noisy, steps=2, backend=backend, verify=False)
            for each in (net, free)
        )
        assert torch.equal(flatten(fixed.net), flatten(wanted.net))
        assert not any(p.requires_grad for p in fixed.net.parameters())


def test_a_checkpoint_of_other_fixed_parameters_is_refused(small, tmp_path):
    options = {"steps": STEPS, "backend": "torch", "checkpoint": tmp_path / "checkpoint", "resume": True}
    oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    free = copy.deepcopy(small.net).requires_grad_(True)
    with pytest.raises(oes.CheckpointError, match=r"another network .*of them fixed"):
        oes.baselines.dense_dip(free, small.z, small.noisy, **options)
    assert oes.baselines.dense_dip(small.net, small.z, small.noisy, **options).steps == STEPS
