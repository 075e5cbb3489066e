"""The sparsity term of the mask search (Ghosh et al. 2024, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor

KL_EPS = 1e-6  # inside the logarithms, as published


def mask_kl(logits: Tensor, *, density: float) -> Tensor:
    """Sum over all elements of KL(Bernoulli(sigmoid s) || Bernoulli(p0)).

    With p = sigmoid s:  p log((p + eps) / p0) + (1 - p) log((1 - p + eps) / (1 - p0)),  eps = 1e-6.

    Args:
        logits: s, shape [n], or [q - 1, n] for q > 2 levels.
        density: p0 in (0, 1), the wanted share of kept weights.

    Returns:
        Scalar tensor; differentiable in ``logits``.
    """
    p = torch.sigmoid(logits)
    q = torch.sigmoid(-logits)  # 1 - p without cancellation
    kept = p * torch.log((p + KL_EPS) / density)
    pruned = q * torch.log((q + KL_EPS) / (1 - density))
    return (kept + pruned).sum()


def mask_kl_backward(logits: Tensor, *, density: float) -> Tensor:
    """Derivative of :func:`mask_kl` in every logit.

    p (1 - p) [log((p + eps) / p0) + p / (p + eps) - log((1 - p + eps) / (1 - p0)) - (1 - p) / (1 - p + eps)]

    Args:
        logits: s, shape [n] or [q - 1, n].
        density: p0 in (0, 1).

    Returns:
        Tensor of that shape.
    """
    p = torch.sigmoid(logits)
    q = torch.sigmoid(-logits)
    kept = torch.log((p + KL_EPS) / density) + p / (p + KL_EPS)
    pruned = torch.log((q + KL_EPS) / (1 - density)) + q / (q + KL_EPS)
    return p * q * (kept - pruned)
