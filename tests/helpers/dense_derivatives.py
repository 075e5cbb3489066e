"""Image and loss of small networks as functions of the kept weights, differentiated in full."""

from __future__ import annotations

from collections.abc import Callable

import torch
from conftest import Problem, build_problem
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

import oes_fast as oes
from oes_fast.flat import flatten


def tiny_problem(*, scales: tuple[int, ...] = (2,), density: float = 0.6) -> Problem:
    """About 150 weights in float64; a random mask that keeps batch norm scales, so that all is alive."""
    problem = build_problem(size=(12, 12), channels=1, num_channels_down=scales, density=density)
    kept = problem.mask.to_dict(problem.net)
    for path, module in problem.net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            kept[f"{path}.weight"][:] = True
    return problem._replace(mask=oes.Mask.from_dict(problem.net, kept))


def image_of(net: nn.Module, mask: oes.Mask | None, z: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(image in training mode of the kept weights, these weights)."""
    names = [name for name, _ in net.named_parameters()]
    shapes = [parameter.shape for parameter in net.parameters()]
    kept = torch.ones(len(flatten(net)), dtype=torch.bool) if mask is None else mask.flat
    training = net.training

    def image(weights: Tensor) -> Tensor:
        dense = torch.zeros(len(kept), dtype=weights.dtype).masked_scatter(kept, weights)
        pieces = dense.split([shape.numel() for shape in shapes])
        values = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        buffers = {n: b.clone() for n, b in net.named_buffers()}
        try:
            return torch.func.functional_call(net.train(), values | buffers, (z,))
        finally:
            net.train(training)

    return image, flatten(net)[kept]


def full_jacobian(net: nn.Module, mask: oes.Mask | None, z: Tensor) -> Tensor:
    """All derivatives, shape [pixels, kept]."""
    image, weights = image_of(net, mask, z)
    return jacobian(lambda w: image(w).flatten(), weights)


def loss_of(
    net: nn.Module, mask: oes.Mask | None, z: Tensor, noisy: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(mean squared error of the kept weights, these weights)."""
    image, weights = image_of(net, mask, z)
    return lambda w: ((image(w) - noisy) ** 2).sum() / noisy.numel(), weights


def full_hessian(net: nn.Module, mask: oes.Mask | None, z: Tensor, noisy: Tensor) -> Tensor:
    """All second derivatives, shape [kept, kept]."""
    loss, weights = loss_of(net, mask, z, noisy)
    return hessian(loss, weights)
