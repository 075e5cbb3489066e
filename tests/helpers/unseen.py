"""A small network whose forward is given as a function, and what it is held against."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.copies import copy_network

Z = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class Holder:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.count = 0


class Own(nn.Module):
    """Layers, and all kinds of things that a module may hold beside them."""

    calls = 0
    shared = [0]  # noqa: RUF012

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4, eps=0.05)
        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))
        self.history: list[Any] = []
        self.cache: dict[str, Any] = {}
        self.counter, self.nested, self.holder = [0], {"a": [{"n": 0}]}, Holder()
        self.random, self.generator = random.Random(0), torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.plain = torch.ones(4, 1, 1, dtype=torch.float64)
        self.written = forward

    def forward(self, x: Tensor) -> Any:
        """The image, or what a case returns in its place."""
        return self.written(self, x)

    def body(self, x: Tensor) -> Tensor:
        """Four channels of the size of ``x``."""
        return self.norm(self.conv(x))


def own(function: Callable[[Any, Tensor], Any], *, training: bool = True) -> nn.Module:
    return Own(function).double().train(training)


def hold_against_dense(net: nn.Module, z: Tensor = Z) -> None:
    """Outputs and gradients of three calls, the last with gradients off, random numbers alike."""
    dense, fast = copy_network(net), oes.sparsify(net)
    for grad in (True, True, False):
        with torch.set_grad_enabled(grad):
            wanted, got = (_seeded(module, z) for module in (dense, fast))
        torch.testing.assert_close(got, wanted, **TOLERANCE)
        if grad:
            dense.zero_grad()
            wanted.square().sum().backward()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense.parameters()]
            (grad_fast,) = torch.autograd.grad(got.square().sum(), fast.weights)
            torch.testing.assert_close(grad_fast, torch.cat([g.flatten() for g in gradients]), **TOLERANCE)


def _seeded(module: nn.Module, z: Tensor) -> Tensor:
    torch.manual_seed(5)
    return module(z)


def held(net: nn.Module) -> list[Any]:
    """What must be left as it was by a refusal."""
    return copy.deepcopy([net.history, net.counter, net.nested, net.holder.count, net.plain])
