"""Where dense networks round and rewritten ones have zeros is no fault; small wrong gradients are one."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from kernel_backends import EMULATED
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import verify

BACKENDS = [name for name in ("torch", "cpu", *EMULATED) if oes.backends()[name]]


def masked(net, empty):
    """All weights but those of one parameter."""
    keep = torch.ones(FlatLayout.of(net).numel, dtype=torch.bool)
    FlatLayout.of(net).views(keep)[empty][:] = False
    return oes.Mask.from_flat(net, keep)


def emptied_net(levels=4):
    """Blocks of which the first has lost its weights: what follows is constant, but for what dense rounds."""
    torch.manual_seed(0)
    blocks = [
        layer
        for _ in range(levels)
        for layer in (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(16), nn.ReLU())
    ]
    for norm in blocks[1::3]:
        norm.weight.data *= 20  # times 10, 1 / sqrt(eps): so often dense rounding comes back larger
    return nn.Sequential(nn.Conv2d(4, 16, 1), *blocks, nn.Conv2d(16, 3, 1)), "1.weight"


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_are_zero_but_for_rounding_are_no_fault(backend):
    net, emptied = emptied_net()
    oes.sparsify(net, masked(net, emptied), backend=backend).train()(torch.rand(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("name", "factor", "added"),
    [
        ("a.weight", 0.9, 0.0),
        ("norm.bias", 0.0, 0.0),
        ("empty.4.bias", 1.0, 1e-6),
        ("empty.4.bias", 1.0, 0.0),
    ],
)
def test_small_gradients_that_are_wrong_are_found(monkeypatch, name, factor, added):
    """Of 1e-9 in a branch that is hardly seen, or in the place of a zero."""

    class Faint(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty, emptied = emptied_net(levels=3)
            self.dropped = f"empty.{emptied}"
            self.a, self.norm, self.faint = (
                nn.Conv2d(4, 8, 3),
                nn.BatchNorm2d(8),
                nn.Conv2d(8, 3, 3, padding=2),
            )
            self.faint.weight.data *= 1e-7

        def forward(self, x):
            return self.empty(x) + self.faint(torch.relu(self.norm(self.a(x))))

    right = verify._Comparison._rewritten

    def wrong(self, *args, **options):
        found = right(self, *args, **options)
        at = list(self._kept).index(name)
        grad = found.grad.clone()
        grad.split(list(self._kept.values()))[at].mul_(factor).add_(added)
        return dataclasses.replace(found, grad=grad)

    net = Faint()
    mask = masked(net, net.dropped)
    monkeypatch.setattr(verify._Comparison, "_rewritten", wrong)
    found = pytest.raises(oes.VerificationError, match=f"gradient .* of {name}")
    with nullcontext() if (factor, added) == (1.0, 0.0) else found:
        oes.sparsify(net, mask, backend="torch").train()(torch.rand(1, 4, 16, 16))
