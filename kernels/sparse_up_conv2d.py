"""Triton kernels of oes_fast/reference/sparse_up_conv2d.py: matrix products over all channels.

Of the image, at the low resolution, a pixel of the result reads 2 x 2 pixels: of rows, those of phase 0 the one
above and their own, those of phase 1 their own and the one below; likewise of columns. So the 3 x 3 weights of
(o, c) are merged into 4 phases x 2 x 2 sums of them, and every phase is a product of such a matrix [O, C] with
shifted images. About 40 % of the weights are kept in these layers: dense products on the tensor cores are
faster than sums over the kept ones. The operands are split in three products of TF32, which have the digits of
float32.

Both gradients go the same way back: that of the image from the four rows by four columns that read a pixel,
that of the weights from the sixteen products of phases and shifted images, in shares of the pixels that are
added in a fixed order. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.tuning import Config, for_interpreter, interpreted, run
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

SUMS = 16  # of the 3 x 3 weights: phase (a, b) by row and column of 2 x 2
MERGE_CONFIGS = (Config(block=128),)
# block: pixels; outer: outputs (channels in the gradient of the image); inner: channels (outputs) at a time.
CONFIGS = (
    Config(block=64, outer=16, inner=16, warps=4, stages=1),
    Config(block=32, outer=16, inner=32, warps=4, stages=1),
    Config(block=128, outer=16, inner=16, warps=8, stages=1),
    Config(block=64, outer=32, inner=16, warps=8, stages=1),
)
INPUT_CONFIGS = (
    Config(block=64, outer=16, inner=16, warps=4, stages=1),
    Config(block=32, outer=16, inner=32, warps=4, stages=1),
    Config(block=64, outer=32, inner=16, warps=8, stages=1),
)
# block: channels; outer: outputs; inner: pixels at a time.
WEIGHT_CONFIGS = (
    Config(block=32, outer=16, inner=32, warps=4),
    Config(block=16, outer=16, inner=32, warps=4),
    Config(block=32, outer=16, inner=32, warps=8),
    Config(block=32, outer=16, inner=32, warps=4, stages=3),
)
VALUE_CONFIGS = (Config(block=32, inner=16, warps=4),)
_PROGRAMS = 528  # of the gradient of the weights: 4 for each of 132 SMs
_MOST_SPLITS = 128


@triton.jit
def merge_kernel(merged_ptr, values_ptr, slots_ptr, pairs, BLOCK: tl.constexpr):
    """Sums of the weights of a block of pairs (o, c): merged [16, O, C]."""
    which = tl.program_id(1)
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, r, s = which // 8, which // 4 % 2, which // 2 % 2, which % 2
    total = tl.zeros((BLOCK,), tl.float32)
    for u in tl.static_range(3):
        for v in tl.static_range(3):
            # Row u of phase a reads row (u + 1 - a) div 2 of the two; likewise the columns.
            end = tl.where((u + 1 - a) // 2 == r, tl.where((v + 1 - b) // 2 == s, pairs, 0), 0)
            slot = tl.load(slots_ptr + pair * 9 + 3 * u + v, mask=pair < end, other=-1)
            total += tl.load(values_ptr + slot, mask=slot >= 0, other=0.0)
    tl.store(merged_ptr + which.to(tl.int64) * pairs + pair, total, mask=pair < pairs)


@triton.jit
def forward_kernel(
    out_ptr,
    x_ptr,
    merged_ptr,
    inputs,
    outputs,
    rows,
    columns,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both phases of columns of one phase of rows: a tile of outputs by pixels of one image."""
    image = (tl.program_id(2) // 2).to(tl.int64)
    a = tl.program_id(2) % 2
    output = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    pixels = rows * columns
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column = pixel // columns, pixel % columns
    pairs = outputs * inputs
    even = tl.zeros((OUTER, BLOCK), tl.float32)
    odd = tl.zeros((OUTER, BLOCK), tl.float32)
    for first in range(0, inputs, INNER):
        channel = first + tl.arange(0, INNER)
        x = x_ptr + ((image * inputs + channel) * pixels)[:, None]
        seen = (channel < inputs)[:, None] & inside[None, :]
        chosen = (output < outputs)[:, None] & (channel < inputs)[None, :]
        weight = merged_ptr + 8 * a * pairs + output[:, None] * inputs + channel[None, :]
        for r in tl.static_range(2):
            y_at = tl.minimum(tl.maximum(row + (a - 1 + r), 0), rows - 1) * columns
            left = tl.load(x + (y_at + tl.maximum(column - 1, 0))[None, :], mask=seen, other=0.0)
            w = tl.load(weight + 2 * r * pairs, mask=chosen, other=0.0)
            even = tl.dot(w, left, even, input_precision="tf32x3")
            here = tl.load(x + (y_at + column)[None, :], mask=seen, other=0.0)
            w = tl.load(weight + (2 * r + 1) * pairs, mask=chosen, other=0.0)
            even = tl.dot(w, here, even, input_precision="tf32x3")
            w = tl.load(weight + (2 * r + 4) * pairs, mask=chosen, other=0.0)
            odd = tl.dot(w, here, odd, input_precision="tf32x3")
            right = tl.load(x + (y_at + tl.minimum(column + 1, columns - 1))[None, :], mask=seen, other=0.0)
            w = tl.load(weight + (2 * r + 5) * pairs, mask=chosen, other=0.0)
            odd = tl.dot(w, right, odd, input_precision="tf32x3")
    # Pixels of both phases of columns lie side by side.
    wide = tl.arange(0, 2 * BLOCK)
    pixel = tl.program_id(0) * BLOCK + wide // 2
    at = (pixel // columns * 2 + a) * (2 * columns) + pixel % columns * 2 + wide % 2
    out = out_ptr + (image * outputs + output[:, None]) * (4 * pixels) + at[None, :]
    seen = (output < outputs)[:, None] & (pixel < pixels)[None, :]
    tl.store(out, tl.interleave(even, odd), mask=seen)


@triton.jit
def _columns(grad_ptr, row, column, columns, seen):
    """What the columns (b, s) = (0, 0), (0, 1), (1, 0), (1, 1) read this one through, in one row of the gradient.

    Phase b of a column reads this one as its s-th; at the border it does so a second time, clamped to it.
    """
    base = grad_ptr + row * (2 * columns) + 2 * column
    before = tl.load(base - 1, mask=seen & (column > 0), other=0.0)
    here = tl.load(base, mask=seen, other=0.0)
    after = tl.load(base + 1, mask=seen, other=0.0)
    beyond = tl.load(base + 2, mask=seen & (column < columns - 1), other=0.0)
    first = beyond + tl.where(column == 0, here, 0.0)
    last = before + tl.where(column == columns - 1, after, 0.0)
    return first, here, after, last


@triton.jit
def _add_row(total, weight_ptr, pairs, chosen, g00, g01, g10, g11):
    """total plus the products of one (a, r) of rows with the four (b, s) of columns."""
    w = tl.load(weight_ptr, mask=chosen, other=0.0)
    total = tl.dot(w, g00, total, input_precision="tf32x3")
    w = tl.load(weight_ptr + pairs, mask=chosen, other=0.0)
    total = tl.dot(w, g01, total, input_precision="tf32x3")
    w = tl.load(weight_ptr + 4 * pairs, mask=chosen, other=0.0)
    total = tl.dot(w, g10, total, input_precision="tf32x3")
    w = tl.load(weight_ptr + 5 * pairs, mask=chosen, other=0.0)
    return tl.dot(w, g11, total, input_precision="tf32x3")


@triton.jit
def input_gradient_kernel(
    grad_x_ptr,
    grad_ptr,
    merged_ptr,
    inputs,
    outputs,
    rows,
    columns,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of channels by pixels of one image, which rows 2 i - 1 to 2 i + 2 of the result read."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    pixels = rows * columns
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = (pixel // columns)[None, :], (pixel % columns)[None, :]
    pairs = outputs * inputs
    total = tl.zeros((OUTER, BLOCK), tl.float32)
    for step in range(0, 2 * tl.cdiv(outputs, INNER)):
        a = step % 2
        output = step // 2 * INNER + tl.arange(0, INNER)
        grad = grad_ptr + ((image * outputs + output) * (4 * pixels))[:, None]
        seen = (output < outputs)[:, None] & (pixel < pixels)[None, :]
        chosen = (channel < inputs)[:, None] & (output < outputs)[None, :]
        weight = merged_ptr + 8 * a * pairs + output[None, :] * inputs + channel[:, None]
        # Phase 0 reads this row as its second in row 2 i, as its first in row 2 i + 2; phase 1 as its first in
        # row 2 i + 1, as its second in row 2 i - 1. At the border the far one is clamped to this row as well.
        n00, n01, n10, n11 = _columns(grad, 2 * row + a, column, columns, seen)
        total = _add_row(total, weight + (1 - a) * 2 * pairs, pairs, chosen, n00, n01, n10, n11)
        border = row == a * (rows - 1)
        there = seen & (row != (1 - a) * (rows - 1))
        f00, f01, f10, f11 = _columns(grad, 2 * row + 2 - 3 * a, column, columns, there)
        f00, f01 = f00 + tl.where(border, n00, 0.0), f01 + tl.where(border, n01, 0.0)
        f10, f11 = f10 + tl.where(border, n10, 0.0), f11 + tl.where(border, n11, 0.0)
        total = _add_row(total, weight + a * 2 * pairs, pairs, chosen, f00, f01, f10, f11)
    at = (image * inputs + channel[:, None]) * pixels + pixel[None, :]
    tl.store(grad_x_ptr + at, total, mask=(channel < inputs)[:, None] & (pixel < pixels)[None, :])


@triton.jit
def weight_gradient_kernel(
    partial_ptr,
    grad_ptr,
    x_ptr,
    images,
    inputs,
    outputs,
    rows,
    columns,
    tiles,
    chunks_of_split,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One phase's four sums of a tile of outputs by channels over one share of the pixels: [splits, 16, O, C]."""
    output = tl.program_id(0) // tiles * OUTER + tl.arange(0, OUTER)
    channel = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    phase, split = tl.program_id(1), tl.program_id(2)
    a, b = phase // 2, phase % 2
    pixels, pairs = rows * columns, outputs * inputs
    chunks = tl.cdiv(pixels, INNER)
    first = split * chunks_of_split
    last = tl.minimum(first + chunks_of_split, chunks * images)
    g00 = tl.zeros((OUTER, BLOCK), tl.float32)
    g01 = tl.zeros((OUTER, BLOCK), tl.float32)
    g10 = tl.zeros((OUTER, BLOCK), tl.float32)
    g11 = tl.zeros((OUTER, BLOCK), tl.float32)
    for chunk in range(first, last):
        image = (chunk // chunks).to(tl.int64)
        pixel = chunk % chunks * INNER + tl.arange(0, INNER)
        inside = pixel < pixels
        row, column = pixel // columns, pixel % columns
        grad = tl.load(
            grad_ptr
            + ((image * outputs + output) * (4 * pixels))[:, None]
            + ((2 * row + a) * (2 * columns) + 2 * column + b)[None, :],
            mask=(output < outputs)[:, None] & inside[None, :],
            other=0.0,
        )
        x = x_ptr + ((image * inputs + channel) * pixels)[:, None]
        seen = (channel < inputs)[:, None] & inside[None, :]
        above = tl.maximum(row + (a - 1), 0) * columns
        below = tl.minimum(row + a, rows - 1) * columns
        left, right = tl.maximum(column + (b - 1), 0), tl.minimum(column + b, columns - 1)
        x00 = tl.load(x + (above + left)[None, :], mask=seen, other=0.0)
        g00 = tl.dot(grad, tl.trans(x00), g00, input_precision="tf32x3")
        x01 = tl.load(x + (above + right)[None, :], mask=seen, other=0.0)
        g01 = tl.dot(grad, tl.trans(x01), g01, input_precision="tf32x3")
        x10 = tl.load(x + (below + left)[None, :], mask=seen, other=0.0)
        g10 = tl.dot(grad, tl.trans(x10), g10, input_precision="tf32x3")
        x11 = tl.load(x + (below + right)[None, :], mask=seen, other=0.0)
        g11 = tl.dot(grad, tl.trans(x11), g11, input_precision="tf32x3")
    out = partial_ptr + (split.to(tl.int64) * 16 + phase * 4) * pairs
    out += output[:, None] * inputs + channel[None, :]
    chosen = (output < outputs)[:, None] & (channel < inputs)[None, :]
    tl.store(out, g00, mask=chosen)
    tl.store(out + pairs, g01, mask=chosen)
    tl.store(out + 2 * pairs, g10, mask=chosen)
    tl.store(out + 3 * pairs, g11, mask=chosen)


@triton.jit
def value_gradient_kernel(
    grad_ptr, partial_ptr, taps_ptr, taps, inputs, pairs, splits, INNER: tl.constexpr, BLOCK: tl.constexpr
):
    """Of a block of taps: each is part of two of the row sums by two of the column sums."""
    tap = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = tap < taps
    output = tl.load(taps_ptr + 4 * tap, mask=there, other=0)
    channel = tl.load(taps_ptr + 4 * tap + 1, mask=there, other=0)
    u = tl.load(taps_ptr + 4 * tap + 2, mask=there, other=0)
    v = tl.load(taps_ptr + 4 * tap + 3, mask=there, other=0)
    pair = output * inputs + channel
    total = tl.zeros((BLOCK, INNER), tl.float32)
    for first in range(0, splits, INNER):
        split = first + tl.arange(0, INNER)
        seen = there[:, None] & (split < splits)[None, :]
        base = partial_ptr + split.to(tl.int64)[None, :] * 16 * pairs
        for a in tl.static_range(2):
            for b in tl.static_range(2):
                which = 8 * a + 4 * b + (u + 1 - a) // 2 * 2 + (v + 1 - b) // 2
                total += tl.load(base + (which * pairs + pair)[:, None], mask=seen, other=0.0)
    tl.store(grad_ptr + tap, tl.sum(total, axis=1), mask=there)


def _options(config: Config) -> dict[str, object]:
    return {
        "OUTER": config.outer,
        "INNER": config.inner,
        "BLOCK": config.block,
        **config.options,
        "num_stages": config.stages,
    }


def _configs(configs: tuple[Config, ...], pixels: int, *, summed: bool = False) -> tuple[Config, ...]:
    if not interpreted():
        return configs
    many = min(4096, max(16, triton.next_power_of_2(pixels)))
    return (Config(block=16 if summed else many, outer=16, inner=many if summed else 16, stages=1),)


def _merged(values: Tensor, taps: Tensor, outputs: int, inputs: int) -> Tensor:
    """[16, O, C]."""
    merged = values.new_empty(SUMS, outputs, inputs)
    pairs, slots = outputs * inputs, _slots(taps, outputs, inputs)

    def launch(config: Config) -> None:
        merge_kernel[(triton.cdiv(pairs, config.block), SUMS)](
            merged, values, slots, pairs, BLOCK=config.block, **config.options
        )

    run("up_conv_merge", (outputs, inputs), for_interpreter(MERGE_CONFIGS, pairs), launch)
    return merged


_known_slots: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _slots(taps: Tensor, outputs: int, inputs: int) -> Tensor:
    """Where each of the 3 x 3 weights lies among the values, -1 for a dropped one: int32 [O, C, 9]."""
    known = _known_slots.setdefault(taps, {})
    key = outputs, inputs
    if key not in known:
        o, c, u, v = taps.detach().cpu().long().unbind(1)
        slots = torch.full((outputs * inputs * 9,), -1, dtype=torch.int32)
        slots[(o * inputs + c) * 9 + u * 3 + v] = torch.arange(len(taps), dtype=torch.int32)
        known[key] = slots.to(taps.device)
    return known[key]


def sparse_up_conv2d(x: Tensor, values: Tensor, taps: Tensor, by_input: Tensor, outputs: int) -> Tensor:
    """[N, outputs, 2 h, 2 w] of [N, C, h, w], float32, contiguous arguments."""
    n, inputs, rows, columns = x.shape
    out = x.new_empty(n, outputs, 2 * rows, 2 * columns)
    if out.numel() == 0:
        return out

    def launch(config: Config) -> None:
        grid = (triton.cdiv(rows * columns, config.block), triton.cdiv(outputs, config.outer), 2 * n)
        forward_kernel[grid](out, x, merged, inputs, outputs, rows, columns, **_options(config))

    with on_device_of(x):
        merged = _merged(values, taps, outputs, inputs)
        run("up_conv", (*x.shape, outputs), _configs(CONFIGS, rows * columns), launch)
    return out


def sparse_up_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    needs_x: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and values, float32; [0] for one that is not needed."""
    grad_x, grad_values = x.new_empty(0), values.new_empty(0)
    with on_device_of(x):
        if needs_values:
            grad_values = _value_gradient(grad, x, taps)
        if needs_x:
            grad_x = _input_gradient(grad, x, values, taps)
    return grad_x, grad_values


def _input_gradient(grad: Tensor, x: Tensor, values: Tensor, taps: Tensor) -> Tensor:
    (n, inputs, rows, columns), outputs = x.shape, grad.shape[1]
    grad_x = torch.empty_like(x)
    if x.numel() == 0 or outputs == 0:
        return grad_x.zero_()
    merged = _merged(values, taps, outputs, inputs)

    def launch(config: Config) -> None:
        grid = (triton.cdiv(rows * columns, config.block), triton.cdiv(inputs, config.outer), n)
        input_gradient_kernel[grid](grad_x, grad, merged, inputs, outputs, rows, columns, **_options(config))

    run("up_conv_input", (*x.shape, outputs), _configs(INPUT_CONFIGS, rows * columns), launch)
    return grad_x


def _value_gradient(grad: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    (n, inputs, rows, columns), outputs = x.shape, grad.shape[1]
    result = grad.new_empty(len(taps))
    if len(taps) == 0 or x.numel() == 0:
        return result.zero_()
    pairs = outputs * inputs
    made: list[Tensor] = []

    def launch(config: Config) -> None:
        tiles = triton.cdiv(inputs, config.block)
        programs = 4 * tiles * triton.cdiv(outputs, config.outer)
        chunks = n * triton.cdiv(rows * columns, config.inner)
        splits = max(1, min(_MOST_SPLITS, chunks, _PROGRAMS // programs))
        of_split = triton.cdiv(chunks, splits)
        splits = triton.cdiv(chunks, of_split)
        partial = grad.new_empty(splits, SUMS, outputs, inputs)
        weight_gradient_kernel[(programs // 4, 4, splits)](
            partial, grad, x, n, inputs, outputs, rows, columns, tiles, of_split, **_options(config)
        )
        made[:] = [partial]

    run("up_conv_weight", (*x.shape, outputs), _configs(WEIGHT_CONFIGS, rows * columns, summed=True), launch)
    (partial,) = made

    def launch_sum(config: Config) -> None:
        value_gradient_kernel[(triton.cdiv(len(taps), config.block),)](
            result, partial, taps, len(taps), inputs, pairs, len(partial),
            INNER=config.inner, BLOCK=config.block, **config.options,
        )  # fmt: skip

    run("up_conv_value", (len(taps), len(partial)), for_interpreter(VALUE_CONFIGS, len(taps)), launch_sum)
    return result
