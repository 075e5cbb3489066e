"""Down-sampling by a Lanczos filter, as the deep-image-prior code has it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

KERNELS = {"lanczos2": 2, "lanczos3": 3}  # lobes on each side of the centre
_FACTOR = 2


class Downsampler(nn.Module):
    """Halves the size with a windowed sinc, the edges repeated.

    The published code keeps the filter in a convolution of all channels to all channels, whose weights are
    parameters like any other: that of a channel to itself starts as the filter, all others and the bias at
    zero, and training changes them. Masks cover them, and a search keeps or drops each.

    Args:
        conv: convolution of stride 2 with as many outputs as inputs and a kernel of 4 x ``lobes``; its
            weights are written over.
        lobes: 2 or 3 on each side of the centre.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, lobes: int) -> None:
        super().__init__()
        self.downsampler_ = conv  # the published name
        dims = conv.weight.ndim - 2
        self.padding = getattr(nn, f"ReplicationPad{dims}d")((2 * _FACTOR * lobes - _FACTOR) // 2)
        with torch.no_grad():
            conv.weight.zero_()
            conv.weight[range(conv.out_channels), range(conv.out_channels)] = lanczos(lobes, dims).to(
                conv.weight
            )
            if conv.bias is not None:
                conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Half the size.

        Args:
            x: shape [N, C, H, W], H and W even.

        Returns:
            Tensor of shape [N, C, H / 2, W / 2].
        """
        halved: Tensor = self.downsampler_(self.padding(x))
        return halved


def lanczos(lobes: int, dims: int) -> Tensor:
    """The filter that halves a size: float64, 4 x ``lobes`` taps in each dimension, of sum 1."""
    count = 2 * _FACTOR * lobes
    taps = torch.empty(count, dtype=torch.float64, device="cpu")
    for i in range(count):
        # Between two pixels, so that no distance is zero.
        x = math.pi * abs(i + 0.5 - count / 2) / _FACTOR
        taps[i] = lobes * math.sin(x) * math.sin(x / lobes) / (x * x)
    kernel = taps
    for _ in range(dims - 1):
        kernel = kernel[..., None] * taps
    return kernel / kernel.sum()
