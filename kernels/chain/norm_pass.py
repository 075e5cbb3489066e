"""Passes over an image of their own: what of a norm, or of a border, no convolution beside it can do.

A program takes a chunk of one channel. Where the gradient is that of the image continued over a border, what lies
on the border is added to what it is a copy of as it is read.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate, activate_grad, output_activate, output_grad
from oes_fast.kernels.chain.finalise import finalise, is_last
from oes_fast.kernels.chain.kinds import (
    FINALISE_NONE,
    GRAD_NUMBERS,
    PAD_NONE,
    PAD_REFLECT,
    PARTIAL_NUMBERS,
    PROLOGUE_NUMBERS,
    SHIFT_BACKWARD,
)
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

PASS_SECOND_MOMENTS = tl.constexpr(0)  # of the activated image, for the second norm
PASS_SECOND_SUMS = tl.constexpr(1)  # for the gradient of the second norm
PASS_ACT_GRAD = tl.constexpr(2)  # through the second norm, if there is one, and the activation; sums for the first
PASS_IMAGE = tl.constexpr(3)  # the image that leaves the network, from a norm
PASS_IMAGE_GRAD = tl.constexpr(4)  # of a last convolution's result, from that of the image or the error
PASS_FOLD = tl.constexpr(5)  # nothing but the border is added

MOST_CHUNKS = 32  # that the last program adds up in one round
_BLOCK = 1024  # pixels at once: of four warps
_WIDEST = 128  # columns of a block where there is a border

_GENERAL = (
    "channels", "chunks", "rounds", "rows", "columns", "block_rows", "top", "left", "bottom", "right",
)  # fmt: skip


class Fold(NamedTuple):
    """A border that a gradient has: of so many rows and columns, continued as PAD_REFLECT or PAD_REPLICATE."""

    top: int
    left: int
    bottom: int
    right: int
    padding: int


def pass_chunks(pixels: int) -> int:
    """Partial sums that a pass over so many pixels leaves of a channel."""
    return min(MOST_CHUNKS, triton.cdiv(pixels, _BLOCK))


def norm_pass(
    kind: Any,
    *,
    y: Tensor | None = None,
    grad: Tensor | None = None,
    out: Tensor | None = None,
    numbers: Tensor | None = None,
    grad_numbers: Tensor | None = None,
    target: Tensor | None = None,
    slope: Any = 1.0,
    act: int = 0,
    second: bool = False,
    fold: Fold | None = None,
    finalise: int = 0,
    finish: Any = None,
    act_behind: int = 0,
    tickets: Tensor | None = None,
) -> None:
    """One launch over an image [N, C, H, W]: N networks, contiguous tensors of T, float32 or float64.

    ============== ==================================================================== =============
    kind           takes, beside y; writes                                              finalise
    ============== ==================================================================== =============
    SECOND_MOMENTS numbers                                                              NORM_FORWARD
    SECOND_SUMS    numbers, grad; of a folded grad writes out                           NORM_BACKWARD
    ACT_GRAD       numbers, grad, grad_numbers of two norms; writes out                 NORM_BACKWARD
    IMAGE          numbers, second; writes out                                          none
    IMAGE_GRAD     grad, or without it target; writes out                               SHIFT_BACKWARD
    FOLD           grad and fold, without y; writes out                                 none
    ============== ==================================================================== =============

    Args:
        kind: PASS_SECOND_MOMENTS and the like.
        y: a convolution's own result, [N, C, H, W].
        grad: of the image, [N, C, H, W], or with ``fold`` [N, C, top + H + bottom, left + W + right].
        out: [N, C, H, W]; may be ``grad`` where nothing is folded.
        numbers: prologue of the block, [N, C, 6].
        grad_numbers: of the second norm, [N, C, 4]; None for one norm.
        target: [N, C, H, W].
        slope: of the activation, a float or constant of the kernel.
        act: activation behind the first norm, ACT_LEAKY and the like; of IMAGE_GRAD OUT_LEAKY and the like.
        second: IMAGE: a second norm follows.
        fold: border of ``grad``, narrower than the image; of ACT_GRAD, SECOND_SUMS and FOLD.
        finalise: FINALISE_NONE, or what the table says.
        finish: its arguments, with partials [N, C, pass_chunks(H * W), 3].
        act_behind: activation of the constants, see ``finalise.finalise``.
        tickets: int32 [at least N * C elements], zeros before and after; None without ``finalise``.
    """
    image = out if y is None else y
    assert image is not None
    networks, channels, rows, columns = image.shape
    pixels = rows * columns
    chunks = pass_chunks(pixels)
    block, count = _BLOCK, 1
    if os.environ.get("TRITON_INTERPRET", "0") == "1":  # it pays by the program and by the operation
        count = triton.next_power_of_2(channels)
    if finalise == SHIFT_BACKWARD.value:
        count = triton.next_power_of_2(channels)
    width = min(_WIDEST, triton.next_power_of_2(columns))
    border = Fold(0, 0, 0, 0, PAD_NONE.value) if fold is None else fold
    with on_device_of(image):
        norm_pass_kernel[(channels * chunks, 1, networks)](
            y,
            grad,
            out,
            numbers,
            grad_numbers,
            target,
            finish,
            tickets,
            pixels,
            channels=channels,
            chunks=chunks,
            rounds=triton.cdiv(triton.cdiv(pixels, chunks), block),
            rows=rows,
            columns=columns,
            block_rows=0,
            top=border.top,
            left=border.left,
            bottom=border.bottom,
            right=border.right,
        )
