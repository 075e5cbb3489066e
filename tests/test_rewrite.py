"""The rewritten generator against the dense one with masked weights: outputs, gradients, running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import masks, networks
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.rewrite import SparseGenerator, sparsify

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def masked(net: nn.Module, mask: Mask | None) -> nn.Module:
    net = copy.deepcopy(net)
    if mask is not None:
        unflatten_(net, flatten(net) * mask.flat)
    return net


def gradient(net: nn.Module, mask: Mask | None) -> Tensor:
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()])
    net.zero_grad()
    return flat if mask is None else flat[mask.flat]


def compare(net: nn.Module, mask: Mask | None, z: Tensor) -> SparseGenerator:
    """Two training steps with gradients and statistics, one evaluation with gradients, all against the dense net."""
    dense, fast = masked(net, mask).train(), sparsify(net.train(), mask)
    try:
        wanted = dense(z)
    except (RuntimeError, ValueError):  # too small an image for these layers
        assume(False)
    assume(bool(torch.isfinite(wanted).all()))
    dense = masked(net, mask).train()
    direction = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for training in (True, True, False):
        dense.train(training), fast.train(training)
        wanted, got = dense(z), fast(z)
        torch.testing.assert_close(got, wanted, **TOLERANCE)
        if wanted.requires_grad:
            (wanted * direction).sum().backward()
            (grad,) = torch.autograd.grad((got * direction).sum(), fast.weights, allow_unused=True)
            grad = torch.zeros_like(fast.weights) if grad is None else grad
            scale = 1 + float(grad.norm())
            torch.testing.assert_close(grad / scale, gradient(dense, mask) / scale, **TOLERANCE)
    back = fast.to_dense()
    torch.testing.assert_close(flatten(back), flatten(dense), rtol=0, atol=0)
    torch.testing.assert_close(back.eval()(z), dense.eval()(z), **TOLERANCE)
    return fast


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_masked_networks(data: st.DataObject) -> None:
    net, z = data.draw(networks())
    compare(net, Mask.from_flat(net, data.draw(masks(net))), z)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_dense_networks(network: tuple[nn.Module, Tensor]) -> None:
    net, z = network
    compare(net, None, z)
