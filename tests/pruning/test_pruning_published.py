"""published=True: the masks of the published code, described by ranks, in float64 on the dense network.

Its nine ways to prune take the share to prune, here 1 - density. Five of them keep it.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.EmptyLayerWarning")
DENSITY = 0.3  # to prune: 70 %
SHARE = 1 - DENSITY


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def ranks(scores: Tensor) -> Tensor:
    """0 for the highest."""
    return scores.argsort(descending=True).argsort()


def pieces(net: nn.Module, scope: str) -> list[Tensor]:
    places = torch.arange(FlatLayout.of(net).numel)
    return [places] if scope == "global" else list(places.split(FlatLayout.of(net).sizes))


def derivatives(net: nn.Module, z: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """(g, derivative of sum(g * w)) of the loss in training mode."""
    net = copy.deepcopy(net).train()
    weights = list(net.parameters())
    g = torch.autograd.grad(((net(z) - noisy) ** 2).mean(), weights, create_graph=True)
    product = torch.autograd.grad(sum((a * w).sum() for a, w in zip(g, weights, strict=True)), weights)
    return tuple(torch.cat([t.detach().flatten() for t in each]) for each in (g, product))


def kept_by_share_to_prune(net: nn.Module, scores: Tensor, scope: str) -> Tensor:
    """All that lies above the int(size * share)-th highest: one less than that."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for places in pieces(net, scope):
        kept[places] = ranks(scores[places]) < int(len(places) * SHARE) - 1
    return kept


def assert_same(net: nn.Module, mask: oes.Mask, kept: Tensor, g: Tensor) -> None:
    """But for biases before a batch norm: their gradient is rounding, and so is their order."""
    for places in pieces(net, "tensor"):
        if float(g[places].abs().max()) > 1e-12:
            assert torch.equal(mask.flat[places], kept[places])


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_snip_and_synflow_keep_the_share_to_prune(problem, scope):
    net, _, z, noisy, _ = problem
    g, _ = derivatives(net, z, noisy)
    mask = oes.pruning.snip(net, z, noisy, density=DENSITY, scope=scope, published=True, backend="reference")
    assert_same(net, mask, kept_by_share_to_prune(net, g.abs(), scope), g)
    expected = int(g.numel() * SHARE) - 1
    assert mask.kept == expected if scope == "global" else mask.kept < expected
    assert mask.settings == {
        "method": "snip", "density": DENSITY, "scope": scope, "small": "score", "seed": 0, "published": True,
    }  # fmt: skip

    twin = copy.deepcopy(net).train()
    twin(z).sum().backward()
    g = torch.cat([p.grad.flatten() for p in twin.parameters()])
    mask = oes.pruning.synflow(net, z, density=DENSITY, scope=scope, published=True, backend="reference")
    assert_same(net, mask, kept_by_share_to_prune(net, g.abs(), scope), g)


def test_grasp(problem):
    net, _, z, noisy, _ = problem
    g, product = derivatives(net, z, noisy)
    mask = oes.pruning.grasp(net, z, noisy, density=DENSITY, published=True, backend="reference")
    assert_same(net, mask, ranks(product) >= int(g.numel() * SHARE) - 1, g)
    assert mask.density == pytest.approx(DENSITY, abs=2 / g.numel())  # this one keeps what it should
    mask = oes.pruning.grasp(
        net, z, noisy, density=DENSITY, scope="tensor", published=True, backend="reference"
    )
    score = g.abs() / (product.abs() + 1e-10)
    assert_same(net, mask, kept_by_share_to_prune(net, score, "tensor"), g)


def test_the_rewritten_network_gives_the_same(problem):
    net, _, z, noisy, _ = problem
    g, _ = derivatives(net, z, noisy)
    for method in (oes.pruning.snip, oes.pruning.grasp, oes.pruning.synflow):
        options = {"density": 0.5, "published": True, "verify": False}
        dense = method(net, z, noisy, backend="reference", **options)
        assert_same(net, method(net, z, noisy, **options), dense.flat, g)


def test_magnitude_and_random_take_zeros_for_pruned(problem):
    net = problem.net
    w = flat(net)
    alive = w != 0
    keep = int(alive.sum()) - math.ceil(int(alive.sum()) * SHARE)
    mask = oes.pruning.magnitude(net, density=DENSITY, published=True)
    assert mask.kept == keep < round(DENSITY * w.numel())
    assert torch.equal(mask.flat, ranks(w.abs()) < keep)

    masks = [oes.pruning.random(net, density=DENSITY, seed=s, published=True).flat for s in range(30)]
    assert {int(each.sum()) for each in masks} == {keep}
    often = torch.stack(masks).double().mean(0)
    assert float(often[~alive].max()) == 0.0
    assert float(often[alive].std()) < 0.12  # of 30 draws of probability 0.3: 0.084
    local = oes.pruning.random(net, density=DENSITY, scope="tensor", published=True)
    for places in pieces(net, "tensor"):
        count = int(alive[places].sum())
        assert int(local.flat[places].sum()) == count - math.ceil(count * SHARE)


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("magnitude", {"scope": "tensor"}, "scope: expected 'global', as the published code has them"),
        (
            "snip",
            {"scope": "erdos_renyi_kernel"},
            "scope: expected 'global' or 'tensor', as the published code",
        ),
        ("random", {"density": 2.0}, "density: expected a finite number"),
        ("snip", {"density": 1.0}, "density: expected a share to prune, 1 - density, of one of"),
        ("synflow", {"published": 1}, "published: expected True or False, got 1"),
        ("grasp", {"density": 0.9, "scope": "tensor"}, "density: expected a share to prune"),
    ],
)
def test_refusals(problem, method, change, said):
    arguments = {"density": DENSITY, "published": True} | change
    with pytest.raises(oes.InputError, match=said):
        oes.pruning.METHODS[method](problem.net, problem.z, problem.noisy, **arguments)
