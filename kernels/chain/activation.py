"""The activations of a chain and their derivatives, as csrc/cuda/norm/activation.h has them."""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.chain.kinds import ACT_ELU, ACT_LEAKY, OUT_SIGMOID


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0, exact to the last bits also near 0."""
    TERMS: tl.constexpr = 12 if x.dtype == tl.float64 else 7
    series = tl.full(x.shape, 1.0, x.dtype)
    for i in tl.static_range(TERMS):
        series = 1.0 + series * (x * (1.0 / (TERMS + 1 - i)))
    return tl.where(x > -0.3, x * series, tl.exp(x) - 1.0)


@triton.jit
def activate(x, slope, ACT: tl.constexpr):
    """The activation ACT_* of x; none is leaky with a slope of 1."""
    if ACT == ACT_LEAKY:
        return tl.where(x < 0, x * slope, x).to(x.dtype)
    if ACT == ACT_ELU:
        return tl.where(x < 0, expm1(tl.where(x < 0, x, 0.0)) * slope, x).to(x.dtype)
    return x * sigmoid(x)


@triton.jit
def activate_grad(x, slope, ACT: tl.constexpr):
    """Derivative of :func:`activate` at x. At the kink it is that of the negative side, as PyTorch has it."""
    below = tl.full(x.shape, slope, x.dtype)
    if ACT == ACT_LEAKY:
        return tl.where(x <= 0, below, 1.0)
    if ACT == ACT_ELU:
        return tl.where(x <= 0, below * tl.exp(tl.where(x <= 0, x, 0.0)), 1.0)
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def output_activate(x, slope, OUT: tl.constexpr):
    """The activation OUT_* of the image that leaves the network."""
    if OUT == OUT_SIGMOID:
        return sigmoid(x)
    return activate(x, slope, ACT_LEAKY)


@triton.jit
def output_grad(x, slope, OUT: tl.constexpr):
    """Derivative of :func:`output_activate` at x."""
    if OUT == OUT_SIGMOID:
        s = sigmoid(x)
        return s * (1.0 - s)
    return activate_grad(x, slope, ACT_LEAKY)
