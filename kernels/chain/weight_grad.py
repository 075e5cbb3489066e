"""Gradients of a convolution's weights: for every tap of a list and output of its group one sum over cells.

A cell (i, j) of a phase is a pixel of the result. What its taps read, [taps, cells], meets its gradient,
[cells, outputs]: a matrix product along the cells. The taps of a program read at one place or a few, so that
the border is a matter of the cells and places alone; it has one chunk of the cells, and the chunks' sums are
added when they go back to the flat vector (:mod:`flat_weights`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.chain.kinds import PAD_NONE, PAD_ZEROS
from oes_fast.kernels.chain.reader import Image, arguments_of, channel_numbers, continued, read_pixels
from oes_fast.kernels.chain.weight_grad_plan import WeightGradPlan
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

_GENERAL = (
    "outputs", "channels", "image_rows", "image_columns", "image_pixels", "image_stride", "partials_stride",
    "step", "top", "left", "side", "crop_top", "crop_left", "cell_rows", "cell_columns", "rows", "columns",
    "pixels", "column_tiles", "tiles", "program_tiles", "blocks", "taps",
)  # fmt: skip


@triton.jit
def _written(cell, cells, side, cut, size, WHOLE: tl.constexpr):
    """(rows, or columns, of the result that cells have, whether they have one)."""
    pixel = cell * side - cut
    there = pixel >= 0
    if not WHOLE:
        there &= (pixel < size) & (cell < cells)
        pixel = tl.where(there, pixel, 0)
    return pixel, there


@triton.jit(do_not_specialize=_GENERAL)
def weight_grad_kernel(
    partials_ptr, written_ptr, image, grad, blocks_ptr, taps_ptr,
    outputs, channels, image_rows, image_columns, image_pixels, image_stride, partials_stride, step, top,
    left, side, crop_top, crop_left, cell_rows, cell_columns, rows, columns, pixels, column_tiles, tiles,
    program_tiles, blocks, taps,
    GROUP: tl.constexpr, PLACES: tl.constexpr, TAPS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, READ: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr,
    GRAD_READ: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of a block of taps and OUTPUTS of a group over a run of tiles of cells, of one network.

    Args:
        partials_ptr: of this convolution, [networks, chunks, taps, GROUP], ``partials_stride`` a network.
        written_ptr: what ``grad`` is read as, or None.
        image: the image read; ``image_pixels`` a channel, ``image_stride`` a network, 0 where all have one.
        grad: the gradient of the result, ``pixels`` a channel.
        blocks_ptr: see WeightGradPlan.blocks.
        column_tiles: tiles of ROWS x COLUMNS cells side by side, of ``tiles``.
        program_tiles: tiles of a chunk.
        taps: of all lists.
        GRAD_READ: how ``grad`` is read.
        WHOLE: every cell of every tile has a pixel of the result in every phase.
        WIDE: an image has 2^31 elements or more.
    """
    CELLS: tl.constexpr = ROWS * COLUMNS
    MASK: tl.constexpr = PAD_NONE if WHOLE else PAD_ZEROS
    dtype = image.y.dtype.element_ty
    block = blocks_ptr + tl.program_id(0) % blocks * (3 + 4 * PLACES)
    chunk = tl.program_id(0) // blocks
    network = tl.program_id(2)
    first_output, phase, writes = tl.load(block), tl.load(block + 1), tl.load(block + 2) != 0
    cut_rows, cut_columns = crop_top - phase // side, crop_left - phase % side

    # What does not depend on the cells.
    block += 3 + 4 * tl.arange(0, PLACES)
    begin, end = tl.load(block)[:, None], tl.load(block + 1)[:, None]
    tap_row, tap_column = tl.load(block + 2) - top, tl.load(block + 3) - left
    tap = begin + tl.arange(0, TAPS)[None, :]
    channel = tl.load(taps_ptr + tl.where(tap < end, tap, begin) * 2)
    numbers = channel_numbers(image, (network * channels + channel)[None, :, :, None], READ)
    output = first_output + tl.arange(0, OUTPUTS)
    known = output < outputs
    output = network * outputs + tl.minimum(output, outputs - 1)
    grad_numbers = channel_numbers(grad, output[None, :, None], GRAD_READ)
    of_network = network * image_stride
    if WIDE:
        of_network = network.to(tl.int64) * image_stride
        channel = channel.to(tl.int64)
        output = output.to(tl.int64)
    plane = (of_network + channel * image_pixels)[None, :, :, None]
    grad_plane = (output * pixels)[None, :, None]

    first = chunk * program_tiles
    tile_row = first // column_tiles
    tile_column = first % column_tiles
    acc = tl.zeros((PLACES * TAPS, OUTPUTS), dtype)
    for _ in range(first, tl.minimum(first + program_tiles, tiles)):
        i = tile_row * ROWS + tl.arange(0, ROWS)
        j = tile_column * COLUMNS + tl.arange(0, COLUMNS)
        # The image first, which takes fewer registers. Cells behind the last read what that one does.
        row, column = i, j
        if not WHOLE:
            row = tl.minimum(i, cell_rows - 1)
            column = tl.minimum(j, cell_columns - 1)
        row, row_inside = continued((row * step)[:, None] + tap_row[None, :], image_rows, PAD)
        column, column_inside = continued((column * step)[None, :] + tap_column[:, None], image_columns, PAD)
        at = (row * image_columns)[:, :, None] + column[None, :, :]
        inside = row_inside[:, :, None, None] & column_inside[None, :, None, :]
        x = read_pixels(image, numbers, plane + at[:, :, None, :], inside, READ, ACT, PAD)
        row, row_there = _written(i, cell_rows, side, cut_rows, rows, WHOLE)
        column, column_there = _written(j, cell_columns, side, cut_columns, columns, WHOLE)
        at = (row * columns)[:, None] + column[None, :]
        there = row_there[:, None, None] & column_there[None, None, :]
        g = read_pixels(grad, grad_numbers, grad_plane + at[:, None, :], there, GRAD_READ, 0, MASK)
        if written_ptr is not None and writes:
            tl.store(written_ptr + grad_plane + at[:, None, :], g, mask=there & known[None, :, None])
        x = tl.reshape(tl.permute(x, (1, 2, 0, 3)), (PLACES * TAPS, CELLS))
        g = tl.reshape(tl.permute(g, (0, 2, 1)), (CELLS, OUTPUTS))
        acc = tl.dot(x, g, acc, input_precision=PRECISION, out_dtype=dtype)
        tile_column += 1
        tile_row = tl.where(tile_column == column_tiles, tile_row + 1, tile_row)
        tile_column = tl.where(tile_column == column_tiles, 0, tile_column)
    to = partials_ptr + network.to(tl.int64) * partials_stride + chunk.to(tl.int64) * taps * GROUP
    to += first_output % GROUP + (tap * GROUP)[:, :, None] + tl.arange(0, OUTPUTS)[None, None, :]
    tl.store(to, tl.reshape(acc, (PLACES, TAPS, OUTPUTS)), mask=(tap < end)[:, :, None])


