"""Gradients of a convolution's weights: for every tap of a list and every output of its group one sum over cells.

A cell (i, j) of a phase is a pixel of the result, whose gradient [group, cells] meets what the taps read there,
[taps, cells]: a matrix product along the cells. A program has a block of taps of one list and one chunk of the
cells; the sums of the chunks are added when they go back to the flat vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from oes_fast.kernels.chain.conv_taps import TapSum
from oes_fast.kernels.chain.kinds import PAD_NONE, PAD_ZEROS
from oes_fast.kernels.chain.reader import Image, channel_numbers, continued, read_pixels
from oes_fast.kernels.chain.tap_lists import ROW, TapLists
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

_BLOCK = tl.constexpr(6)  # numbers of a block of taps
_GENERAL = (
    "outputs", "channels", "image_rows", "image_columns", "image_stride", "partials_stride", "step", "top", "left",
    "side", "crop_top", "crop_left", "cell_rows", "cell_columns", "rows", "columns", "column_tiles", "tiles",
    "program_tiles", "blocks", "taps",
)  # fmt: skip


@triton.jit(do_not_specialize=_GENERAL)
def weight_grad_kernel(
    partials_ptr, image, grad, blocks_ptr, order_ptr, taps_ptr,
    outputs, channels, image_rows, image_columns, image_pixels, image_stride, partials_stride, step, top, left,
    side, crop_top, crop_left, cell_rows, cell_columns, rows, columns, pixels, column_tiles, tiles, program_tiles,
    blocks, taps,
    GROUP: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, READ: tl.constexpr,
    ACT: tl.constexpr, PAD: tl.constexpr, GRAD_READ: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of a block of taps over a run of tiles of cells, of one network.

    Args:
        partials_ptr: of this convolution, [networks, chunks, taps, GROUP], ``partials_stride`` a network.
        image: the image read; ``image_pixels`` a channel, ``image_stride`` a network, 0 where there is one for all.
        grad: the gradient of the result, ``pixels`` a channel.
        blocks_ptr: first tap, end, group and phase of each block of taps, int32 [blocks, 4].
        column_tiles: tiles of ROWS x COLUMNS cells side by side, of ``tiles``.
        program_tiles: tiles of a chunk.
        taps: of all lists.
        GRAD_READ: how ``grad`` is read.
        WHOLE: every cell of every tile has a pixel in every phase.
        WIDE: the images are larger than 2^31 elements.
    """
    CELLS: tl.constexpr = ROWS * COLUMNS
    dtype = image.y.dtype.element_ty
    block = blocks_ptr + tl.program_id(0) % blocks * _BLOCK
    chunk = tl.program_id(0) // blocks
    network = tl.program_id(2)
    begin, end, group = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    phase, tap_row, tap_column = tl.load(block + 3), tl.load(block + 4), tl.load(block + 5)

    # What does not depend on the cell.
    known = tl.minimum(begin + tl.arange(0, TAPS), end - 1)
    tap = tl.load(order_ptr + known)
    channel = tl.load(taps_ptr + tap * 2)
    numbers = channel_numbers(image, (network * channels + channel)[None, :, None], READ)
    output = network * outputs + tl.minimum(group * GROUP + tl.arange(0, GROUP), outputs - 1)
    grad_numbers = channel_numbers(grad, output[None, :, None], GRAD_READ)
    of_network = network * image_stride
    if WIDE:
        of_network = network.to(tl.int64) * image_stride
        output = output.to(tl.int64)
    plane = (of_network + channel * image_pixels)[None, :, None]
    grad_plane = (output * pixels)[None, :, None]

    image_row, image_column = tap_row - top, tap_column - left
    grad_row, grad_column = phase // side - crop_top, phase % side - crop_left

    first = chunk * program_tiles
    tile_row = first // column_tiles
    tile_column = first % column_tiles
    acc = tl.zeros((TAPS, GROUP), dtype)
    for _ in range(first, tl.minimum(first + program_tiles, tiles)):
        i = tile_row * ROWS + tl.arange(0, ROWS)
        j = tile_column * COLUMNS + tl.arange(0, COLUMNS)
        row, row_inside = continued(i * step + image_row, image_rows, PAD)
        column, column_inside = continued(j * step + image_column, image_columns, PAD)
        rows_there = i < cell_rows
        columns_there = j < cell_columns
        if PAD == PAD_ZEROS:
            rows_there &= row_inside
            columns_there &= column_inside
        at = tl.where(rows_there, row * image_columns, 0)[:, None] + tl.where(columns_there, column, 0)[None, :]
        x = read_pixels(image, numbers, plane + at[:, None, :], columns_there, READ, ACT, PAD_NONE)
        row = i * side + grad_row
        column = j * side + grad_column
        rows_there &= (row >= 0) & (row < rows)
        columns_there &= (column >= 0) & (column < columns)
        at = tl.where(rows_there, row * columns, 0)[:, None] + tl.where(columns_there, column, 0)[None, :]
        inside = rows_there[:, None, None] & columns_there[None, None, :]
        g = read_pixels(grad, grad_numbers, grad_plane + at[:, None, :], inside, GRAD_READ, 0, PAD_ZEROS)
        x = tl.reshape(tl.permute(x, (1, 0, 2)), (TAPS, CELLS))
        g = tl.reshape(tl.permute(g, (0, 2, 1)), (CELLS, GROUP))
        acc = tl.dot(x, g, acc, input_precision=PRECISION, out_dtype=dtype)
        tile_column += 1
        tile_row = tl.where(tile_column == column_tiles, tile_row + 1, tile_row)
        tile_column = tl.where(tile_column == column_tiles, 0, tile_column)
    to = partials_ptr + network.to(tl.int64) * partials_stride + chunk.to(tl.int64) * taps * GROUP
    to += tap[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(to, acc, mask=(begin + tl.arange(0, TAPS) < end)[:, None])
