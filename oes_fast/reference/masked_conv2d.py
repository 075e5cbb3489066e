"""Convolution with masked weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Two-dimensional cross-correlation of ``x`` with ``weight * mask``.

    Args:
        x: input, shape [N, C, H, W].
        weight: shape [O, C / groups, kH, kW].
        mask: bool or of weight's dtype, shape of ``weight``.
        bias: shape [O], or None.
        stride: (rows, columns).
        padding: added on both sides, (rows, columns).
        dilation: (rows, columns).
        groups: blocked connections, as in torch.nn.Conv2d.
        padding_mode: zeros, reflect, replicate or circular.

    Returns:
        Tensor of shape [N, O, H', W']; differentiable in ``x``, ``weight`` and ``bias``. The gradient of a
        weight that the mask drops is zero.
    """
    if padding_mode != "zeros" and any(padding):
        rows, columns = padding
        x = F.pad(x, (columns, columns, rows, rows), mode=PADDING_MODES[padding_mode])
        padding = (0, 0)
    return F.conv2d(x, weight * mask, bias, stride, padding, dilation, groups)
