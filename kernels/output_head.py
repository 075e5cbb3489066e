"""Triton kernels of oes_fast/reference/output_head.py: one pass over the features in either direction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.tuning import Config, for_interpreter, run
from torch import Tensor

CONFIGS = (
    Config(block=256, warps=4),
    Config(block=512, warps=4),
    Config(block=128, warps=4),
)


@triton.jit
def forward_kernel(
    output_ptr,
    partial_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    target_ptr,
    inputs,
    outputs,
    x_pixels,
    x_columns,
    pixels,
    columns,
    HAS_BIAS: tl.constexpr,
    SIGMOID: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All outputs of one block of pixels; the block's sum of squared errors goes to partial."""
    program = tl.program_id(0)
    blocks = tl.cdiv(pixels, BLOCK)
    image = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    # Pointers move from channel to channel: an offset of many channels need not fit 32 bits.
    x_at = x_ptr + image * inputs * x_pixels + pixel // columns * x_columns + pixel % columns
    output = tl.arange(0, OUTPUTS)
    there = output < outputs
    total = tl.zeros((OUTPUTS, BLOCK), tl.float32)
    for channel in range(0, inputs):
        x = tl.load(x_at, mask=inside, other=0.0)
        weight = tl.load(weight_ptr + output * inputs + channel, mask=there, other=0.0)
        total += weight[:, None] * x[None, :]
        x_at += x_pixels
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=there, other=0.0)[:, None]
    if SIGMOID:
        total = 1.0 / (1.0 + tl.exp(-total))
    mask = there[:, None] & inside[None, :]
    at = (image * outputs + output[:, None]) * pixels + pixel[None, :]
    error = tl.where(mask, total - tl.load(target_ptr + at, mask=mask, other=0.0), 0.0)
    tl.store(output_ptr + at, total, mask=mask)
    tl.store(partial_ptr + program, tl.sum(tl.sum(error * error, axis=1), axis=0))


@triton.jit
def backward_kernel(
    grad_x_ptr,
    partial_ptr,
    grad_output_ptr,
    grad_loss_ptr,
    x_ptr,
    weight_ptr,
    output_ptr,
    target_ptr,
    inputs,
    outputs,
    x_pixels,
    x_columns,
    rows,
    columns,
    loss_scale,
    HAS_OUTPUT: tl.constexpr,
    HAS_LOSS: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    SIGMOID: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one block of pixels of x; its sums for weight and bias go to partial [C + 1, outputs]."""
    program = tl.program_id(0)
    blocks = tl.cdiv(x_pixels, BLOCK)
    image = (program // blocks).to(tl.int64)
    pixel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < x_pixels
    row, column = pixel // x_columns, pixel % x_columns
    output = tl.arange(0, OUTPUTS)
    there = output < outputs
    mask = there[:, None] & (inside & (row < rows) & (column < columns))[None, :]
    at = (image * outputs + output[:, None]) * rows * columns + (row * columns + column)[None, :]
    value = tl.load(output_ptr + at, mask=mask, other=0.0)
    grad = tl.zeros((OUTPUTS, BLOCK), tl.float32)
    if HAS_LOSS:
        target = tl.load(target_ptr + at, mask=mask, other=0.0)
        grad += (value - target) * (tl.load(grad_loss_ptr) * loss_scale)
    if HAS_OUTPUT:
        grad += tl.load(grad_output_ptr + at, mask=mask, other=0.0)
    if SIGMOID:
        grad *= value * (1.0 - value)
    grad = tl.where(mask, grad, 0.0)
    sums = partial_ptr + program.to(tl.int64) * (inputs + 1) * outputs
    if NEEDS_WEIGHT:
        tl.store(sums + inputs * outputs + output, tl.sum(grad, axis=1), mask=there)
    place = image * inputs * x_pixels + pixel
    for channel in range(0, inputs):
        if NEEDS_WEIGHT:
            x = tl.load(x_ptr + place, mask=inside, other=0.0)
            tl.store(sums + channel * outputs + output, tl.sum(grad * x[None, :], axis=1), mask=there)
        if NEEDS_X:
            weight = tl.load(weight_ptr + output * inputs + channel, mask=there, other=0.0)
            tl.store(grad_x_ptr + place, tl.sum(grad * weight[:, None], axis=0), mask=inside)
        place += x_pixels


def output_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """(output, loss), float32, contiguous arguments, weight [O, C]."""
    images, inputs, x_rows, x_columns = x.shape
    outputs, rows, columns = target.shape[1:]
    output, pixels = torch.empty_like(target), rows * columns
    partial = x.new_empty(0)

    def launch(config: Config) -> None:
        nonlocal partial
        programs = images * triton.cdiv(pixels, config.block)
        partial = x.new_empty(programs)
        forward_kernel[(programs,)](
            output,
            partial,
            x,
            weight,
            bias,
            target,
            inputs,
            outputs,
            x_rows * x_columns,
            x_columns,
            pixels,
            columns,
            HAS_BIAS=bias is not None,
            SIGMOID=sigmoid,
            OUTPUTS=triton.next_power_of_2(outputs),
            BLOCK=config.block,
            **config.options,
        )

    with on_device_of(x):
        run("output_head", (*x.shape, *target.shape), for_interpreter(CONFIGS, pixels), launch)
    return output, partial.sum() / target.numel()


def output_head_backward(
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    weight: Tensor,
    output: Tensor,
    target: Tensor,
    sigmoid: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, float32; [0] for one that is not needed."""
    images, inputs, x_rows, x_columns = x.shape
    outputs, rows, columns = target.shape[1:]
    grad_x = x.new_empty(x.shape if needs_x else 0)
    sums = partial = x.new_empty(0)
    x_pixels = x_rows * x_columns

    def launch(config: Config) -> None:
        nonlocal partial
        programs = images * triton.cdiv(x_pixels, config.block)
        if needs_weight or needs_bias:
            partial = x.new_empty(programs, inputs + 1, outputs)
        backward_kernel[(programs,)](
            grad_x,
            partial,
            grad_output,
            grad_loss,
            x,
            weight,
            output,
            target,
            inputs,
            outputs,
            x_pixels,
            x_columns,
            rows,
            columns,
            2 / target.numel(),
            HAS_OUTPUT=grad_output is not None,
            HAS_LOSS=grad_loss is not None,
            NEEDS_X=needs_x,
            NEEDS_WEIGHT=needs_weight or needs_bias,
            SIGMOID=sigmoid,
            OUTPUTS=triton.next_power_of_2(outputs),
            BLOCK=config.block,
            **config.options,
        )

    with on_device_of(x):
        problem = (*x.shape, *target.shape)
        run("output_head_backward", problem, for_interpreter(CONFIGS, x_pixels), launch)
    if needs_weight or needs_bias:
        sums = partial.sum(0)
    grad_weight = sums[:inputs].t().contiguous() if needs_weight else x.new_empty(0)
    # Not a view: results of an operator may not share memory.
    return grad_x, grad_weight, sums[inputs].clone() if needs_bias else x.new_empty(0)
