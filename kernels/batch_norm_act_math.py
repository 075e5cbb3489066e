"""What the kernels of batch_norm_act share: reflection, activations and their derivatives."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reflect(at, size, PAD: tl.constexpr):
    """The place in an image that a place in the padded image shows."""
    at = at - PAD
    at = tl.where(at < 0, -at, at)
    return tl.where(at >= size, 2 * (size - 1) - at, at)


@triton.jit
def _mirrored(at, size, which: tl.constexpr, PAD: tl.constexpr):
    """Place number ``which`` of three in the padded image that shows ``at``, and whether there is one."""
    if which == 0:
        return at + PAD, at >= 0
    if which == 1:
        return PAD - at, (at >= 1) & (at <= PAD)
    return PAD + 2 * (size - 1) - at, (at >= size - 1 - PAD) & (at <= size - 2)


@triton.jit
def gradient_of_image(grad_ptr, pixel, inside, rows, columns, PAD: tl.constexpr):
    """The padded gradient of one plane folded back onto the image."""
    if PAD == 0:
        return tl.load(grad_ptr + pixel, mask=inside, other=0.0)
    row, column = pixel // columns, pixel % columns
    total = tl.zeros(pixel.shape, tl.float32)
    for i in tl.static_range(3):
        y, seen_row = _mirrored(row, rows, i, PAD)
        for j in tl.static_range(3):
            x, seen_column = _mirrored(column, columns, j, PAD)
            seen = inside & seen_row & seen_column
            total += tl.load(grad_ptr + y * (columns + 2 * PAD) + x, mask=seen, other=0.0)
    return total


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """none, leaky_relu, elu or silu."""
    if ACTIVATION == 1:
        return tl.where(z > 0.0, z, z * slope)
    if ACTIVATION == 2:
        return tl.where(z > 0.0, z, slope * (tl.exp(tl.where(z > 0.0, 0.0, z)) - 1.0))
    if ACTIVATION == 3:
        return z / (1.0 + tl.exp(-z))
    return z


@triton.jit
def derivative(z, slope, ACTIVATION: tl.constexpr):
    """Of :func:`activate`."""
    if ACTIVATION == 1:
        return tl.where(z > 0.0, 1.0, slope)
    if ACTIVATION == 2:
        return tl.where(z > 0.0, 1.0, slope * tl.exp(tl.where(z > 0.0, 0.0, z)))
    if ACTIVATION == 3:
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return sigmoid * (1.0 + z * (1.0 - sigmoid))
    return tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def affine(weight_ptr, bias_ptr, channel, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr):
    """(gamma, beta) of a channel, (1, 0) where there are none."""
    weight, bias = 1.0, 0.0
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + channel)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel)
    return weight, bias
