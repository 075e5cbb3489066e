"""The contestant of the benchmarks that another package computes."""

from __future__ import annotations

import sys

import pytest
import torch

import oes_fast as oes
from benchmarks.sparseprop import SETTINGS, SparsePropTraining
from oes_fast.bench.published import PublishedTraining
from oes_fast.errors import BackendError


def make_case() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    net = oes.models.skip(4, 3, num_channels_down=(8, 16), seed=0)
    # 15 % of the weights, half the biases, all of the batch norms and the last layer: no dead channel.
    share = {name: 0.15 if p.ndim == 4 else 0.5 for name, p in net.named_parameters()}
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d) or getattr(layer, "out_channels", None) == 3:
            share[f"{name}.weight"] = share[f"{name}.bias"] = 1.0
    mask = torch.cat(
        [torch.rand(p.numel(), generator=generator) < share[name] for name, p in net.named_parameters()]
    )
    z = torch.rand(1, 4, 44, 52, generator=generator) / 10
    return net, mask, z, torch.rand(1, 3, 44, 52, generator=generator)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_training_is_the_published_one(setting):
    pytest.importorskip("sparseprop")
    net, mask, z, noisy = make_case()
    dense = PublishedTraining(net, mask, z, noisy)
    sparse = SparsePropTraining(net, mask, z, noisy, share=SETTINGS[setting])
    convs = [name for name, layer in net.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    assert sparse.replaced
    assert setting != "sparseprop-all" or sparse.replaced == convs
    losses = [(float(dense.step()), float(sparse.step())) for _ in range(10)]
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    assert all(a == pytest.approx(b, rel=1e-2) for a, b in losses)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradients_are_those_of_the_dense_network(setting):
    pytest.importorskip("sparseprop")
    net, mask, z, noisy = make_case()
    dense = PublishedTraining(net, mask, z, noisy)
    sparse = SparsePropTraining(net, mask, z, noisy, share=SETTINGS[setting])
    dense.step()
    sparse.step()
    found = dict(sparse.net.named_parameters())
    # A bias before a batch norm has a gradient of rounding alone.
    rounding = 1e-4 * max(float(p.grad.abs().max()) for p in dense.net.parameters())
    for name, parameter in dense.net.named_parameters():
        kept = sparse.masks[name]
        expected = parameter.grad[kept]
        values = name.removesuffix("weight") + "W_val"
        value = found[values].grad if values in found else found[name].grad[kept]
        assert torch.allclose(value, expected, rtol=1e-3, atol=rounding), name
        assert parameter.ndim == 1 or expected.abs().max() > 10 * rounding, name


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparseprop", None)
    monkeypatch.setitem(sys.modules, "sparseprop.modules", None)
    with pytest.raises(BackendError, match="pip install"):
        SparsePropTraining(*make_case())
