"""Batch norm with activation of small images: a program takes a whole channel, in one pass either way.

The other kernels (oes_fast/kernels/batch_norm_act.py) sum chunks of a channel in one launch and use the sums
in a second. Where a channel fits into the registers of one program, half the launches do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.batch_norm_act_math import activate, affine, derivative, gradient_of_image, reflect
from oes_fast.kernels.tuning import Config
from torch import Tensor

# block: values of a channel, of all images together.
CONFIGS = (Config(block=256, warps=2), Config(block=1024, warps=8), Config(block=4096, warps=32))
PADDED_CONFIGS = CONFIGS[:2]  # folded from nine places, more values do not fit into registers
_GENERAL = {
    "do_not_specialize": ["images", "channels"],
    "do_not_specialize_on_alignment": ["weight_ptr", "bias_ptr"],
}


def config_of(values: int, pad: int) -> Config | None:
    """The configuration for channels of so many values; None where they are too many."""
    configs = CONFIGS if pad == 0 else PADDED_CONFIGS
    return next((config for config in configs if values <= config.block), None)


@triton.jit(**_GENERAL)
def forward_kernel(
    y_ptr,
    mean_ptr,
    var_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    images,
    channels,
    rows,
    columns,
    eps,
    slope,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Statistics and padded result of one channel."""
    channel = tl.program_id(0)
    pixels = rows * columns
    values = images * pixels
    value = tl.arange(0, BLOCK)
    inside = value < values
    plane = (value // pixels).to(tl.int64) * channels + channel
    x = tl.load(x_ptr + plane * pixels + value % pixels, mask=inside, other=0.0)
    # About the channel's first value, so that a large mean does not eat the digits of the variance.
    middle = tl.load(x_ptr + channel.to(tl.int64) * pixels)
    offset = tl.sum(tl.where(inside, x - middle, 0.0), axis=0) / values
    mean = middle + offset
    apart = tl.where(inside, (x - middle) - offset, 0.0)
    var = tl.sum(apart * apart, axis=0) / values
    tl.store(mean_ptr + channel, mean)
    tl.store(var_ptr + channel, var)
    scale = 1.0 / tl.sqrt_rn(var + eps)
    bias = 0.0
    if HAS_WEIGHT:
        scale *= tl.load(weight_ptr + channel)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel)
    if PAD == 0:
        y = activate((x - mean) * scale + bias, slope, ACTIVATION)
        tl.store(y_ptr + plane * pixels + value % pixels, y, mask=inside)
    else:
        out_columns = columns + 2 * PAD
        out_pixels = (rows + 2 * PAD) * out_columns
        for first in range(0, images * out_pixels, BLOCK):
            value = first + tl.arange(0, BLOCK)
            inside = value < images * out_pixels
            plane = (value // out_pixels).to(tl.int64) * channels + channel
            pixel = value % out_pixels
            at = reflect(pixel // out_columns, rows, PAD) * columns
            at += reflect(pixel % out_columns, columns, PAD)
            x = tl.load(x_ptr + plane * pixels + at, mask=inside, other=0.0)
            y = activate((x - mean) * scale + bias, slope, ACTIVATION)
            tl.store(y_ptr + plane * out_pixels + pixel, y, mask=inside)


@triton.jit(**_GENERAL)
def backward_kernel(
    grad_x_ptr,
    grad_weight_ptr,
    grad_bias_ptr,
    grad_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    images,
    channels,
    rows,
    columns,
    eps,
    slope,
    OF_BATCH: tl.constexpr,
    NEEDS_X: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All gradients of one channel."""
    channel = tl.program_id(0)
    pixels = rows * columns
    values = images * pixels
    value = tl.arange(0, BLOCK)
    inside = value < values
    plane = (value // pixels).to(tl.int64) * channels + channel
    pixel = value % pixels
    mean = tl.load(mean_ptr + channel)
    scale = 1.0 / tl.sqrt_rn(tl.load(var_ptr + channel) + eps)
    weight, bias = affine(weight_ptr, bias_ptr, channel, HAS_WEIGHT, HAS_BIAS)
    x = tl.load(x_ptr + plane * pixels + pixel, mask=inside, other=0.0)
    normal = tl.where(inside, (x - mean) * scale, 0.0)
    grad_pixels = (rows + 2 * PAD) * (columns + 2 * PAD)
    dz = gradient_of_image(grad_ptr + plane * grad_pixels, pixel, inside, rows, columns, PAD)
    dz *= derivative(normal * weight + bias, slope, ACTIVATION)
    total, products = tl.sum(dz, axis=0), tl.sum(dz * normal, axis=0)
    if NEEDS_WEIGHT:
        tl.store(grad_weight_ptr + channel, products)
    if NEEDS_BIAS:
        tl.store(grad_bias_ptr + channel, total)
    if NEEDS_X:
        if OF_BATCH:
            dz -= total / values + normal * (products / values)
        tl.store(grad_x_ptr + plane * pixels + pixel, dz * (weight * scale), mask=inside)


def batch_norm_act(
    y: Tensor, mean: Tensor, var: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float,
    activation: int, slope: float, pad: int, config: Config,
) -> None:  # fmt: skip
    """Fill the padded result, mean and biased variance."""
    images, channels, rows, columns = x.shape
    forward_kernel[(channels,)](
        y, mean, var, x, weight, bias, images, channels, rows, columns, eps, slope,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, ACTIVATION=activation, PAD=pad,
        BLOCK=config.block, **config.options,
    )  # fmt: skip


def batch_norm_act_backward(
    grads: tuple[Tensor, Tensor, Tensor], grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    mean: Tensor, var: Tensor, eps: float, activation: int, slope: float, pad: int, of_batch: bool,
    config: Config,
) -> None:  # fmt: skip
    """Fill the gradients of x, weight and bias; those of no elements are not needed."""
    images, channels, rows, columns = x.shape
    grad_x, grad_weight, grad_bias = grads
    backward_kernel[(channels,)](
        grad_x, grad_weight, grad_bias, grad, x, weight, bias, mean, var,
        images, channels, rows, columns, eps, slope,
        OF_BATCH=of_batch, NEEDS_X=grad_x.numel() > 0, NEEDS_WEIGHT=grad_weight.numel() > 0,
        NEEDS_BIAS=grad_bias.numel() > 0, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        ACTIVATION=activation, PAD=pad, BLOCK=config.block, **config.options,
    )  # fmt: skip
