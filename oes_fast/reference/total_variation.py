"""Total variation of an image: how much neighbouring pixels differ."""

from __future__ import annotations

import torch
from torch import Tensor


def total_variation(image: Tensor) -> Tensor:
    """Sum over the directions of the mean absolute difference of neighbours, over all pairs of them.

    Args:
        image: shape [N, C, L], [N, C, H, W] or [N, C, D, H, W].

    Returns:
        Scalar tensor; differentiable in ``image``.
    """
    total = torch.zeros((), dtype=image.dtype, device=image.device)
    for dim in range(2, image.ndim):
        size = image.shape[dim]
        if size > 1:
            total = total + (image.narrow(dim, 1, size - 1) - image.narrow(dim, 0, size - 1)).abs().mean()
    return total
