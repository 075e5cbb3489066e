"""Passes over an image of their own: what of a norm, or of a border, no convolution beside it can do.

A program takes a chunk of one channel. Where the gradient is that of the image continued over a border, what
lies on the border is added to what it is a copy of as it is read.
"""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate, activate_grad, output_activate, output_grad
from oes_fast.kernels.chain.finalise import finalise, is_last
from oes_fast.kernels.chain.fold import Fold, folded
from oes_fast.kernels.chain.kinds import (
    FINALISE_NONE,
    GRAD_NUMBERS,
    PARTIAL_NUMBERS,
    PROLOGUE_NUMBERS,
    SHIFT_BACKWARD,
)
from oes_fast.kernels.philox import load, on_device_of, store
from torch import Tensor

PASS_SECOND_MOMENTS = tl.constexpr(0)  # of the activated image, for the second norm
PASS_SECOND_SUMS = tl.constexpr(1)  # for the gradient of the second norm
PASS_ACT_GRAD = tl.constexpr(
    2
)  # through the second norm if there is one, and the activation; sums for the first
PASS_IMAGE = tl.constexpr(3)  # the image that leaves the network, from a norm
PASS_IMAGE_GRAD = tl.constexpr(4)  # of a last convolution's result, from that of the image or its error
PASS_FOLD = tl.constexpr(5)  # a border is folded, and that is all

MOST_CHUNKS = 32  # that the last program adds up in one round
BLOCK = 1024  # pixels at once, of four warps
_SMALLEST = 128
_WIDEST = 128  # columns at once where there is a border


@triton.jit
def _numbers(numbers_ptr, of, WITH_SECOND: tl.constexpr):
    """(mean, scale, shift, mean2, scale2, shift2) of a channel; the last three once they are written."""
    at = numbers_ptr + of * PROLOGUE_NUMBERS
    mean, scale, shift = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    if WITH_SECOND:
        return mean, scale, shift, tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)
    return mean, scale, shift, mean, scale, shift


@triton.jit
def _derived(y, grad, numbers, of_second, SLOPE: tl.constexpr, KIND: tl.constexpr, ACT: tl.constexpr):
    """(gradient, what it is multiplied by in the second sum) of SECOND_SUMS and ACT_GRAD.

    Args:
        of_second: (mean, a, b, c) of the second norm's gradient, or None.
    """
    mean, scale, shift, mean2, _scale2, _shift2 = numbers
    normalised = scale * (y - mean) + shift
    if KIND == PASS_SECOND_SUMS:
        return grad, activate(normalised, SLOPE, ACT) - mean2
    if of_second is not None:
        seen_mean, a, b, c = of_second
        grad = a * grad + (b * (activate(normalised, SLOPE, ACT) - seen_mean) + c)
    return grad * activate_grad(normalised, SLOPE, ACT), y - mean


@triton.jit
def _finish(
    finish, tickets_ptr, first, second, of, channel, chunk, network, channels, chunks, count, pivot,
    KIND: tl.constexpr, COUNT: tl.constexpr, FINALISE: tl.constexpr, ACT_BEHIND: tl.constexpr,
):  # fmt: skip
    """The chunk's sums are stored, and finished by who stores the last.

    Args:
        first, second: sums over the chunk's pixels; of SECOND_MOMENTS about ``pivot``.
        count: pixels of the chunk.
    """
    first = first.to(tl.float64)
    second = second.to(tl.float64)
    partial = finish.partials + (of * chunks + chunk) * PARTIAL_NUMBERS
    if KIND == PASS_SECOND_MOMENTS:
        n = count.to(tl.float64)
        some = tl.maximum(n, 1.0)
        tl.store(partial, n)
        tl.store(partial + 1, pivot.to(tl.float64) + first / some)
        tl.store(partial + 2, second - first * first / some)
    else:
        tl.store(partial, first)
        tl.store(partial + 1, second)
    group = channel // COUNT
    of_group = tl.minimum(channels - group * COUNT, COUNT)
    if is_last(tickets_ptr + network.to(tl.int64) * channels + group, of_group * chunks):
        finalise(finish, network, group * COUNT, COUNT, FINALISE, KIND != PASS_ACT_GRAD, ACT_BEHIND)


