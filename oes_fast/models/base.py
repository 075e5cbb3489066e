"""The module types that generators are assembled from."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class NumberedLayers(nn.Sequential):
    """A sequence of layers named 1, 2, 3, ... as the published code names them.

    Args:
        *layers: modules.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for layer in layers:
            append(self, layer)

    def __getitem__(self, index: int | slice) -> Any:
        """One layer, or a plain sequence of some under their names."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)


class Generator(NumberedLayers):
    """A sequence of layers that takes any image size.

    Encoder-decoders halve the image a number of times, so inside they need sizes that are a multiple of
    ``multiple`` and at least ``minimum``. The input is extended to such a size at the bottom and right by
    reflection, and the output is cropped back; both are skipped where the size fits.

    Args:
        *layers: modules.
        multiple: sizes inside are multiples of this.
        minimum: and not smaller than this.
    """

    def __init__(self, *layers: nn.Module, multiple: int = 1, minimum: int = 1) -> None:
        super().__init__(*layers)
        self.multiple = multiple
        self.minimum = minimum

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input's height and width.

        Args:
            z: input, shape [N, C, H, W].

        Returns:
            Tensor of shape [N, C', H, W].
        """
        height, width = z.shape[-2:]
        size = self.inner_size(height), self.inner_size(width)
        if size == (height, width):
            return super().forward(z)
        return super().forward(extend(z, size))[..., :height, :width]

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the image for an input of that (H, W): the same."""
        return size

    def inner_size(self, size: int) -> int:
        """The size inside the network for an image side of ``size`` pixels."""
        return max(-(-size // self.multiple), -(-self.minimum // self.multiple)) * self.multiple


class Concat(nn.Module):
    """Run branches on one input and concatenate their outputs along the channels.

    Outputs of different sizes are cropped about their centres to the smallest.

    Args:
        dim: dimension to concatenate along.
        *branches: modules, named 0, 1, ...
    """

    def __init__(self, dim: int, *branches: nn.Module) -> None:
        super().__init__()
        self.dim = dim
        for index, branch in enumerate(branches):
            self.add_module(str(index), branch)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenated outputs, shape [N, sum of channels, min H, min W]."""
        outputs = [branch(x) for branch in self.children()]
        height = min(y.shape[2] for y in outputs)
        width = min(y.shape[3] for y in outputs)
        return torch.cat([center_crop(y, height, width) for y in outputs], dim=self.dim)


def center_crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle ``height`` x ``width`` of ``x`` [N, C, H, W]; ``x`` itself where it has that size."""
    if x.shape[2] == height and x.shape[3] == width:
        return x
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def extend(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Extend ``x`` [N, C, H, W] at the bottom and right by mirroring, as often as ``size`` asks."""
    for dim, target in zip((-2, -1), size, strict=True):
        length = x.shape[dim]
        # 0 1 2 2 1 0 0 1 2 ...: the mirror repeats the edge, so a side of one pixel works too.
        position = torch.arange(target, device=x.device) % (2 * length)
        x = x.index_select(dim, torch.minimum(position, 2 * length - 1 - position))
    return x


def append(sequence: nn.Sequential, layer: nn.Module) -> None:
    """Append ``layer`` under the next number, counting from 1: the names of the published code."""
    sequence.add_module(str(len(sequence) + 1), layer)
