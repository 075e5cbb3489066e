"""The Gumbel-sampled relaxed mask (Ghosh et al. 2024, section 3; Maddison et al. 2017, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast.reference.level_mask import level_mask_backward, relaxed_levels
from oes_fast.reference.philox import logistic_noise


def relaxed_mask(logits: Tensor, *, seed: int, step: int, temperature: float = 0.2) -> Tensor:
    """Binary-concrete sample m = sigmoid((s + L) / T), L ~ Logistic(0, 1).

    For two categories the Gumbel softmax is this one logistic: the difference of two Gumbel variables is
    Logistic(0, 1), and log p - log(1 - p) = s.

    Args:
        logits: s, float32 or float64, shape [n]; of shape [q - 1, n] for q > 2 levels, see
            :mod:`oes_fast.reference.level_mask`.
        seed: key of the noise.
        step: search step; every step has noise of its own.
        temperature: T > 0.

    Returns:
        m in [0, 1], shape [n], same dtype; differentiable in ``logits``.
    """
    if logits.ndim == 2:
        return relaxed_levels(logits, seed=seed, step=step, temperature=temperature)
    noise = logistic_noise(seed, step, logits.numel(), dtype=logits.dtype, device=logits.device)
    return torch.sigmoid((logits + noise) / temperature)


def gumbel_mask(w0: Tensor, logits: Tensor, *, seed: int, step: int, temperature: float = 0.2) -> Tensor:
    """Masked weights w0 * m with m = :func:`relaxed_mask`.

    Args:
        w0: initial weights, shape [n].
        logits: s, shape [n] or [q - 1, n], same dtype and device.
        seed: key of the noise.
        step: search step.
        temperature: T > 0.

    Returns:
        Tensor of shape [n]; differentiable in ``w0`` and ``logits``.
    """
    return w0 * relaxed_mask(logits, seed=seed, step=step, temperature=temperature)


def gumbel_mask_backward(
    grad: Tensor, w0: Tensor, logits: Tensor, *, seed: int, step: int, temperature: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`gumbel_mask`: dw0 = g m and ds = g w0 m (1 - m) / T, the noise drawn again.

    Args:
        grad: gradient of the masked weights, shape [n].
        w0: initial weights, shape [n].
        logits: s, shape [n] or [q - 1, n].
        seed: key of the noise.
        step: search step.
        temperature: T > 0.

    Returns:
        (gradient of ``w0``, gradient of ``logits``), of their shapes.
    """
    if logits.ndim == 2:
        return level_mask_backward(grad, w0, logits, seed=seed, step=step, temperature=temperature)
    m = relaxed_mask(logits, seed=seed, step=step, temperature=temperature)
    return grad * m, grad * w0 * m * (1 - m) / temperature