@triton.jit(do_not_specialize=("channels", "chunks", "rounds"))
def norm_pass_kernel(
    y_ptr, grad_ptr, out_ptr, numbers_ptr, grad_numbers_ptr, target_ptr, weight_ptr, finish, tickets_ptr,
    pixels, channels, chunks, rounds,
    SLOPE: tl.constexpr, KIND: tl.constexpr, ACT: tl.constexpr, SECOND: tl.constexpr,
    FINALISE: tl.constexpr, ACT_BEHIND: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """A chunk of a channel, whose pixels lie one behind the other: ``rounds`` blocks of them.

    Args:
        grad_numbers_ptr: of the second norm, or None.
        weight_ptr: of each squared error to the target, or None.
        WHOLE: there are no blocks but whole ones.
        COUNT: channels that share a ticket.
    """
    chunk = tl.program_id(0)
    channel = tl.program_id(1)
    network = tl.program_id(2)
    of = network.to(tl.int64) * channels + channel
    plane = of * pixels
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    first = tl.zeros((BLOCK,), dtype)
    second = tl.zeros((BLOCK,), dtype)
    begin = chunk * (rounds * BLOCK)
    end = tl.minimum(begin + rounds * BLOCK, pixels)
    of_second = None
    if KIND != PASS_IMAGE_GRAD:
        numbers = _numbers(numbers_ptr, of, SECOND or KIND == PASS_SECOND_SUMS)
        if grad_numbers_ptr is not None:
            at = grad_numbers_ptr + of * GRAD_NUMBERS
            of_second = (tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3))
    pivot = tl.full((), 0.0, dtype)
    if KIND == PASS_SECOND_MOMENTS:
        pivot = tl.load(y_ptr + plane + tl.minimum(begin, pixels - 1))
        pivot = activate(numbers[1] * (pivot - numbers[0]) + numbers[2], SLOPE, ACT)
    factor = 2.0 / (channels.to(dtype) * tl.full((), pixels, dtype))
    for block in range(begin, end, BLOCK):
        i = block + tl.arange(0, BLOCK)
        inside = i < pixels
        y = load(y_ptr + plane, i, pixels, WHOLE)
        if KIND == PASS_SECOND_MOMENTS:
            a = activate(numbers[1] * (y - numbers[0]) + numbers[2], SLOPE, ACT) - pivot
            b = a * a
        elif KIND == PASS_IMAGE:
            a = activate(numbers[1] * (y - numbers[0]) + numbers[2], SLOPE, ACT)
            if SECOND:
                a = numbers[4] * (a - numbers[3]) + numbers[5]
            store(out_ptr + plane, i, a, pixels, WHOLE)
        elif KIND == PASS_IMAGE_GRAD:
            if grad_ptr is None:
                error = output_activate(y, SLOPE, ACT) - load(target_ptr + plane, i, pixels, WHOLE)
                a = error * factor * output_grad(y, SLOPE, ACT)
                if weight_ptr is not None:
                    a *= load(weight_ptr + plane, i, pixels, WHOLE)
            else:
                a = load(grad_ptr + plane, i, pixels, WHOLE) * output_grad(y, SLOPE, ACT)
            store(out_ptr + plane, i, a, pixels, WHOLE)
        else:
            grad = load(grad_ptr + plane, i, pixels, WHOLE)
            a, b = _derived(y, grad, numbers, of_second, SLOPE, KIND, ACT)
            b *= a
            if KIND == PASS_ACT_GRAD:
                store(out_ptr + plane, i, a, pixels, WHOLE)
        if FINALISE != FINALISE_NONE:
            first += a if WHOLE else tl.where(inside, a, 0.0)
            if KIND != PASS_IMAGE_GRAD:
                second += b if WHOLE else tl.where(inside, b, 0.0)
    if FINALISE != FINALISE_NONE:
        _finish(
            finish, tickets_ptr, tl.sum(first, axis=0), tl.sum(second, axis=0), of, channel, chunk, network,
            channels, chunks, tl.maximum(end - begin, 0), pivot, KIND, COUNT, FINALISE, ACT_BEHIND,
        )  # fmt: skip


