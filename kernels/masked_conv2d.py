"""Triton kernels of oes_fast/reference/masked_conv2d.py: matrix products, the mask applied on loading.

Forward: outputs by pixels, summed over taps and input channels. Input gradient: the same with the transposed
weights, for each remainder of the stride the pixels and taps that meet. Weight gradient: outputs by (channel,
tap), summed over pixels in chunks that are added in a fixed order. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.tuning import Config, interpreted, run
from torch import Tensor

PRECISIONS = ("float32", "tf32", "bf16")
# block: pixels; outer: outputs (or channels, in the input gradient); inner: what is summed at a time.
CONFIGS = (
    Config(block=64, outer=32, inner=16, warps=4, stages=3),
    Config(block=128, outer=32, inner=16, warps=4, stages=3),
    Config(block=64, outer=64, inner=16, warps=4, stages=3),
    Config(block=128, outer=16, inner=16, warps=4, stages=2),
)
# block: pairs of channel and tap; inner: pixels at a time.
WEIGHT_CONFIGS = (
    Config(block=64, outer=32, inner=32, warps=4, stages=3),
    Config(block=128, outer=32, inner=16, warps=4, stages=2),
    Config(block=64, outer=64, inner=16, warps=4, stages=3),
)
_PROGRAMS = 512
_MOST_CHUNKS = 64


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + a @ b, the operands rounded as the precision says, the sum in float32."""
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if WIDEN:  # the interpreter has no product of them
            return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
        return tl.dot(a, b, total)
    if PRECISION == "tf32":
        return tl.dot(a, b, total, input_precision="tf32")
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def forward_kernel(
    y_ptr,
    x_ptr,
    weight_ptr,
    keep_ptr,
    bias_ptr,
    inputs,
    outputs,
    x_rows,
    x_columns,
    rows,
    columns,
    kernel_rows,
    kernel_columns,
    stride_rows,
    stride_columns,
    pad_rows,
    pad_columns,
    dilation_rows,
    dilation_columns,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of outputs by pixels of one image."""
    image = tl.program_id(2).to(tl.int64)
    output = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixels = rows * columns
    row = pixel // columns * stride_rows - pad_rows
    column = pixel % columns * stride_columns - pad_columns
    taps = kernel_rows * kernel_columns
    steps = tl.cdiv(inputs, INNER)
    x_image = x_ptr + image * inputs * x_rows * x_columns
    total = tl.zeros((OUTER, BLOCK), tl.float32)
    for step in range(0, taps * steps):
        tap = step // steps
        channel = step % steps * INNER + tl.arange(0, INNER)
        there = channel < inputs
        y_at = row + tap // kernel_columns * dilation_rows
        x_at = column + tap % kernel_columns * dilation_columns
        inside = (pixel < pixels) & (y_at >= 0) & (y_at < x_rows) & (x_at >= 0) & (x_at < x_columns)
        plane = channel.to(tl.int64) * (x_rows * x_columns)
        x = tl.load(
            x_image + plane[:, None] + (y_at * x_columns + x_at)[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        at = (output[:, None] * inputs + channel[None, :]) * taps + tap
        chosen = (output < outputs)[:, None] & there[None, :]
        weight = tl.load(weight_ptr + at, mask=chosen, other=0.0)
        weight *= tl.load(keep_ptr + at, mask=chosen, other=0).to(tl.float32)
        total = _product(weight, x, total, PRECISION, WIDEN)
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=output < outputs, other=0.0)[:, None]
    at = (image * outputs + output[:, None]) * pixels + pixel[None, :]
    tl.store(y_ptr + at, total, mask=(output < outputs)[:, None] & (pixel < pixels)[None, :])


@triton.jit
def input_gradient_kernel(
    grad_x_ptr,
    grad_ptr,
    weight_ptr,
    keep_ptr,
    inputs,
    outputs,
    x_rows,
    x_columns,
    rows,
    columns,
    kernel_rows,
    kernel_columns,
    stride_rows,
    stride_columns,
    pad_rows,
    pad_columns,
    dilation_rows,
    dilation_columns,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of input channels by those pixels of one image that share their remainders by the stride."""
    remainders = stride_rows * stride_columns
    image = (tl.program_id(2) // remainders).to(tl.int64)
    remainder = tl.program_id(2) % remainders
    first_row, first_column = remainder // stride_columns, remainder % stride_columns
    some_columns = tl.cdiv(x_columns - first_column, stride_columns)
    some_rows = tl.cdiv(x_rows - first_row, stride_rows)
    channel = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = pixel < some_rows * some_columns
    row = pixel // tl.maximum(some_columns, 1) * stride_rows + first_row
    column = pixel % tl.maximum(some_columns, 1) * stride_columns + first_column
    taps = kernel_rows * kernel_columns
    steps = tl.cdiv(outputs, INNER)
    pixels = rows * columns
    grad_image = grad_ptr + image * outputs * pixels
    total = tl.zeros((OUTER, BLOCK), tl.float32)
    for step in range(0, taps * steps):
        tap = step // steps
        back_rows = pad_rows - tap // kernel_columns * dilation_rows
        back_columns = pad_columns - tap % kernel_columns * dilation_columns
        # All pixels of the tile meet this tap or none does: remainders of sums that may be negative.
        off_row = (first_row + back_rows) % stride_rows
        off_column = (first_column + back_columns) % stride_columns
        if (off_row == 0) & (off_column == 0):
            output = step % steps * INNER + tl.arange(0, INNER)
            high_row, high_column = row + back_rows, column + back_columns
            y_at, x_at = high_row // stride_rows, high_column // stride_columns
            inside = there & (high_row >= 0) & (y_at < rows) & (high_column >= 0) & (x_at < columns)
            plane = output.to(tl.int64) * pixels
            grad = tl.load(
                grad_image + plane[:, None] + (y_at * columns + x_at)[None, :],
                mask=(output < outputs)[:, None] & inside[None, :],
                other=0.0,
            )
            at = (output[None, :] * inputs + channel[:, None]) * taps + tap
            chosen = (channel < inputs)[:, None] & (output < outputs)[None, :]
            weight = tl.load(weight_ptr + at, mask=chosen, other=0.0)
            weight *= tl.load(keep_ptr + at, mask=chosen, other=0).to(tl.float32)
            total = _product(weight, grad, total, PRECISION, WIDEN)
    at = (image * inputs + channel[:, None]) * x_rows * x_columns + (row * x_columns + column)[None, :]
    tl.store(grad_x_ptr + at, total, mask=(channel < inputs)[:, None] & there[None, :])


@triton.jit
def weight_gradient_kernel(
    partial_ptr,
    grad_ptr,
    x_ptr,
    keep_ptr,
    images,
    inputs,
    outputs,
    x_rows,
    x_columns,
    rows,
    columns,
    kernel_rows,
    kernel_columns,
    stride_rows,
    stride_columns,
    pad_rows,
    pad_columns,
    dilation_rows,
    dilation_columns,
    steps_of_chunk,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of outputs by weights of each, summed over one chunk of the pixels."""
    output = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    weight = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(2)
    taps = kernel_rows * kernel_columns
    weights = inputs * taps
    tap = weight % taps
    plane = (weight // taps).to(tl.int64) * (x_rows * x_columns)
    down = tap // kernel_columns * dilation_rows - pad_rows
    right = tap % kernel_columns * dilation_columns - pad_columns
    pixels = rows * columns
    steps = tl.cdiv(pixels, INNER)
    first = chunk * steps_of_chunk
    last = tl.minimum(first + steps_of_chunk, steps * images)
    total = tl.zeros((OUTER, BLOCK), tl.float32)
    for step in range(first, last):
        image = (step // steps).to(tl.int64)
        pixel = step % steps * INNER + tl.arange(0, INNER)
        here = pixel < pixels
        grad = tl.load(
            grad_ptr + (image * outputs + output[:, None]) * pixels + pixel[None, :],
            mask=(output < outputs)[:, None] & here[None, :],
            other=0.0,
        )
        y_at = (pixel // columns * stride_rows)[:, None] + down[None, :]
        x_at = (pixel % columns * stride_columns)[:, None] + right[None, :]
        inside = here[:, None] & (weight < weights)[None, :]
        inside = inside & (y_at >= 0) & (y_at < x_rows) & (x_at >= 0) & (x_at < x_columns)
        base = x_ptr + image * inputs * x_rows * x_columns
        x = tl.load(base + plane[None, :] + (y_at * x_columns + x_at), mask=inside, other=0.0)
        total = _product(grad, x, total, PRECISION, WIDEN)
    at = output[:, None] * weights + weight[None, :]
    chosen = (output < outputs)[:, None] & (weight < weights)[None, :]
    # A dropped weight has no gradient, were the sum infinite.
    keep = tl.load(keep_ptr + at, mask=chosen, other=0).to(tl.float32)
    total = tl.where(keep == 0.0, 0.0, total * keep)
    tl.store(partial_ptr + chunk.to(tl.int64) * outputs * weights + at, total, mask=chosen)


def _configs(configs: tuple[Config, ...], summed: bool) -> tuple[Config, ...]:
    if not interpreted():
        return configs
    return (Config(block=64, outer=16, inner=1024) if summed else Config(block=1024, outer=16, inner=16),)


def _options(config: Config, precision: int) -> dict[str, object]:
    return {
        "PRECISION": PRECISIONS[precision],
        "WIDEN": interpreted(),
        "OUTER": config.outer,
        "INNER": config.inner,
        "BLOCK": config.block,
        **config.options,
        "num_stages": config.stages,
    }


def masked_conv2d(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, window: list[int], precision: int
) -> Tensor:
    """[N, O, H', W'], contiguous arguments; ``window``: strides, paddings and dilations, rows first."""
    n, inputs, x_rows, x_columns = x.shape
    outputs, _, *kernel = weight.shape
    rows, columns = result_size((x_rows, x_columns), (kernel[0], kernel[1]), window)
    y = x.new_empty(n, outputs, rows, columns)
    if y.numel() == 0:
        return y

    def launch(config: Config) -> None:
        pixels = triton.cdiv(rows * columns, config.block)
        forward_kernel[(pixels, triton.cdiv(outputs, config.outer), n)](
            y,
            x,
            weight,
            mask,
            bias,
            inputs,
            outputs,
            x_rows,
            x_columns,
            rows,
            columns,
            *kernel,
            *window,
            HAS_BIAS=bias is not None,
            **_options(config, precision),
        )

    with on_device_of(x):
        problem = (*x.shape, *weight.shape, *window, PRECISIONS[precision])
        run("masked_conv2d", problem, _configs(CONFIGS, False), launch)
    return y


def masked_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    window: list[int],
    precision: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, float32; [0] for one that is not needed."""
    nothing = x.new_empty(0)
    grad_x = _input_gradient(grad, x, weight, mask, window, precision) if needs_x else nothing
    grad_weight = nothing.clone()
    if needs_weight:
        grad_weight = _weight_gradient(grad, x, weight, mask, window, precision)
    return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs_bias else nothing.clone()


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, window: list[int], precision: int
) -> Tensor:
    n, inputs, x_rows, x_columns = x.shape
    outputs, rows, columns = grad.shape[1:]
    grad_x = torch.empty_like(x)
    if x.numel() == 0:
        return grad_x
    stride_rows, stride_columns = window[:2]

    def launch(config: Config) -> None:
        some = triton.cdiv(x_rows, stride_rows) * triton.cdiv(x_columns, stride_columns)
        grid = (
            triton.cdiv(some, config.block),
            triton.cdiv(inputs, config.outer),
            n * stride_rows * stride_columns,
        )
        input_gradient_kernel[grid](
            grad_x,
            grad,
            weight,
            mask,
            inputs,
            outputs,
            x_rows,
            x_columns,
            rows,
            columns,
            *weight.shape[2:],
            *window,
            **_options(config, precision),
        )

    with on_device_of(x):
        problem = (*x.shape, *weight.shape, *window, PRECISIONS[precision])
        run("masked_conv2d_input", problem, _configs(CONFIGS, False), launch)
    return grad_x


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, window: list[int], precision: int
) -> Tensor:
    n, inputs, x_rows, x_columns = x.shape
    outputs, rows, columns = grad.shape[1:]
    if x.numel() == 0 or grad.numel() == 0:
        return torch.zeros_like(weight)
    weights = weight[0].numel()
    result: list[Tensor] = []

    def launch(config: Config) -> None:
        tiles = triton.cdiv(weights, config.block), triton.cdiv(outputs, config.outer)
        steps = n * triton.cdiv(rows * columns, config.inner)
        chunks = max(1, min(_MOST_CHUNKS, steps, _PROGRAMS // (tiles[0] * tiles[1])))
        of_chunk = triton.cdiv(steps, chunks)
        chunks = triton.cdiv(steps, of_chunk)
        partial = x.new_empty(chunks, *weight.shape)
        grid = *tiles, chunks
        weight_gradient_kernel[grid](
            partial,
            grad,
            x,
            mask,
            n,
            inputs,
            outputs,
            x_rows,
            x_columns,
            rows,
            columns,
            *weight.shape[2:],
            *window,
            of_chunk,
            **_options(config, precision),
        )
        result[:] = [partial[0] if chunks == 1 else partial.sum(0)]

    with on_device_of(x):
        problem = (*x.shape, *weight.shape, *window, PRECISIONS[precision])
        run("masked_conv2d_weight", problem, _configs(WEIGHT_CONFIGS, True), launch)
    return result[0]


def result_size(size: tuple[int, int], kernel: tuple[int, int], window: list[int]) -> tuple[int, int]:
    """(H', W') of an image of ``size``."""
    rows, columns = (
        (size[i] + 2 * window[2 + i] - window[4 + i] * (kernel[i] - 1) - 1) // window[i] + 1 for i in (0, 1)
    )
    return rows, columns
