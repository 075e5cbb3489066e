"""Masks of q > 2 levels: the Gumbel softmax over levels in [0, 1] (Ghosh et al. 2024, section 3).

What the published code computes. A weight has q - 1 logits s_k, one for each of the levels
v_k = 1 - k / (q - 1), k = 0 .. q - 2; the last level is 0. A level is taken with a weight of

    p_k = sigmoid(s_k),    p_(q-1) = 1 - min(sum of the others, 1),

and none counts as less than 1e-20, so that the logarithms stay finite. Where the sigmoids sum to more than 1
the last level has all but gone and the softmax normalises the others. With two levels this is the
distribution of :func:`oes_fast.reference.relaxed_mask`, which has noise of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oes_fast.reference.philox import (
    DRAW_LEVEL,
    MASK_DRAW,
    level_noise,
    logistic_from_bits,
    random_bits,
)

TINY = 1e-20  # the least probability of a level, as published


def level_values(levels: int, *, like: Tensor) -> Tensor:
    """The levels v_k = 1 - k / (levels - 1), falling from 1 to 0.

    Args:
        levels: q >= 2.
        like: tensor whose dtype and device to take.

    Returns:
        Tensor of shape [levels].
    """
    return torch.tensor([1 - k / (levels - 1) for k in range(levels)], dtype=like.dtype, device=like.device)


def initial_logit(levels: int) -> float:
    """The logit at which all levels are equally likely, log(1 / (levels - 1)); 0 for two levels."""
    return -math.log(levels - 1) if levels > 2 else 0.0  # never -0.0


def level_probabilities(logits: Tensor) -> Tensor:
    """p_k of every level, not normalised.

    Args:
        logits: s, shape [q - 1, n].

    Returns:
        Tensor of shape [q, n], values in [1e-20, 1]; differentiable in ``logits``.
    """
    p = torch.sigmoid(logits)
    last = 1 - p.sum(0, keepdim=True).clamp(max=1)
    return torch.cat([p, last]).clamp(min=TINY)


def expected_level(logits: Tensor) -> Tensor:
    """Mean of the level of every weight, sum p_k v_k / sum p_k: what a mask is cut by.

    Args:
        logits: s, shape [q - 1, n].

    Returns:
        Tensor of shape [n], values in [0, 1]; increasing in s for two levels.
    """
    p = level_probabilities(logits)
    return (p * level_values(len(p), like=p)[:, None]).sum(0) / p.sum(0)


def likeliest_level(logits: Tensor) -> Tensor:
    """The level above 0 of the largest probability, the higher one of two that are equal.

    Args:
        logits: s, shape [q - 1, n].

    Returns:
        Tensor of shape [n], values in (0, 1].
    """
    return level_values(len(logits) + 1, like=logits)[logits.argmax(0)]


def relaxed_levels(logits: Tensor, *, seed: int, step: int, temperature: float = 0.2) -> Tensor:
    """Sample m = sum v_k a_k,  a = softmax over k of (log p_k + g_k) / T,  g_k ~ Gumbel(0, 1).

    Args:
        logits: s, float32 or float64, shape [q - 1, n].
        seed: key of the noise, see :func:`oes_fast.reference.level_noise`.
        step: search step; every step has noise of its own.
        temperature: T > 0.

    Returns:
        m in [0, 1], shape [n]; differentiable in ``logits``.
    """
    shares = _shares(level_probabilities(logits), seed=seed, step=step, temperature=temperature)
    return (shares * level_values(len(shares), like=shares)[:, None]).sum(0)


def level_mask_backward(
    grad: Tensor, w0: Tensor, logits: Tensor, *, seed: int, step: int, temperature: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Gradients of w0 * m with m = :func:`relaxed_levels`, the noise drawn again.

    With a_k the shares of the levels,  dm/dp_k = (a_k (v_k - m) / p_k - a_last (0 - m) / p_last) / T,  where
    the second term is there only as long as the last level is above its least, and dp_k/ds_k = p_k (1 - p_k).

    Args:
        grad: gradient of the masked weights, shape [n].
        w0: initial weights, shape [n].
        logits: s, shape [q - 1, n].
        seed: key of the noise.
        step: search step.
        temperature: T > 0.

    Returns:
        (gradient of ``w0`` [n], gradient of ``logits`` [q - 1, n]).
    """
    p = level_probabilities(logits)
    shares = _shares(p, seed=seed, step=step, temperature=temperature)
    values = level_values(len(p), like=p)[:, None]
    m = (shares * values).sum(0)
    slope = torch.where(p > TINY, shares * (values - m) / p, 0)
    kept = torch.sigmoid(logits) * torch.sigmoid(-logits)  # p (1 - p) without cancellation
    return grad * m, grad * w0 * kept * (slope[:-1] - slope[-1]) / temperature


def drawn_mask(logits: Tensor, *, seed: int, draw: int) -> Tensor:
    """A mask drawn from the probabilities: the limit of the relaxed sample at temperature 0.

    Two levels: 1 where s + L > 0, which has probability sigmoid(s). More: the level of the largest
    log p_k + g_k, which has probability p_k / sum p.

    Args:
        logits: s, shape [n], or [q - 1, n] for q > 2 levels.
        seed: key of the noise.
        draw: number of the draw, in [0, 2^32): the step of the counter.

    Returns:
        Levels in [0, 1], shape [n].
    """
    if logits.ndim == 2:
        numel, levels = logits.shape[1], len(logits) + 1
        noise = level_noise(
            seed, draw, numel, levels, stream=DRAW_LEVEL, dtype=logits.dtype, device=logits.device
        )
        return level_values(levels, like=logits)[(level_probabilities(logits).log() + noise).argmax(0)]
    bits = random_bits(seed, draw, logits.numel(), stream=MASK_DRAW, device=logits.device)
    return (logits + logistic_from_bits(bits, logits.dtype) > 0).to(logits.dtype)


def _shares(p: Tensor, *, seed: int, step: int, temperature: float) -> Tensor:
    """Softmax over the levels, shape [q, n]."""
    noise = level_noise(seed, step, p.shape[1], len(p), dtype=p.dtype, device=p.device)
    return torch.softmax((p.log() + noise) / temperature, dim=0)
