"""Batch normalisation followed by an activation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = ("none", "leaky_relu", "elu", "silu")


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    slope: float = 0.2,
    pad: int = 0,
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias), channel by channel (Ioffe and Szegedy 2015).

    Args:
        x: shape [N, C, H, W].
        weight: gamma, shape [C], or None for ones.
        bias: beta, shape [C], or None for zeros.
        running_mean: shape [C]; updated in training, used otherwise.
        running_var: shape [C]; updated in training (with the unbiased variance), used otherwise.
        training: take the statistics of ``x`` (biased variance), not the running ones.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.
        activation: none, leaky_relu, elu or silu.
        slope: of leaky_relu below zero; alpha of elu.
        pad: reflected pixels added on every side, less than H and W.

    Returns:
        Tensor of shape [N, C, H + 2 pad, W + 2 pad]; differentiable in ``x``, ``weight`` and ``bias``.
    """
    y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = activate(y, activation, slope)
    return F.pad(y, (pad, pad, pad, pad), mode="reflect") if pad else y


def activate(x: Tensor, activation: str, slope: float) -> Tensor:
    """The activation of :func:`batch_norm_act` alone."""
    if activation == "leaky_relu":
        return F.leaky_relu(x, slope)
    if activation == "elu":
        return F.elu(x, slope)
    if activation == "silu":
        return F.silu(x)
    return x
