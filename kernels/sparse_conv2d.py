"""Triton kernels of oes_fast/reference/sparse_conv2d.py: forward, both gradients, phases.

Forward and input gradient are one sum over taps (oes_fast/kernels/sparse_taps.py), the second over the
output's gradient in a border of zeros: for each plane of the input the taps that read it, so that no two
programs write one element.
"""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.sparse_index import TapIndex, tap_index
from oes_fast.kernels.sparse_taps import GROUP, tap_sum, weight_grad
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor

# Copies of planes: four warps move 16 bytes a thread at the first.
COPY_CONFIGS = (Config(block=512), Config(block=1024))


@triton.jit(do_not_specialize=["rows", "columns", "top", "left"])
def frame_kernel(out_ptr, x_ptr, rows, columns, out_rows, out_columns, top, left, BLOCK: tl.constexpr):
    """Copy a plane into a larger one, zeros around it."""
    blocks = tl.cdiv(out_rows * out_columns, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // out_columns - top, pixel % out_columns - left
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    x = tl.load(x_ptr + plane * rows * columns + row * columns + column, mask=inside, other=0.0)
    tl.store(out_ptr + plane * out_rows * out_columns + pixel, x, mask=pixel < out_rows * out_columns)


@triton.jit(do_not_specialize=["rows", "columns"])
def split_kernel(planes_ptr, x_ptr, rows, columns, half_rows, half_columns, BLOCK: tl.constexpr):
    """The four phases of an image plane."""
    pixels = half_rows * half_columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    phase = (plane % 4).to(tl.int32)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    row = pixel // half_columns * 2 + phase // 2
    column = pixel % half_columns * 2 + phase % 2
    inside = (row < rows) & (column < columns) & (pixel < pixels)
    x = tl.load(x_ptr + plane // 4 * rows * columns + row * columns + column, mask=inside, other=0.0)
    tl.store(planes_ptr + plane * pixels + pixel, x, mask=pixel < pixels)


@triton.jit(do_not_specialize=["half_rows", "half_columns"])
def merge_kernel(x_ptr, planes_ptr, rows, columns, half_rows, half_columns, BLOCK: tl.constexpr):
    """The image plane of four phases."""
    pixels = rows * columns
    blocks = tl.cdiv(pixels, BLOCK)
    program = tl.program_id(0)
    plane = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    row, column = pixel // columns, pixel % columns
    phase = row % 2 * 2 + column % 2
    at = (plane * 4 + phase) * half_rows * half_columns + row // 2 * half_columns + column // 2
    x = tl.load(planes_ptr + at, mask=pixel < pixels, other=0.0)
    tl.store(x_ptr + plane * pixels + pixel, x, mask=pixel < pixels)


def sparse_conv2d(
    planes: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    outputs: int,
    kernel_rows: int,
    kernel_columns: int,
    rows: int,
    columns: int,
) -> Tensor:
    """[N, outputs, rows, columns] of phases [N, C, 1 or 4, H', W'], float32, contiguous arguments."""
    index = _by_output(planes, taps, outputs)
    return tap_sum(planes, values, index, rows=rows, columns=columns, source_columns=planes.shape[4])


def sparse_conv2d_backward(
    grad: Tensor,
    planes: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    kernel_rows: int,
    kernel_columns: int,
    needs_planes: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of planes and values, float32; [0] for one that is not needed."""
    outputs, rows, columns = grad.shape[1:]
    grad_planes, grad_values = planes.new_empty(0), values.new_empty(0)
    if needs_values:
        index = _by_output(planes, taps, outputs)
        grad_values = weight_grad(
            grad, planes, index, rows=rows, columns=columns, source_columns=planes.shape[4]
        )
    if needs_planes:
        grad_planes = _input_gradient(grad, planes, values, taps, kernel_rows, kernel_columns)
    return grad_planes, grad_values


def _by_output(planes: Tensor, taps: Tensor, outputs: int) -> TapIndex:
    _, inputs, phases, rows, columns = planes.shape
    stride = 1 if phases == 1 else 2

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        plane = c * phases + _phase(u, v, stride)
        return o, plane * rows * columns + u // stride * columns + v // stride

    return tap_index(
        taps,
        ("output", phases, rows, columns),
        segments=outputs,
        source_elements=inputs * phases * rows * columns,
        make=make,
        group=GROUP,
    )


def _input_gradient(
    grad: Tensor, planes: Tensor, values: Tensor, taps: Tensor, kernel_rows: int, kernel_columns: int
) -> Tensor:
    _, inputs, phases, rows, columns = planes.shape
    stride = 1 if phases == 1 else 2
    top, left = (kernel_rows - 1) // stride, (kernel_columns - 1) // stride
    framed = frame(grad, rows + top, columns + left, top, left)
    framed_rows, framed_columns = framed.shape[2:]

    def make(cpu: Tensor) -> tuple[Tensor, Tensor]:
        o, c, u, v = cpu.unbind(1)
        back = (top - u // stride) * framed_columns + left - v // stride
        return c * phases + _phase(u, v, stride), o * framed_rows * framed_columns + back

    index = tap_index(
        taps,
        ("input", phases, framed_rows, framed_columns, top, left),
        segments=inputs * phases,
        source_elements=framed[:1].numel(),
        make=make,
        group=GROUP,
    )
    result = tap_sum(framed, values, index, rows=rows, columns=columns, source_columns=framed_columns)
    return result.view(planes.shape)


def _phase(u: Tensor, v: Tensor, stride: int) -> Tensor:
    return u % stride * stride + v % stride


def frame(x: Tensor, rows: int, columns: int, top: int, left: int) -> Tensor:
    """[N, C, rows, columns] with ``x`` at (top, left) and zeros around it, float32."""
    out = x.new_empty(*x.shape[:2], rows, columns)
    if out.numel() == 0:
        return out

    def launch(config: Config) -> None:
        grid = (out.shape[0] * out.shape[1] * triton.cdiv(rows * columns, config.block),)
        frame_kernel[grid](
            out, x, *x.shape[2:], rows, columns, top, left, BLOCK=config.block, **config.options
        )

    with on_device_of(x):
        problem = (*out.shape, *x.shape[2:])
        run("frame", problem, for_interpreter(COPY_CONFIGS, rows * columns), launch)
    return out


def phase_split(x: Tensor) -> Tensor:
    """[N, C, 4, ceil(H / 2), ceil(W / 2)] of [N, C, H, W], float32."""
    n, c, rows, columns = x.shape
    half = (rows + 1) // 2, (columns + 1) // 2
    planes = x.new_empty(n, c, 4, *half)
    if planes.numel() == 0:
        return planes

    def launch(config: Config) -> None:
        grid = (n * c * 4 * triton.cdiv(half[0] * half[1], config.block),)
        split_kernel[grid](planes, x, rows, columns, *half, BLOCK=config.block, **config.options)

    with on_device_of(x):
        run("phase_split", tuple(x.shape), for_interpreter(COPY_CONFIGS, half[0] * half[1]), launch)
    return planes


def phase_merge(planes: Tensor, rows: int, columns: int) -> Tensor:
    """[N, C, rows, columns] of [N, C, 4, ceil(rows / 2), ceil(columns / 2)], float32."""
    n, c = planes.shape[:2]
    x = planes.new_empty(n, c, rows, columns)
    if x.numel() == 0:
        return x

    def launch(config: Config) -> None:
        grid = (n * c * triton.cdiv(rows * columns, config.block),)
        merge_kernel[grid](x, planes, rows, columns, *planes.shape[3:], BLOCK=config.block, **config.options)

    with on_device_of(x):
        run("phase_merge", tuple(x.shape), for_interpreter(COPY_CONFIGS, rows * columns), launch)
    return x