@triton.jit(do_not_specialize=("channels", "chunks", "chunk_rows", "rows", "top", "left", "bottom", "right"))
def fold_pass_kernel(
    y_ptr, grad_ptr, out_ptr, numbers_ptr, grad_numbers_ptr, finish, tickets_ptr,
    channels, chunks, chunk_rows, rows, columns, top, left, bottom, right,
    SLOPE: tl.constexpr, KIND: tl.constexpr, ACT: tl.constexpr, PAD: tl.constexpr, FINALISE: tl.constexpr,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """``chunk_rows`` rows of a channel, in tiles of ROWS x COLUMNS; the gradient is folded as it is read.

    A tile is a vector: in two dimensions the compiler would take pixels that are read backwards in another
    order than the rest, and turn them around in shared memory.
    """
    chunk = tl.program_id(0)
    channel = tl.program_id(1)
    network = tl.program_id(2)
    of = network.to(tl.int64) * channels + channel
    plane = of * rows * columns
    dtype: tl.constexpr = grad_ptr.dtype.element_ty
    grad_plane = grad_ptr + of * ((top + rows + bottom) * (left + columns + right))
    first = tl.zeros((ROWS * COLUMNS,), dtype)
    second = tl.zeros((ROWS * COLUMNS,), dtype)
    of_tile = tl.arange(0, ROWS * COLUMNS)
    of_second = None
    if KIND != PASS_FOLD:
        numbers = _numbers(numbers_ptr, of, KIND == PASS_SECOND_SUMS)
        if grad_numbers_ptr is not None:
            at = grad_numbers_ptr + of * GRAD_NUMBERS
            of_second = (tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3))
    begin = chunk * chunk_rows
    end = tl.minimum(begin + chunk_rows, rows)
    for first_column in range(0, columns, COLUMNS):
        column = first_column + of_tile % COLUMNS
        for first_row in range(begin, end, ROWS):
            row = first_row + of_tile // COLUMNS
            there = (row < end) & (column < columns)
            near = (first_row <= top) | (first_row + ROWS > rows - 1 - bottom)
            pixel = plane + row * columns + column
            if KIND != PASS_FOLD:
                y = tl.load(y_ptr + pixel, mask=there, other=0.0)
            grad = folded(
                grad_plane, there, row, column, near, top, left, bottom, right, rows, columns, PAD, COPIES
            )
            if KIND != PASS_FOLD:
                grad, b = _derived(y, grad, numbers, of_second, SLOPE, KIND, ACT)
                if of_second is not None:  # elsewhere nothing comes of no gradient
                    grad = tl.where(there, grad, 0.0)
                first += grad
                second += grad * b
            tl.store(out_ptr + pixel, grad, mask=there)
    if FINALISE != FINALISE_NONE:
        _finish(
            finish, tickets_ptr, tl.sum(first, axis=0), tl.sum(second, axis=0), of, channel, chunk, network,
            channels, chunks, end, 0, KIND, COUNT, FINALISE, 0,
        )  # fmt: skip


def pass_chunks(pixels: int) -> int:
    """Partial sums that a pass over so many pixels leaves of a channel."""
    return min(MOST_CHUNKS, triton.cdiv(pixels, BLOCK))


def _together(finalise: int) -> bool:
    """Whether one program finishes all channels, where else each channel's last does: sooner, in parallel."""
    interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"  # it pays by the operation
    return interpreted or finalise == SHIFT_BACKWARD.value


