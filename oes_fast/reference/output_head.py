"""The last layer of the generator with the loss it feeds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def output_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, sigmoid: bool = True
) -> tuple[Tensor, Tensor]:
    """1 x 1 convolution, sigmoid and mean squared error to the target.

    Args:
        x: features, shape [N, C, H, W].
        weight: shape [O, C, 1, 1].
        bias: shape [O], or None.
        target: noisy image, shape [N, O, H', W'] with H' <= H and W' <= W; the output is cropped to it.
        sigmoid: squash the output into (0, 1).

    Returns:
        (output of the target's shape, scalar loss mean((output - target)^2)).
    """
    x = x[..., : target.shape[-2], : target.shape[-1]]
    output = F.conv2d(x, weight, bias)
    if sigmoid:
        output = torch.sigmoid(output)
    return output, F.mse_loss(output, target)
