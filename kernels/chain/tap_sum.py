"""Sums over taps: the forward pass of a convolution and the gradient of its input.

A cell (i, j) has side x side sums for each output, its phases: a matrix product of the taps' weights, [group,
taps], and what the taps read, [taps, cells]. What follows a convolution is done while the sums are at hand:
moments for the norm behind it, the derivative of the activation before it, or the image with its error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate, activate_grad, output_activate
from oes_fast.kernels.chain.finalise import finalise, is_last
from oes_fast.kernels.chain.finalise_shift import shift_of
from oes_fast.kernels.chain.kinds import FINALISE_NONE, LOSS, PARTIAL_NUMBERS, PROLOGUE_NUMBERS
from oes_fast.kernels.chain.reader import Image, arguments_of, channel_numbers, continued, read_pixels
from oes_fast.kernels.chain.tap_lists import ROW
from oes_fast.kernels.chain.tap_sum_plan import STAGES, TapSumPlan
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

# What is done with the sums.
STORE = tl.constexpr(0)
MOMENTS = tl.constexpr(1)  # of a convolution's result, for the norm behind it
ACT_GRAD = tl.constexpr(2)  # the gradient goes through the activation; sums for the norm before it
SECOND_SUMS = tl.constexpr(3)  # sums for the second norm
IMAGE = tl.constexpr(4)  # the image that leaves the network, with its error to a target

_ROW = tl.constexpr(ROW)
_GENERAL = (
    "outputs", "channels", "image_rows", "image_columns", "image_stride", "packed_stride", "tickets_stride",
    "step", "top", "left", "side", "crop_top", "crop_left", "cell_columns", "cells", "rows", "columns",
    "tiles", "program_tiles", "chunks",
)  # fmt: skip


class Epilogue(NamedTuple):
    """What the sums meet, tensors where the epilogue has them and else None.

    Attributes:
        y: ACT_GRAD, SECOND_SUMS: [networks, outputs, rows, columns], of the block whose gradient this is.
        numbers: of that block, [networks, outputs, PROLOGUE_NUMBERS].
        slope: of its activation, or of the image's, a constant of the kernel.
        act: of that block, ACT_LEAKY and the like, or of the image, OUT_LEAKY and the like.
        image: IMAGE: activated, [networks, outputs, rows, columns].
        target: IMAGE: the same, or None.
        weight: IMAGE: of each squared error to it, the same, or None.
    """

    y: Tensor | None
    numbers: Tensor | None
    slope: Any
    act: Any
    image: Tensor | None
    target: Tensor | None
    weight: Tensor | None = None


NO_EPILOGUE = Epilogue(None, None, tl.constexpr(1.0), tl.constexpr(0), None, None)


@triton.jit
def _sums(
    reader, packed_ptr, taps_ptr, first, last, channel, pixels, image, cell, row, column, image_rows,
    image_columns, GROUP: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, READ: tl.constexpr,
    ACT: tl.constexpr, PAD: tl.constexpr, POINTWISE: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[GROUP, BLOCK] over the taps from ``first`` to ``last``.

    Args:
        channel: the image's first, counted through all networks.
        pixels: of a channel.
        image: where the image begins from ``reader.y`` on.
        cell: [BLOCK]; ``row`` and ``column`` are where tap (0, 0) of each reads.
    """
    dtype = reader.y.dtype.element_ty
    g = tl.arange(0, GROUP)
    acc = tl.zeros((GROUP, BLOCK), dtype)
    for begin in range(first, last, TAPS):
        tap = begin + tl.arange(0, TAPS)
        of_tap = tl.load(taps_ptr + 2 * tap)
        numbers = channel_numbers(reader, (channel + of_tap)[:, None], READ)
        if WIDE:
            of_tap = of_tap.to(tl.int64)
        inside = None
        if POINTWISE:
            at = cell
        else:
            place = tl.load(taps_ptr + 2 * begin + 1)  # of all these taps
            i, row_inside = continued(place // _ROW + row, image_rows, PAD)
            j, column_inside = continued(place % _ROW + column, image_columns, PAD)
            at = i * image_columns + j
            inside = (row_inside & column_inside)[None, :]
        at = (image + of_tap * pixels)[:, None] + at[None, :]
        x = read_pixels(reader, numbers, at, inside, READ, ACT, PAD)
        weight = tl.load(packed_ptr + tap[None, :] * GROUP + g[:, None])
        acc = tl.dot(weight, x, acc, input_precision=PRECISION, out_dtype=dtype)
    return acc


@triton.jit
def _after(
    acc, epilogue, finish, out_ptr, output, network, at, inside, inside_count, outputs, pixels,
    EPILOGUE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Stores the sums [GROUP, BLOCK]; (mean or first sum, squares or second sum) of each output, [GROUP].

    Args:
        at: where the cells' pixels lie in a plane, [BLOCK].
        inside: which cells have one; ``inside_count``: how many.
    """
    there = inside[None, :] & (output < outputs)[:, None]
    channel = network * outputs + output
    plane = channel * pixels
    if WIDE:
        plane = channel.to(tl.int64) * pixels
    place = plane[:, None] + at[None, :]
    first = tl.sum(acc * 0, axis=1)
    second = first
    if EPILOGUE == MOMENTS:
        first = tl.sum(tl.where(there, acc, 0.0), axis=1) / tl.maximum(inside_count, 1)
        off = tl.where(there, acc - first[:, None], 0.0)
        second = tl.sum(off * off, axis=1)
    elif EPILOGUE != STORE and EPILOGUE != IMAGE:
        known = output < outputs
        of = epilogue.numbers + channel * PROLOGUE_NUMBERS
        y = tl.load(epilogue.y + place, mask=there, other=0.0)
        mean = tl.load(of, mask=known, other=0.0)[:, None]
        scale = tl.load(of + 1, mask=known, other=0.0)[:, None]
        shift = tl.load(of + 2, mask=known, other=0.0)[:, None]
        normalised = scale * (y - mean) + shift
        if EPILOGUE == ACT_GRAD:
            acc *= activate_grad(normalised, epilogue.slope, epilogue.act)
            off = y - mean
        else:
            off = (
                activate(normalised, epilogue.slope, epilogue.act)
                - tl.load(of + 3, mask=known, other=0.0)[:, None]
            )
        first = tl.sum(tl.where(there, acc, 0.0), axis=1)
        second = tl.sum(tl.where(there, acc * off, 0.0), axis=1)
    elif EPILOGUE == IMAGE:
        acc += shift_of(finish, network, output)[:, None]
        seen = output_activate(acc, epilogue.slope, epilogue.act)
        tl.store(epilogue.image + place, seen, mask=there)
        if epilogue.target is not None:
            error = seen - tl.load(epilogue.target + place, mask=there, other=0.0)
            squares = error * error
            if epilogue.weight is not None:
                squares *= tl.load(epilogue.weight + place, mask=there, other=0.0)
            first = tl.sum(tl.where(there, squares, 0.0), axis=1)
    tl.store(out_ptr + place, acc, mask=there)
    return first, second


@triton.jit
def _finished(
    acc, state, epilogue, finish, out_ptr, output, network, cell, cells, cell_columns, phase, side, crop_top,
    crop_left, outputs, rows, columns, EPILOGUE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What :func:`_after` does for the cells [BLOCK]; ``what it gives added to ``state``, float64.

    The state is (count, mean, squares) of MOMENTS, merged as in Chan, Golub and LeVeque 1983, and else (none,
    first sum, second sum).
    """
    count, mean, squares = state
    row = cell // cell_columns * side + phase // side - crop_top
    column = cell % cell_columns * side + phase % side - crop_left
    inside = (cell < cells) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    here = tl.sum(inside.to(tl.int32), axis=0)
    at = tl.where(inside, row * columns + column, 0)
    first, second = _after(
        acc, epilogue, finish, out_ptr, output, network, at, inside, here, outputs, rows * columns, EPILOGUE,
        WIDE,
    )  # fmt: skip
    first = first.to(tl.float64)
    second = second.to(tl.float64)
    if EPILOGUE == MOMENTS:
        n = here.to(tl.float64)
        total = tl.maximum(count + n, 1)
        off = first - mean
        mean += off * (n / total)
        squares += second + off * off * (count * n / total)
        count += n
    else:
        mean += first
        squares += second
    return count, mean, squares


@triton.jit(do_not_specialize=_GENERAL)
def tap_sum_kernel(
    out_ptr, reader, epilogue, finish, packed_ptr, begins_ptr, taps_ptr, tickets_ptr, workspace_ptr,
    outputs, channels, image_rows, image_columns, image_pixels, image_stride, packed_stride, tickets_stride,
    step, top, left, side, crop_top, crop_left, cell_columns, cells, rows, columns, tiles, program_tiles,
    chunks,
    GROUP: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, READ: tl.constexpr,
    ACT: tl.constexpr, PAD: tl.constexpr, POINTWISE: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, EPILOGUE: tl.constexpr, FINALISE: tl.constexpr, SECOND: tl.constexpr,
    ACT_BEHIND: tl.constexpr,
):  # fmt: skip
    """A run of tiles of cells for one list of taps, of one network.

    Args:
        packed_ptr: weights of this convolution, [networks, taps, GROUP], ``packed_stride`` a network.
        tickets_ptr: int32, ``tickets_stride`` a network: one of each group, then where taps are split one of
            each list and tile; all 0 before and after.
        workspace_ptr: where taps are split, [networks, lists, tiles, SPLITS, GROUP, BLOCK].
        image_pixels: of a channel of the image read.
        image_stride: from one network's image to the next one's, 0 where there is one for all.
        program_tiles: tiles of a program, 1 where taps are split.
        chunks: partial sums of an output: one of each program and phase.
        ACT: activation of the image read.
        ACT_BEHIND: of the block whose norm is finished.
    """
    block = tl.program_id(0)
    listed = tl.program_id(1) // SPLITS
    split = tl.program_id(1) % SPLITS
    network = tl.program_id(2)
    phases = side * side
    group = listed // phases
    phase = listed % phases
    g = tl.arange(0, GROUP)
    output = group * GROUP + g
    tickets = tickets_ptr + network * tickets_stride
    packed = packed_ptr + network.to(tl.int64) * packed_stride
    image = network * image_stride
    if WIDE:
        image = network.to(tl.int64) * image_stride
    first = tl.load(begins_ptr + listed)
    last = tl.load(begins_ptr + listed + 1)
    if SPLITS > 1:
        share = tl.cdiv(last - first, TAPS * SPLITS) * TAPS
        first = tl.minimum(first + split * share, last)
        last = tl.minimum(first + share, last)
    zero = tl.zeros((GROUP,), tl.float64)
    state = (0.0 * tl.sum(zero, axis=0), zero, zero)
    arrived = SPLITS == 1
    for tile in range(block * program_tiles, tl.minimum((block + 1) * program_tiles, tiles)):
        cell = tile * BLOCK + tl.arange(0, BLOCK)
        known = tl.minimum(cell, cells - 1)
        acc = _sums(
            reader, packed, taps_ptr, first, last, network * channels, image_pixels, image,
            known, known // cell_columns * step - top, known % cell_columns * step - left, image_rows,
            image_columns, GROUP, TAPS, BLOCK, READ, ACT, PAD, POINTWISE, WIDE, PRECISION,
        )  # fmt: skip
        if SPLITS == 1:
            state = _finished(
                acc, state, epilogue, finish, out_ptr, output, network, cell, cells, cell_columns, phase,
                side, crop_top, crop_left, outputs, rows, columns, EPILOGUE, WIDE,
            )  # fmt: skip
        else:
            # Who comes last adds the parts in their order.
            lists = tl.num_programs(1) // SPLITS
            of_tile = (network.to(tl.int64) * lists + listed) * tiles + tile
            parts = workspace_ptr + of_tile * (SPLITS * GROUP * BLOCK)
            parts += g[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            tl.store(parts + split * (GROUP * BLOCK), acc)
            arrived = is_last(tickets + lists // phases + listed * tiles + tile, SPLITS)
            if arrived:
                acc = tl.load(parts, cache_modifier=".cg")
                for part in range(1, SPLITS):
                    acc += tl.load(parts + part * (GROUP * BLOCK), cache_modifier=".cg")
                state = _finished(
                    acc, state, epilogue, finish, out_ptr, output, network, cell, cells, cell_columns,
                    phase, side, crop_top, crop_left, outputs, rows, columns, EPILOGUE, WIDE,
                )  # fmt: skip
    if FINALISE != FINALISE_NONE and arrived:
        chunk = (network.to(tl.int64) * outputs + output) * chunks + block * phases + phase
        partial = finish.partials + chunk * PARTIAL_NUMBERS
        there = output < outputs
        count, mean, squares = state
        if EPILOGUE == MOMENTS:
            tl.store(partial, zero + count, mask=there)
            tl.store(partial + 1, mean, mask=there)
            tl.store(partial + 2, squares, mask=there)
        else:
            tl.store(partial, mean, mask=there)
            tl.store(partial + 1, squares, mask=there)
        programs = tl.num_programs(0) * phases
        if FINALISE == LOSS:  # of all outputs together
            programs *= tl.num_programs(1) // (SPLITS * phases)
            group = 0
        if is_last(tickets + group, programs):
            finalise(finish, network, group * GROUP, GROUP, FINALISE, SECOND, ACT_BEHIND)


def tap_sum(
    plan: TapSumPlan,
    image: Image,
    out: Tensor,
    packed: Tensor,
    begin: int,
    *,
    epilogue: tl.constexpr = STORE,
    of: Epilogue = NO_EPILOGUE,
    finalise: int = 0,
    finish: Any = None,
    second: bool = False,
    act_behind: int = 0,
    tickets: Tensor,
    workspace: Tensor | None = None,
) -> None:
    """One launch.

    Args:
        plan: of the convolution.
        image: what is read, [networks, channels, rows, columns].
        out: [networks, outputs, rows, columns], written.
        packed: weights of the chain, [networks, size]; those of this convolution begin at ``begin``.
        begin: see ``packed``.
        epilogue: STORE, MOMENTS and the like.
        of: what it takes.
        finalise: what the last program of a group of outputs does, FINALISE_NONE and the like.
        finish: what it takes; with IMAGE in any case.
        second: it finishes the second norm.
        act_behind: activation of the block whose norm it finishes.
        tickets: int32 [networks, at least plan.tickets], zeros.
        workspace: [networks * plan.workspace] at least, of the weights' dtype; None where that is 0.
    """
    spec, lists, shape = plan.spec, plan.lists, plan.shape
    networks = packed.shape[0]
    grid = (plan.programs, lists.groups * lists.phases * shape.splits, networks)
    with on_device_of(out):
        tap_sum_kernel[grid](
            out,
            image.reader,
            of,
            finish,
            packed[:, begin:],
            lists.begins,
            lists.taps,
            tickets,
            workspace,
            **arguments_of(spec, image, networks),
            packed_stride=packed.shape[1],
            tickets_stride=tickets.shape[-1],
            cells=spec.cell_rows * spec.cell_columns,
            tiles=plan.tiles,
            program_tiles=shape.program_tiles,
            chunks=plan.chunks,
            GROUP=lists.group,
            TAPS=shape.taps,
            BLOCK=shape.block,
            SPLITS=shape.splits,
            POINTWISE=plan.pointwise,
            PRECISION=plan.precision,
            EPILOGUE=epilogue.value,
            FINALISE=finalise,
            SECOND=second,
            ACT_BEHIND=act_behind,
            num_warps=shape.warps,
            num_stages=STAGES,
            enable_fp_fusion=True,
        )
