"""What a convolution of a chain comes to: sums over taps forward and backward.

The kernels know neither a sum of 2 x 2 pixels before a convolution nor up-sampling by 2 before one: a tap
that reads a pixel is multiplied by the sum of the weights which that pixel meets, up to 2 x 2 of them. A box
before a 3 x 3 kernel is so a kernel of 4 x 4 merged taps; a convolution of an up-sampled image reads the
small image with 2 x 2 merged taps for each of the four places in a block of 2 x 2 pixels; and the gradient of
that one's input reads the large gradient with 4 x 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, Padding, kept_weights

_FILLED_WITH = {
    Padding.ZEROS: kinds.PAD_ZEROS.value,
    Padding.REFLECT: kinds.PAD_REFLECT.value,
    Padding.REPLICATE: kinds.PAD_REPLICATE.value,
}
_MERGED = 4  # weights of a merged tap at most


class Taps(NamedTuple):
    """Taps of a sum, sorted by (output, phase, channel, row, column), which are int64 [n].

    ``weights`` [n, m], m = 1 or 4: indices in the flat vector of the weights whose sum a tap is multiplied
    by, -1 for none.
    """

    output: np.ndarray
    phase: np.ndarray
    channel: np.ndarray
    row: np.ndarray
    column: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class TapSum:
    """A sum over taps.

    Attributes:
        taps: of all outputs.
        outputs, channels: of what is written, read.
        image_rows, image_columns: of the image read, without its border.
        step: 1 or 2: tap (row, column) of cell (i, j) reads pixel
            (step * i + row - top, step * j + column - left).
        top, left, bottom, right: border of the image read.
        padding: what is there; PAD_NONE where no tap of any cell lies outside the image.
        side: 1 or 2: phase a * side + b of cell (i, j) is pixel
            (side * i + a - crop_top, side * j + b - crop_left) of the image written.
        crop_top, crop_left: see ``side``.
        cell_rows, cell_columns: cells, from 0, that cover the image written.
        rows, columns: of the image written; pixels outside are not written.
    """

    taps: Taps
    outputs: int
    channels: int
    image_rows: int
    image_columns: int
    step: int
    top: int
    left: int
    bottom: int
    right: int
    padding: int
    side: int
    crop_top: int
    crop_left: int
    cell_rows: int
    cell_columns: int
    rows: int
    columns: int


@dataclass(frozen=True)
class ConvTaps:
    """A convolution.

    Attributes:
        forward: the convolution.
        input_grad: gradient of the image read, or, where it ``folds``, of that image continued by its border.
        folds: the border is copied from the image: the gradient of a copy is added to that of its pixel.
        top, left, bottom, right, padding: the border that is folded.
        out_rows, out_columns: of the result.
    """

    forward: TapSum
    input_grad: TapSum
    folds: bool
    top: int
    left: int
    bottom: int
    right: int
    padding: int
    out_rows: int
    out_columns: int


def conv_taps(spec: ConvSpec, inputs: int, rows: int, columns: int) -> ConvTaps:
    """The convolution ``spec`` of an image [inputs, rows, columns]."""
    taps, flat = kept_weights(spec, inputs)
    if spec.kind == ConvKind.UPSAMPLE:
        return _up_conv_taps(spec, taps, flat, inputs, rows, columns)
    return _direct_taps(spec, taps, flat, inputs, rows, columns)


def _direct_taps(
    spec: ConvSpec, taps: np.ndarray, flat: np.ndarray, inputs: int, rows: int, columns: int
) -> ConvTaps:
    left, right, top, bottom = spec.border
    stride, box = spec.stride, int(spec.box)
    kernel_rows, kernel_columns = spec.kernel_rows + box, spec.kernel_columns + box  # merged
    padded_rows, padded_columns = rows + top + bottom, columns + left + right
    out_rows = (padded_rows - kernel_rows) // stride + 1
    out_columns = (padded_columns - kernel_columns) // stride + 1
    padding = _FILLED_WITH[spec.padding]
    output, channel, u, v = taps.T
    # What weight u is multiplied with is read by tap u, and, of a box, by tap u + 1.
    places = [(u + du, v + dv) for du in range(box + 1) for dv in range(box + 1)]
    zero = np.zeros_like(u)
    forward = _tap_sum(
        _merged([(output, zero, channel, row, column, flat) for row, column in places]),
        (spec.outputs, out_rows, out_columns),
        (inputs, rows, columns),
        border=(top, left),
        padding=padding,
        step=stride,
    )
    # Pixel stride * i + a of the image with its border is in output i - k by the tap stride * k + a.
    reach_rows, reach_columns = (kernel_rows - 1) // stride, (kernel_columns - 1) // stride
    backward = _merged(
        [
            (
                channel,
                row % stride * stride + column % stride,
                output,
                reach_rows - row // stride,
                reach_columns - column // stride,
                flat,
            )
            for row, column in places
        ]
    )
    folds = padding != kinds.PAD_ZEROS.value and any(spec.border)
    input_grad = _tap_sum(
        backward,
        (inputs, padded_rows, padded_columns) if folds else (inputs, rows, columns),
        (spec.outputs, out_rows, out_columns),
        border=(reach_rows, reach_columns),
        padding=kinds.PAD_ZEROS.value,
        side=stride,
        crop=(0, 0) if folds else (top, left),
    )
    return ConvTaps(forward, input_grad, folds, top, left, bottom, right, padding, out_rows, out_columns)


def _up_conv_taps(
    spec: ConvSpec, taps: np.ndarray, flat: np.ndarray, inputs: int, rows: int, columns: int
) -> ConvTaps:
    """Of the image up-sampled by 2 and continued by one pixel.

    Weight u of row r of the result, r = 2 i + a, meets row (r + u - 1) // 2 of the image: i - 1, i or i + 1.
    The gradient of row k of the image has it from rows r = 2 k + 1 - u and 2 k + 2 - u of the result's.
    """
    padding = _FILLED_WITH[spec.padding]
    image, result = (inputs, rows, columns), (spec.outputs, 2 * rows, 2 * columns)
    output, channel, u, v = taps.T
    forward = [
        (output, np.full_like(u, 2 * a + b), channel, (a + u - 1) // 2 + 1, (b + v - 1) // 2 + 1, flat)
        for a in (0, 1)
        for b in (0, 1)
    ]
    # Row k of the image with its border is row k - 1 of the image: rows 2 k - 3 to 2 k of the gradient.
    backward = [
        (channel, np.zeros_like(u), output, 2 - u + later, 2 - v + beside, flat)
        for later in (0, 1)
        for beside in (0, 1)
    ]
    folds = padding != kinds.PAD_ZEROS.value
    input_grad = _tap_sum(
        _merged(backward),
        (inputs, rows + 2, columns + 2) if folds else image,
        result,
        border=(3, 3),
        padding=kinds.PAD_ZEROS.value,
        step=2,
        crop=(0, 0) if folds else (1, 1),
    )
    return ConvTaps(
        _tap_sum(_merged(forward), result, image, border=(1, 1), padding=padding, side=2),
        input_grad,
        folds,
        *(1, 1, 1, 1),
        padding,
        2 * rows,
        2 * columns,
    )


def _merged(parts: Sequence[tuple[np.ndarray, ...]]) -> Taps:
    """Taps out of (output, phase, channel, row, column, weight), those of one place as one."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    key = np.zeros(len(columns[0]), np.int64)  # one number is sorted much faster than six
    for column in columns:
        key = key * (int(column.max(initial=0)) + 1) + column
    order = np.argsort(key)
    columns = [column[order] for column in columns]
    places, weights = columns[:5], columns[5]
    if len(parts) == 1:
        return Taps._make([*places, weights[:, None]])
    first = np.ones(len(weights), bool)  # of those at one place
    first[1:] = np.any([place[1:] != place[:-1] for place in places], axis=0)
    begins, merged = np.flatnonzero(first), np.cumsum(first) - 1
    together = np.full((len(begins), _MERGED), -1, np.int64)
    together[merged, np.arange(len(weights)) - begins[merged]] = weights
    return Taps._make([*(place[begins] for place in places), together])


