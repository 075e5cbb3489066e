"""The module types that generators are assembled from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from oes_fast.recipe import Recipe


class ImageGenerator(nn.Module):
    """What all generators here have: they say what image they give for an input.

    Attributes:
        dims: dimensions of the image: 1, 2 or 3.
        recipe: what :func:`oes_fast.models.generator` made the network from, None where it was made
            otherwise.
    """

    dims: int = 2
    recipe: Recipe | None = None

    def image_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the image for an input of that size, without batch and channels."""
        raise NotImplementedError

    def input_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the input for an image of that size."""
        raise NotImplementedError

    def input_channels(self) -> int | None:
        """Channels of the input, None without a convolution."""
        first = next((module for module in self.modules() if isinstance(module, _ConvNd)), None)
        return None if first is None else first.in_channels


class AnySize(ImageGenerator):
    """A generator of images of the input's size that takes any size.

    Encoder-decoders halve the image a number of times, so inside they need sizes that are a multiple of
    ``multiple`` and at least ``minimum``. The input is extended to such a size at the bottom and right by
    reflection, and the output is cropped back; both are skipped where the size fits.

    Attributes:
        multiple: sizes inside are multiples of this.
        minimum: and not smaller than this.
    """

    multiple: int = 1
    minimum: int = 1

    def image_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the image for an input of that size: the same."""
        return size

    def input_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the input for an image of that size: the same."""
        return size

    def inner_size(self, size: int) -> int:
        """The size inside the network for an image side of ``size`` pixels."""
        return max(-(-size // self.multiple), -(-self.minimum // self.multiple)) * self.multiple

    def at_inner_size(self, run: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """``run(z)``, on the extended input where its size does not fit, and cropped then."""
        size = tuple(z.shape[2:])
        inner = tuple(self.inner_size(side) for side in size)
        if inner == size:
            return run(z)
        return cropped(run(extend(z, inner)), [0] * len(size), size)


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


class Generator(NumberedLayers, AnySize):
    """A sequence of layers that takes any image size, see :class:`AnySize`.

    Args:
        *layers: modules.
        multiple: sizes inside are multiples of this.
        minimum: and not smaller than this.
        dims: dimensions of the image.
    """

    def __init__(self, *layers: nn.Module, multiple: int = 1, minimum: int = 1, dims: int = 2) -> None:
        super().__init__(*layers)
        self.multiple = multiple
        self.minimum = minimum
        self.dims = dims

    def forward(self, z: Tensor) -> Tensor:
        """Image of the input's size.

        Args:
            z: input, shape [N, C, H, W].

        Returns:
            Tensor of shape [N, C', H, W].
        """
        return self.at_inner_size(super().forward, z)


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
        size = [min(sides) for sides in zip(*(y.shape[2:] for y in outputs), strict=True)]
        return torch.cat([center_crop(y, *size) for y in outputs], dim=self.dim)


def center_crop(x: Tensor, *size: int) -> Tensor:
    """The middle of ``x`` [N, C, ...] of that size; ``x`` itself where it has it."""
    sides = tuple(x.shape[2:])
    if sides == size:
        return x
    return cropped(x, [(side - wanted) // 2 for side, wanted in zip(sides, size, strict=True)], size)


def cropped(x: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """``size`` of ``x`` [N, C, ...] from ``starts`` on."""
    index: tuple[Any, ...] = (
        Ellipsis,
        *(slice(start, start + side) for start, side in zip(starts, size, strict=True)),
    )
    return x[index]


def extend(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Extend ``x`` [N, C, ...] at the bottom and right by mirroring, as often as ``size`` asks."""
    for dim, target in zip(range(-len(size), 0), size, strict=True):
        length = x.shape[dim]
        # 0 1 2 2 1 0 0 1 2 ...: the mirror repeats the edge, so a side of one pixel works too.
        position = torch.arange(target, device=x.device) % (2 * length)
        x = x.index_select(dim, torch.minimum(position, 2 * length - 1 - position))
    return x


def append(sequence: nn.Sequential, layer: nn.Module) -> None:
    """Append ``layer`` under the next number, counting from 1: the names of the published code."""
    sequence.add_module(str(len(sequence) + 1), layer)