def weight_grad(
    plan: WeightGradPlan,
    image: Image,
    grad: Image,
    partials: Tensor,
    begin: int,
    written: Tensor | None = None,
) -> None:
    """One launch: the partial sums of a convolution.

    Args:
        plan: of the convolution.
        image: what it reads, [networks, channels, rows, columns].
        grad: the gradient of its result, [networks, outputs, rows, columns].
        partials: of the chain, [networks, size], written; those of this convolution, [plan.chunks, taps,
            group], begin at ``begin``. Taps without weights, which fill the lists, are left as they are.
        begin: see ``partials``.
        written: gets the gradient as it is read, of outputs of groups that have a weight: who reads it next
            needs neither its norm's numbers nor the result. None where nobody does.
    """
    spec, lists, shape = plan.spec, plan.lists, plan.shape
    networks = partials.shape[0]
    blocks = len(plan.blocks)
    if blocks == 0:
        return
    with on_device_of(partials):
        weight_grad_kernel[(blocks * plan.chunks, 1, networks)](
            partials[:, begin:],
            written,
            image.reader,
            grad.reader,
            plan.blocks,
            lists.taps,
            **arguments_of(spec, image, networks),
            partials_stride=partials.shape[1],
            cell_rows=spec.cell_rows,
            pixels=spec.rows * spec.columns,
            column_tiles=plan.column_tiles,
            tiles=plan.tiles,
            program_tiles=plan.program_tiles,
            blocks=blocks,
            taps=lists.count,
            GROUP=lists.group,
            PLACES=shape.places,
            TAPS=shape.taps,
            OUTPUTS=shape.outputs,
            ROWS=shape.rows,
            COLUMNS=shape.columns,
            GRAD_READ=grad.read,
            WHOLE=plan.whole,
            PRECISION=plan.precision,
            num_warps=shape.warps,
            num_stages=1,
            enable_fp_fusion=True,
        )
