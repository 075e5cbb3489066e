"""The published formulas once more, in a few lines of PyTorch that share no code with the library.

Written from the text (Ghosh et al. 2024, sections 3 and 4): masks tensor by tensor, gradients by autograd,
Adam and its state from torch.optim.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast.reference import logistic_noise


def search(
    net: nn.Module, z: Tensor, noisy: Tensor, *, density: float, steps: int, lr: float, kl: float, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(objective, all logits) before each update, and after the last."""
    names, w0 = zip(*net.named_parameters(), strict=True)
    logits = [torch.zeros_like(w).requires_grad_() for w in w0]
    optimizer = torch.optim.Adam(logits, lr=lr)
    for step in range(steps + 1):
        noise = logistic_noise(seed, step, sum(w.numel() for w in w0), dtype=z.dtype)
        weights, divergence, first = {}, torch.zeros((), dtype=z.dtype), 0
        for name, w, s in zip(names, w0, logits, strict=True):
            draw = noise[first : first + w.numel()].reshape(w.shape)
            weights[name] = w.detach() * torch.sigmoid((s + draw) / 0.2)
            p = torch.sigmoid(s)
            kept = p * ((p + 1e-6) / density).log()
            divergence = divergence + (kept + (1 - p) * ((1 - p + 1e-6) / (1 - density)).log()).sum()
            first += w.numel()
        output = torch.func.functional_call(copy.deepcopy(net).train(), weights, (z,))
        objective = ((output - noisy) ** 2).mean() + kl * divergence
        yield objective.detach(), torch.cat([s.detach().reshape(-1) for s in logits])
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()


def top(logits: Tensor, density: float) -> Tensor:
    """The int(density * n) largest logits, where they are distinct."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    keep[logits.argsort(descending=True)[: int(density * logits.numel())]] = True
    return keep


def train(
    net: nn.Module, mask: Tensor, z: Tensor, noisy: Tensor, *, steps: int, lr: float
) -> Iterator[tuple[Tensor, Tensor, nn.Module]]:
    """(loss, output, network with its running statistics) before each update, and after the last."""
    net = copy.deepcopy(net).train()
    pieces = mask.split([p.numel() for p in net.parameters()])
    masks = [m.reshape(p.shape) for m, p in zip(pieces, net.parameters(), strict=True)]
    with torch.no_grad():
        for parameter, keep in zip(net.parameters(), masks, strict=True):
            parameter *= keep
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps + 1):
        before = copy.deepcopy(net)
        output = net(z)
        loss = ((output - noisy) ** 2).mean()
        yield loss.detach(), output.detach(), before
        optimizer.zero_grad()
        loss.backward()
        for parameter, keep in zip(net.parameters(), masks, strict=True):
            parameter.grad *= keep
        optimizer.step()


def generator(parameters: Iterator[Tensor], z: Tensor, depth: int) -> Tensor:
    """The published generator, eating its parameters in their order."""

    def conv(x: Tensor) -> Tensor:
        weight, bias = next(parameters), next(parameters)
        reach = weight.shape[-1] // 2
        return F.conv2d(F.pad(x, (reach,) * 4, mode="reflect"), weight, bias)

    def normalise(x: Tensor) -> Tensor:
        gamma, beta = (next(parameters)[:, None, None] for _ in range(2))
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def scale(x: Tensor, below: int) -> Tensor:
        x = conv(x)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        x = leaky(normalise(x))
        x = leaky(normalise(conv(x)))
        if below:
            x = scale(x, below - 1)
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return leaky(normalise(conv(normalise(x))))

    return 1 / (1 + torch.exp(-conv(scale(z, depth - 1))))
