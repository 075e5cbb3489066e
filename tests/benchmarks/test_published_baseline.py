"""The baseline of the speed ratios computes what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oes_fast.bench.published import PublishedSearch, PublishedTraining, relaxed_mask
from oes_fast.reference.gumbel_mask import relaxed_mask as reference_relaxed_mask
from oes_fast.reference.mask_kl import mask_kl


def make_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(6, 3, 1), nn.Sigmoid()),
        ).to(dtype)


def make_data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.rand(1, 4, 16, 16, generator=generator, dtype=dtype) / 10
    return z, torch.rand(1, 3, 16, 16, generator=generator, dtype=dtype)


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("logit", [-3.0, 0.0, 1.5])
def test_the_gumbel_softmax_has_the_distribution_of_the_reference(logit):
    n = 200_000
    s = torch.full((n,), logit, dtype=torch.float64)
    expected = reference_relaxed_mask(s, seed=0, step=0, temperature=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        levels = torch.tensor([1.0, 0.0], dtype=torch.float64)
        found = relaxed_mask(torch.sigmoid(s)[:, None], levels, 0.2)
    assert found.shape == (n,)
    error = (found.var() / n + expected.var() / n).sqrt()
    assert abs(found.mean() - expected.mean()) < 4 * error
    quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    assert torch.allclose(found.quantile(quantiles), expected.quantile(quantiles), atol=0.02)


@pytest.mark.parametrize("probability", [0.0, 1.0, 1e-30])
def test_certain_weights_give_no_nan(probability):
    p = torch.full((1000, 1), probability, requires_grad=True)
    mask = relaxed_mask(p, torch.tensor([1.0, 0.0]), 0.2)
    mask.sum().backward()
    assert torch.isfinite(mask).all()
    assert torch.isfinite(p.grad).all()


def test_the_search_leaves_the_network_alone_and_lowers_the_loss():
    net, (z, noisy) = make_net(), make_data()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    search = PublishedSearch(net, z, noisy, kl=1e-4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        losses = [float(search.step()) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert search.logits.shape == (1, sum(p.numel() for p in net.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_the_search_minimises_the_kl_of_the_reference():
    net, (z, noisy) = make_net(), make_data()
    search = PublishedSearch(net, z, noisy, density=0.1, kl=1.0)
    with torch.no_grad():
        search.logits.copy_(torch.linspace(-6, 6, search.logits.numel()))
    value = mask_kl(search.logits.detach().flatten(), density=0.1)
    assert torch.isclose(search._divergence(), value, rtol=1e-9)
    with torch.no_grad():  # from both sides of the prior, whose logit is -2.2, in as few steps as Adam takes
        search.logits.copy_(torch.linspace(-3.7, -0.7, search.logits.numel()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(300):
            search.step()
    # With this weight the KL term alone decides: every probability goes to the prior.
    assert torch.allclose(torch.sigmoid(search.logits), torch.tensor(0.1, dtype=torch.float64), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_training_equals_a_plain_loop(dtype):
    net, (z, noisy) = make_net(dtype), make_data(dtype)
    mask = torch.rand(flat(net).numel(), generator=torch.Generator().manual_seed(2)) < 0.5
    training = PublishedTraining(net, mask, z, noisy)

    # Kingma and Ba's algorithm 1 on one flat vector, the mask applied to weights and gradient.
    w = (flat(net) * mask).requires_grad_()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    layout = [(name, p.shape) for name, p in net.named_parameters()]
    for t in range(1, 31):
        pieces = w.split([shape.numel() for _, shape in layout])
        named = {name: piece.view(shape) for (name, shape), piece in zip(layout, pieces, strict=True)}
        loss = ((torch.func.functional_call(net, named, (z,)) - noisy) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, w)
        with torch.no_grad():
            gradient = gradient * mask
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            w -= 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        found = training.step()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        assert torch.isclose(found, loss.detach(), rtol=tolerance)
        if dtype == torch.float64:
            assert torch.allclose(flat(training.net), w.detach(), rtol=1e-7, atol=1e-9)


def test_the_training_never_moves_a_masked_weight():
    net, (z, noisy) = make_net(), make_data()
    mask = torch.rand(flat(net).numel(), generator=torch.Generator().manual_seed(3)) < 0.3
    before = flat(net)
    training = PublishedTraining(net, mask, z, noisy)
    for _ in range(20):
        training.step()
    after = flat(training.net)
    assert not after[~mask].any()
    assert (after[mask] != before[mask]).any()
    assert torch.equal(flat(net), before)
    assert training.output.shape == noisy.shape
