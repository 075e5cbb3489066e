"""What a run with a forward operator is held against: the dense network, autograd and torch's Adam."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from conftest import Problem
from torch import Tensor, nn

from oes_fast.flat import FlatLayout, flatten, unflatten_


def masked_net(problem: Problem) -> nn.Module:
    """The dense network with the weights that the mask drops at zero."""
    net = copy.deepcopy(problem.net)
    unflatten_(net, flatten(net) * problem.mask.flat)
    return net.train()


def trained_by_hand(
    problem: Problem, value: Callable[[Tensor], Tensor], *, steps: int, lr: float = 1e-2
) -> tuple[list[float], nn.Module]:
    """(loss before each update and at the end, network) of a training that makes ``value(image)`` small."""
    net, mask = masked_net(problem), problem.mask.flat
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    losses = []
    for step in range(steps + 1):
        loss = value(net(problem.z))
        losses.append(float(loss.detach()))
        if step == steps:
            break
        optimizer.zero_grad()
        loss.backward()
        for parameter, kept in zip(net.parameters(), FlatLayout.of(net).views(mask).values(), strict=True):
            parameter.grad.mul_(kept)
        optimizer.step()
    return losses, net