def _tap_sum(
    taps: Taps,
    written: tuple[int, int, int],
    read: tuple[int, int, int],
    *,
    border: tuple[int, int],
    padding: int,
    step: int = 1,
    side: int = 1,
    crop: tuple[int, int] = (0, 0),
) -> TapSum:
    """The sum over ``taps`` for cells that begin where the image written does."""
    outside = False
    axes = []
    for place, size, image, before, cut in zip(
        (taps.row, taps.column), written[1:], read[1:], border, crop, strict=True
    ):
        skipped = min(cut // side, before // step)  # cells with no pixel of the image written
        before, cut = before - step * skipped, cut - side * skipped
        cells = -(-(size + cut) // side)
        nearest, farthest = (int(place.min()), int(place.max())) if len(place) else (before, before)
        behind = max(0, step * (cells - 1) + farthest - before - (image - 1))
        outside = outside or nearest < before or behind > 0
        axes.append((before, behind, cut, cells))
    (top, bottom, crop_top, cell_rows), (left, right, crop_left, cell_columns) = axes
    return TapSum(
        taps,
        outputs=written[0],
        channels=read[0],
        image_rows=read[1],
        image_columns=read[2],
        step=step,
        top=top,
        left=left,
        bottom=bottom,
        right=right,
        padding=padding if outside else kinds.PAD_NONE.value,
        side=side,
        crop_top=crop_top,
        crop_left=crop_left,
        cell_rows=cell_rows,
        cell_columns=cell_columns,
        rows=written[1],
        columns=written[2],
    )