def norm_pass(
    kind: tl.constexpr,
    *,
    y: Tensor | None = None,
    grad: Tensor | None = None,
    out: Tensor | None = None,
    numbers: Tensor | None = None,
    grad_numbers: Tensor | None = None,
    target: Tensor | None = None,
    weight: Tensor | None = None,
    slope: tl.constexpr | float = 1.0,
    act: int = 0,
    second: bool = False,
    fold: Fold | None = None,
    finalise: int = 0,
    finish: Any = None,
    act_behind: int = 0,
    tickets: Tensor | None = None,
) -> None:
    """One launch over an image [N, C, H, W]: N networks, up to 65535 of them and of channels.

    Tensors are contiguous and of T, float32 or float64.

    ============== ==================================================== ===============
    kind           takes, and writes                                    finalise
    ============== ==================================================== ===============
    SECOND_MOMENTS y, numbers                                           NORM_FORWARD
    SECOND_SUMS    y, numbers, grad; with ``fold`` writes out           NORM_BACKWARD
    ACT_GRAD       y, numbers, grad, grad_numbers; writes out           NORM_BACKWARD
    IMAGE          y, numbers, second; writes out                       none
    IMAGE_GRAD     y, grad or else target, weight; writes out           SHIFT_BACKWARD or none
    FOLD           grad, fold; writes out                               none
    ============== ==================================================== ===============

    Args:
        kind: PASS_SECOND_MOMENTS and the like.
        y: a convolution's own result, [N, C, H, W].
        grad: of the image, [N, C, H, W], or with ``fold`` [N, C, top + H + bottom, left + W + right].
        out: [N, C, H, W]; may be ``grad`` where nothing is folded.
        numbers: prologue of the block, [N, C, PROLOGUE_NUMBERS].
        grad_numbers: of the second norm, [N, C, GRAD_NUMBERS]; None for one norm.
        target: [N, C, H, W].
        weight: of each squared error to it, [N, C, H, W], or None.
        slope: of the activation, a constant of the kernel.
        act: activation behind the first norm, ACT_LEAKY and the like; of IMAGE_GRAD OUT_LEAKY and the like.
        second: IMAGE: a second norm follows.
        fold: border of ``grad``, narrower than the image; of SECOND_SUMS, ACT_GRAD and FOLD.
        finalise: FINALISE_NONE, or what the table says.
        finish: its arguments, with partials [N, C, pass_chunks(H * W), 3].
        act_behind: activation of the constants, see ``finalise.finalise``.
        tickets: int32, at least N * C elements, zeros before and after; None without ``finalise``.
    """
    image = out if y is None else y
    assert image is not None
    networks, channels, rows, columns = image.shape
    pixels = rows * columns
    chunks = pass_chunks(pixels)
    constants = {
        "SLOPE": float(getattr(slope, "value", slope)),
        "KIND": kind.value,
        "ACT": act,
        "FINALISE": finalise,
        "COUNT": triton.next_power_of_2(channels) if _together(finalise) else 1,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    grid = (chunks, channels, networks)
    with on_device_of(image):
        if fold is None:
            block = min(BLOCK, max(_SMALLEST, triton.next_power_of_2(pixels)))
            norm_pass_kernel[grid](
                y,
                grad,
                out,
                numbers,
                grad_numbers,
                target,
                weight,
                finish,
                tickets,
                pixels=pixels,
                channels=channels,
                chunks=chunks,
                rounds=triton.cdiv(triton.cdiv(pixels, chunks), block),
                SECOND=second,
                ACT_BEHIND=act_behind,
                BLOCK=block,
                WHOLE=pixels % block == 0,
                **constants,
            )
            return
        across = min(_WIDEST, triton.next_power_of_2(columns))
        # Of half a block: the copies take registers.
        down = min(BLOCK // 2 // across, triton.next_power_of_2(rows))
        fold_pass_kernel[grid](
            y,
            grad,
            out,
            numbers,
            grad_numbers,
            finish,
            tickets,
            channels=channels,
            chunks=chunks,
            chunk_rows=triton.cdiv(triton.cdiv(rows, chunks), down) * down,
            rows=rows,
            columns=columns,
            top=fold.top,
            left=fold.left,
            bottom=fold.bottom,
            right=fold.right,
            PAD=fold.padding,
            ROWS=down,
            COLUMNS=across,
            COPIES=fold.copies(rows, columns),
            **constants,
        )
