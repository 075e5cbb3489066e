"""Images as the kernels of a chain read them: normalised, activated, continued over a border on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate
from oes_fast.kernels.chain.kinds import (
    ACT_LEAKY,
    GRAD_NUMBERS,
    PAD_NONE,
    PAD_REFLECT,
    PAD_ZEROS,
    PROLOGUE_NUMBERS,
    READ_GRAD,
    READ_PLAIN,
    READ_SECOND,
)
from torch import Tensor

if TYPE_CHECKING:
    from oes_fast.kernels.chain.conv_taps import TapSum


class Reader(NamedTuple):
    """What a kernel is given of an image.

    Attributes:
        y: [networks, channels, rows, columns], or of one image for all networks.
        grad: of the same shape, of READ_GRAD.
        numbers: [networks, channels, PROLOGUE_NUMBERS], or GRAD_NUMBERS of READ_GRAD; None of READ_PLAIN.
        slope: of the activation, a constant of the kernel.
    """

    y: Tensor
    grad: Tensor | None
    numbers: Tensor | None
    slope: Any


class Image(NamedTuple):
    """An image and how it is read.

    Attributes:
        reader: see there.
        read: one of READ_PLAIN and the like.
        act: one of ACT_LEAKY and the like.
        shared: there is one for all networks.
    """

    reader: Reader
    read: int
    act: int
    shared: bool = False


def plain_image(y: Tensor, *, shared: bool = False) -> Image:
    """An image as it is."""
    return Image(Reader(y, None, None, tl.constexpr(1.0)), READ_PLAIN.value, ACT_LEAKY.value, shared)


def gradient_image(y: Tensor, grad: Tensor, numbers: Tensor | None) -> Image:
    """The gradient of a convolution's result ``y``.

    Args:
        y: the result.
        grad: the gradient of what its norm's activation takes, or without norm its own.
        numbers: see :class:`Reader`; None without a norm.
    """
    if numbers is None:
        return plain_image(grad)
    return Image(Reader(y, grad, numbers, tl.constexpr(1.0)), READ_GRAD.value, ACT_LEAKY.value)


def arguments_of(spec: TapSum, image: Image, networks: int) -> dict[str, Any]:
    """What every kernel that reads an image by taps is told of both, by the names of its arguments."""
    image_elements = spec.channels * spec.image_rows * spec.image_columns
    elements = networks * max(image_elements, spec.outputs * spec.rows * spec.columns)
    return {
        "outputs": spec.outputs,
        "channels": spec.channels,
        "image_rows": spec.image_rows,
        "image_columns": spec.image_columns,
        "image_pixels": spec.image_rows * spec.image_columns,
        "image_stride": 0 if image.shared else image_elements,
        "step": spec.step,
        "top": spec.top,
        "left": spec.left,
        "side": spec.side,
        "crop_top": spec.crop_top,
        "crop_left": spec.crop_left,
        "cell_columns": spec.cell_columns,
        "rows": spec.rows,
        "columns": spec.columns,
        "READ": image.read,
        "ACT": image.act,
        "PAD": spec.padding,
        "WIDE": elements >= 2**31,
    }


@triton.jit
def continued(index, size, PAD: tl.constexpr):
    """(index inside, whether there is a pixel) of a row or column of an image continued over its border."""
    inside = (index >= 0) & (index < size)
    if PAD == PAD_REFLECT:
        last = size - 1
        index = last - tl.abs(last - tl.abs(index))
    elif PAD != PAD_NONE:
        index = tl.minimum(tl.maximum(index, 0), size - 1)
    return index, inside


@triton.jit
def channel_numbers(reader, channel, READ: tl.constexpr):
    """The numbers of channels, counted through all networks, in the shape of ``channel``; six of them."""
    # Branches to the end: what stands behind a return is compiled too.
    if READ == READ_PLAIN:
        none = channel * 0
        numbers = none, none, none, none, none, none
    elif READ == READ_GRAD:
        of = reader.numbers + channel * GRAD_NUMBERS
        b = tl.load(of + 2)
        numbers = tl.load(of), tl.load(of + 1), b, tl.load(of + 3), b, b
    else:
        of = reader.numbers + channel * PROLOGUE_NUMBERS
        shift = tl.load(of + 2)
        if READ == READ_SECOND:
            numbers = tl.load(of), tl.load(of + 1), shift, tl.load(of + 3), tl.load(of + 4), tl.load(of + 5)
        else:
            numbers = tl.load(of), tl.load(of + 1), shift, shift, shift, shift
    return numbers


@triton.jit
def read_pixels(reader, numbers, at, inside, READ: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr):
    """What stands in the image as it is read.

    Args:
        reader: the image.
        numbers: of the pixels' channels, of a shape that broadcasts to theirs.
        at: where they lie from ``reader.y`` on, all of them in the image.
        inside: with PAD_ZEROS, which are not of the border.
    """
    x = tl.load(reader.y + at)
    if READ == READ_GRAD:
        x = numbers[1] * tl.load(reader.grad + at) + (numbers[2] * (x - numbers[0]) + numbers[3])
    elif READ != READ_PLAIN:
        x = numbers[1] * (x - numbers[0]) + numbers[2]
        if ACT == ACT_LEAKY and reader.slope > 0 and reader.slope <= 1:  # Triton takes no chain of them
            x = tl.maximum(x, x * reader.slope)  # an instruction fewer than a choice
        else:
            x = activate(x, reader.slope, ACT)
        if READ == READ_SECOND:
            x = numbers[4] * (x - numbers[3]) + numbers[5]
    if PAD == PAD_ZEROS:
        x = tl.where(inside, x, 0.0)
    return x
