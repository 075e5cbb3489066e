"""Convolution over an unstructured mask after nearest up-sampling by two."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sparse_up_conv2d(x: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """conv3x3(reflect_pad1(nearest_up2(x))) with the kept weights.

    With B_uv[o] = sum_c w[o, c, u, v] x[c] at the input's resolution this is the sum over (u, v) of
    B_uv[o][(Y + u - 1) div 2, (X + v - 1) div 2], the indices clamped to the image: one reflected pixel of
    the up-sampled image is a copy of the border pixel. The kernels compute it so; this is the definition.

    Args:
        x: input, shape [N, C, h, w].
        values: the kept weights in order of (o, c, u, v), shape [nnz].
        mask: which weights are kept, bool [O, C, 3, 3] with nnz true.

    Returns:
        Tensor of shape [N, O, 2 h, 2 w]; differentiable in ``x`` and ``values``.
    """
    weight = values.new_zeros(mask.shape).masked_scatter(mask, values)
    up = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(F.pad(up, (1, 1, 1, 1), mode="reflect"), weight)
