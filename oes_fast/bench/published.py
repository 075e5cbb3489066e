"""The published code's two training loops: the baseline of every speed ratio.

Written afresh with the cost structure of the published code: what it computes, allocates and copies in a
step, this computes, allocates and copies, and nothing more. It is the yardstick, so it is not to be made
faster: the package's own definition of the same formulas is oes_fast.reference. Any device.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-20  # keeps the logarithms finite


class PublishedSearch:
    """The mask search: one step draws a relaxed mask tensor by tensor and moves the logits by Adam.

    Args:
        net: the generator; left as it is.
        z: its input, shape [1, C, H, W].
        noisy: the image, shape [1, C', H, W].
        density: prior probability p0 of keeping a weight.
        lr: learning rate of Adam.
        kl: weight of the KL term.
        temperature: of the Gumbel softmax.

    Attributes:
        logits: s, shape [1, n], zeros at the start (keep and drop equally likely).
    """

    def __init__(
        self,
        net: nn.Module,
        z: Tensor,
        noisy: Tensor,
        density: float = 0.05,
        lr: float = 1e-2,
        kl: float = 1e-9,
        temperature: float = 0.2,
    ) -> None:
        self.net, self.z, self.noisy = net, z, noisy
        self.density, self.kl, self.temperature = density, kl, temperature
        first = next(net.parameters())
        count = sum(p.numel() for p in net.parameters())
        self.logits = torch.zeros(1, count, dtype=first.dtype, device=first.device, requires_grad=True)
        self.levels = torch.tensor([1.0, 0.0], dtype=first.dtype, device=first.device)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr)

    def step(self) -> Tensor:
        """One step; returns the loss before it, a scalar on the device (no synchronisation)."""
        masked = self._draw()
        loss = F.mse_loss(masked(self.z), self.noisy) + self.kl * self._divergence()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def mask_step(self, grads: list[Tensor]) -> None:
        """A step without the network: ``grads`` are the gradients of the masked parameters."""
        masked = self._draw()
        torch.autograd.backward([*masked.parameters(), self.kl * self._divergence()], [*grads, None])
        self.optimizer.step()

    def _draw(self) -> nn.Module:
        masked = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizer.zero_grad()
        start = 0
        for parameter in masked.parameters():
            end = start + parameter.numel()
            probability = torch.sigmoid(self.logits[:, start:end].t())
            parameter.mul_(relaxed_mask(probability, self.levels, self.temperature).view(parameter.shape))
            start = end
        return masked

    def _divergence(self) -> Tensor:
        # Four sigmoids of all logits, each with a tensor kept for backward, as published.
        s, p0 = self.logits, self.density
        keep = torch.sigmoid(s) * torch.log((torch.sigmoid(s) + 1e-6) / p0)
        drop = (1 - torch.sigmoid(s)) * torch.log((1 - torch.sigmoid(s) + 1e-6) / (1 - p0))
        return (keep + drop).sum()


def relaxed_mask(probability: Tensor, levels: Tensor, temperature: float) -> Tensor:
    """Two-category Gumbel softmax of ``probability`` [n, 1], as the expected level [n]."""
    below_one = 1 - TINY
    both = torch.cat([probability, 1 - probability.sum(1, keepdim=True).clamp(TINY, below_one)], dim=1)
    uniform = torch.rand_like(both).clamp(TINY, below_one)
    gumbel = -torch.log(-torch.log(uniform))
    shares = F.softmax((torch.log(both.clamp(TINY, below_one)) + gumbel) / temperature, dim=-1)
    return (shares * levels).sum(-1)


class PublishedTraining:
    """Sparse-DIP training: the dense network in eager PyTorch, masked gradients, Adam over all weights.

    Args:
        net: the generator with its initial weights; left as it is.
        mask_flat: bool of shape [n], parameters() order.
        z: its input, shape [1, C, H, W].
        noisy: the image, shape [1, C', H, W].
        lr: learning rate of Adam.

    Attributes:
        net: the masked copy that is trained.
        output: of the last step, before its update; None before the first.
    """

    def __init__(self, net: nn.Module, mask_flat: Tensor, z: Tensor, noisy: Tensor, lr: float = 1e-2) -> None:
        self.net, self.z, self.noisy = copy.deepcopy(net), z, noisy
        self.mask = mask_flat.to(next(net.parameters()).device)
        self.output: Tensor | None = None
        with torch.no_grad():
            for parameter, piece in self._pieces():
                parameter.mul_(piece)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)

    def step(self) -> Tensor:
        """One step; returns the loss before it, a scalar on the device (no synchronisation)."""
        self.optimizer.zero_grad()
        output = self.net(self.z)
        loss = F.mse_loss(output, self.noisy)
        loss.backward()
        for parameter, piece in self._pieces():
            if parameter.grad is not None:
                parameter.grad = parameter.grad * piece
        self.optimizer.step()
        self.output = output.detach()
        return loss.detach()

    def _pieces(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its piece of the mask."""
        parameters = list(self.net.parameters())
        pieces = self.mask.split([p.numel() for p in parameters])
        return [(p, piece.view(p.shape)) for p, piece in zip(parameters, pieces, strict=True)]
