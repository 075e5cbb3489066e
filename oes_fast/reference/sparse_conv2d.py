"""Convolution over an unstructured mask."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sparse_conv2d(x: Tensor, values: Tensor, mask: Tensor, *, stride: int = 1) -> Tensor:
    """y[n, o, i, j] = sum over the kept (o, c, u, v) of w[o, c, u, v] * x[n, c, s * i + u, s * j + v].

    Args:
        x: input, shape [N, C, H, W], already padded.
        values: the kept weights in order of (o, c, u, v), shape [nnz].
        mask: which weights are kept, bool [O, C, kH, kW] with nnz true.
        stride: s.

    Returns:
        Tensor of shape [N, O, (H - kH) // s + 1, (W - kW) // s + 1]; differentiable in ``x`` and ``values``.
    """
    weight = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return F.conv2d(x, weight, stride=stride)


def phase_split(x: Tensor) -> Tensor:
    """The even and odd rows and columns of an image: pixel_unshuffle of it, padded with zeros to even sizes.

    Args:
        x: shape [N, C, H, W].

    Returns:
        Tensor of shape [N, C, 4, ceil(H / 2), ceil(W / 2)]; phase 2 a + b has the rows 2 i + a and the
        columns 2 j + b.
    """
    _, channels, height, width = x.shape
    x = F.pad(x, (0, width % 2, 0, height % 2))
    return F.pixel_unshuffle(x, 2).unflatten(1, (channels, 4))


def phase_merge(planes: Tensor, height: int, width: int) -> Tensor:
    """The image [N, C, height, width] whose :func:`phase_split` are ``planes``."""
    return F.pixel_shuffle(planes.flatten(1, 2), 2)[..., :height, :width].contiguous()
