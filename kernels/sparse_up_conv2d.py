"""Triton kernels of oes_fast/reference/sparse_up_conv2d.py.

The channels are mixed at the low resolution, B_uv[o] = sum_c w[o, c, u, v] x[c], a sum over taps; then each
pixel of the result adds one pixel of each of the nine B_uv. The gradient of B_uv sums the pixels of the
result that read it: two rows by two columns, and at the border the row or column that was clamped to it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.sparse_index import TapIndex, tap_index
from oes_fast.kernels.sparse_taps import CHUNK, dot, gather
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor

ADD_CONFIGS = (Config(block=256), Config(block=512))
SPREAD_CONFIGS = (Config(block=128), Config(block=256))


@triton.jit(do_not_specialize=["rows", "columns"])
def add_kernel(out_ptr, mixed_ptr, rows, columns, BLOCK: tl.constexpr):
    """One block of pixels of one plane of the result [2 rows, 2 columns] from nine planes [rows, columns]."""
    pixels = 4 * rows * columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column = pixel // (2 * columns), pixel % (2 * columns)
    total = tl.zeros((BLOCK,), tl.float32)
    for u in tl.static_range(3):
        # (Y + u - 1) div 2 rounds down: 2 is added before and 1 subtracted after.
        low_row = tl.minimum(tl.maximum((row + (u + 1)) // 2 - 1, 0), rows - 1)
        for v in tl.static_range(3):
            low_column = tl.minimum(tl.maximum((column + (v + 1)) // 2 - 1, 0), columns - 1)
            base = mixed_ptr + (plane * 9 + 3 * u + v) * rows * columns
            total += tl.load(base + low_row * columns + low_column, mask=inside, other=0.0)
    tl.store(out_ptr + plane * pixels + pixel, total, mask=inside)


@triton.jit
def _row(grad_ptr, row, column, rows, columns, inside):
    """Pixels of the gradient, zero outside of it."""
    seen = inside & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return tl.load(grad_ptr + row * columns + column, mask=seen, other=0.0)


@triton.jit
def _three(before, here, after, beyond, is_first, is_last):
    """What the taps 0, 1 and 2 sum of the pixels -1 .. 2 about 2 r, the clamped ones among them."""
    zero = tl.zeros(here.shape, tl.float32)
    first = after + beyond + tl.where(is_first, here, zero)
    last = before + here + tl.where(is_last, after, zero)
    return first, here + after, last


@triton.jit
def _rows(grad_ptr, row, column, rows, columns, inside):
    """:func:`_three` of one column over the rows about ``row``."""
    before = _row(grad_ptr, 2 * row - 1, column, 2 * rows, 2 * columns, inside)
    here = _row(grad_ptr, 2 * row, column, 2 * rows, 2 * columns, inside)
    after = _row(grad_ptr, 2 * row + 1, column, 2 * rows, 2 * columns, inside)
    beyond = _row(grad_ptr, 2 * row + 2, column, 2 * rows, 2 * columns, inside)
    return _three(before, here, after, beyond, row == 0, row == rows - 1)


@triton.jit(do_not_specialize=["rows", "columns"])
def spread_kernel(mixed_ptr, grad_ptr, rows, columns, BLOCK: tl.constexpr):
    """The gradient of nine planes [rows, columns] from that of the result [2 rows, 2 columns]."""
    pixels = rows * columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    row, column = pixel // columns, pixel % columns
    grad = grad_ptr + plane * 4 * pixels
    a0, a1, a2 = _rows(grad, row, 2 * column - 1, rows, columns, inside)
    b0, b1, b2 = _rows(grad, row, 2 * column, rows, columns, inside)
    c0, c1, c2 = _rows(grad, row, 2 * column + 1, rows, columns, inside)
    d0, d1, d2 = _rows(grad, row, 2 * column + 2, rows, columns, inside)
    is_first, is_last = column == 0, column == columns - 1
    out = mixed_ptr + plane * 9 * pixels + pixel
    x, y, z = _three(a0, b0, c0, d0, is_first, is_last)
    tl.store(out, x, mask=inside)
    tl.store(out + pixels, y, mask=inside)
    tl.store(out + 2 * pixels, z, mask=inside)
    x, y, z = _three(a1, b1, c1, d1, is_first, is_last)
    tl.store(out + 3 * pixels, x, mask=inside)
    tl.store(out + 4 * pixels, y, mask=inside)
    tl.store(out + 5 * pixels, z, mask=inside)
    x, y, z = _three(a2, b2, c2, d2, is_first, is_last)
    tl.store(out + 6 * pixels, x, mask=inside)
    tl.store(out + 7 * pixels, y, mask=inside)
    tl.store(out + 8 * pixels, z, mask=inside)


def sparse_up_conv2d(x: Tensor, values: Tensor, taps: Tensor, by_input: Tensor, outputs: int) -> Tensor:
    """[N, outputs, 2 h, 2 w] of [N, C, h, w], float32, contiguous arguments."""
    n, _, rows, columns = x.shape
    index = _by_mixed(x, taps, outputs)
    mixed = gather(x, values, index, rows=rows, columns=columns, source_columns=columns)
    out = x.new_empty(n, outputs, 2 * rows, 2 * columns)
    if out.numel():

        def launch(config: Config) -> None:
            grid = (n * outputs * triton.cdiv(4 * rows * columns, config.block),)
            add_kernel[grid](out, mixed, rows, columns, BLOCK=config.block, **config.options)

        with on_device_of(x):
            run("up_add", tuple(out.shape), for_interpreter(ADD_CONFIGS, 4 * rows * columns), launch)
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
    n, _, rows, columns = x.shape
    outputs = grad.shape[1]
    mixed = grad.new_empty(n, outputs * 9, rows, columns)
    if mixed.numel():

        def launch(config: Config) -> None:
            grid = (n * outputs * triton.cdiv(rows * columns, config.block),)
            spread_kernel[grid](mixed, grad, rows, columns, BLOCK=config.block, **config.options)

        with on_device_of(x):
            run("up_spread", tuple(grad.shape), for_interpreter(SPREAD_CONFIGS, rows * columns), launch)
    grad_x, grad_values = x.new_empty(0), values.new_empty(0)
    size = {"rows": rows, "columns": columns, "source_columns": columns}
    if needs_values:
        grad_values = dot(mixed, x, _by_mixed(x, taps, outputs), **size)
    if needs_x:
        grad_x = gather(mixed, values, _by_input(x, taps, outputs), **size)
    return grad_x, grad_values


def _by_mixed(x: Tensor, taps: Tensor, outputs: int) -> TapIndex:
    _, inputs, rows, columns = x.shape

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        return o * 9 + u * 3 + v, c * rows * columns

    return tap_index(
        taps,
        ("mixed", rows, columns),
        segments=outputs * 9,
        source_elements=inputs * rows * columns,
        make=make,
        chunk=CHUNK,
    )


def _by_input(x: Tensor, taps: Tensor, outputs: int) -> TapIndex:
    _, inputs, rows, columns = x.shape

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        return c, (o * 9 + u * 3 + v) * rows * columns

    return tap_index(
        taps,
        ("unmixed", rows, columns),
        segments=inputs,
        source_elements=outputs * 9 * rows * columns,
        make=make,
        chunk=CHUNK,
    )
