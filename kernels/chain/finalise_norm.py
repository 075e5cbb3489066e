"""What batch norms make of their sums, forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate
from oes_fast.kernels.chain.finalise_shift import shift_of
from oes_fast.kernels.chain.finalise_sums import (
    CHANNELS,
    CHUNKS,
    CONSTANTS,
    CONSTANTS_BEFORE,
    COPIES,
    EPS,
    MOMENTUM,
    PIXELS,
    ROUND,
    SLOPE,
    TRACKED,
    add_to,
    channel_sums,
    partial,
    partials_at,
    setting_of,
    size_of,
    weights_before,
)
from oes_fast.kernels.chain.kinds import GRAD_NUMBERS, PROLOGUE_NUMBERS

_MOST = tl.constexpr(32)  # channels that are taken at once: more would not fit the registers


@triton.jit
def _moments(f, at, chunks, there):
    """Pixels, mean and variance of every channel; 2 pixels where there is no such channel.

    Every place of a tile of chunks sums about the mean of its first chunk that has pixels: in float64 nothing
    is lost so, and nothing is divided before the last.
    """
    chunk = tl.arange(0, ROUND)
    count = partial(f, at, chunk, chunks, there, 0)
    pivot = partial(f, at, chunk, chunks, there, 1)
    squares = partial(f, at, chunk, chunks, there, 2)
    linear = tl.zeros_like(count)
    for first in range(ROUND, chunks, ROUND):
        chunk = first + tl.arange(0, ROUND)
        n = partial(f, at, chunk, chunks, there, 0)
        mean = partial(f, at, chunk, chunks, there, 1)
        pivot = tl.where(count == 0, mean, pivot)
        delta = tl.where(n == 0, 0.0, mean - pivot)
        linear += n * delta
        squares += partial(f, at, chunk, chunks, there, 2) + n * delta * delta
        count += n
    total = tl.where(there, tl.sum(count, axis=1), 2.0)
    mean = tl.sum(count * pivot + linear, axis=1) / total
    delta = pivot - mean[:, None]
    squares = tl.sum(squares + delta * (2 * linear + count * delta), axis=1)
    return total, mean, squares / total


@triton.jit
def _weight(weights, index_ptr, channel, there, absent: tl.constexpr):
    """A weight of every channel, or ``absent``."""
    index = tl.load(index_ptr + channel, mask=there, other=-1)
    return tl.load(weights + index, mask=index >= 0, other=absent)


@triton.jit
def _move(pointer, at, momentum, value, there):
    """Running statistics move towards ``value``, float64."""
    old = tl.load(pointer + at, mask=there, other=0.0)
    tl.debug_barrier()  # several threads may hold an element: all have loaded it before one stores it
    new = (1 - momentum) * old.to(tl.float64) + momentum * value
    tl.store(pointer + at, new.to(old.dtype), mask=there)


@triton.jit
def norm_forward(f, network, first_channel, COUNT: tl.constexpr, SECOND: tl.constexpr, ACT: tl.constexpr):
    """Statistics of COUNT channels from ``first_channel`` on, and what follows from them for who reads them.

    Writes ``prologue`` and ``rstd`` and moves the running statistics of the channels; with a first channel of
    0 also those of tracked constants, and writes the constants of the result.

    Args:
        f: a NormForward.
        network: int32.
        first_channel: int32.
        COUNT: a power of two; channels that there are not are left out.
        SECOND: of the second norm behind a convolution.
        ACT: activation behind this norm, of the constants.
    """
    T: tl.constexpr = f.weights.dtype.element_ty
    AT_ONCE: tl.constexpr = COUNT if COUNT < _MOST else _MOST
    channels, chunks = size_of(f, CHANNELS), size_of(f, CHUNKS)
    weights = f.weights + weights_before(f, network)
    running = network.to(tl.int64) * f.running_stride
    for begin in range(0, COUNT, AT_ONCE):
        channel = first_channel + begin + tl.arange(0, AT_ONCE)
        there = channel < channels
        gamma = _weight(weights, f.gamma, channel, there, 1.0).to(tl.float64)
        beta = _weight(weights, f.beta, channel, there, 0.0)
        count, mean, variance = _moments(f, partials_at(network, channel, channels, chunks), chunks, there)
        rstd = 1 / tl.sqrt(variance + setting_of(f, EPS))
        at = network.to(tl.int64) * channels + channel
        numbers = f.prologue + at * PROLOGUE_NUMBERS + (3 if SECOND else 0)
        tl.store(f.rstd + at, rstd, mask=there)
        tl.store(numbers, mean.to(T), mask=there)
        tl.store(numbers + 1, (gamma * rstd).to(T), mask=there)
        tl.store(numbers + 2, beta, mask=there)
        if f.running_mean is not None:
            momentum = setting_of(f, MOMENTUM)
            count *= setting_of(f, COPIES)
            place = running + tl.load(f.stats_index + channel, mask=there, other=0)
            if not SECOND:
                mean += shift_of(f, network, tl.where(there, channel, -1)).to(tl.float64)
            _move(f.running_mean, place, momentum, mean, there)
            _move(f.running_var, place, momentum, variance * count / (count - 1), there)
    if first_channel == 0:
        _constants(f, network, channels, SECOND, ACT)


@triton.jit
def _constants(f, network, channels, SECOND: tl.constexpr, ACT: tl.constexpr):
    """Running statistics of tracked constants, and the constants of the result."""
    if f.running_mean is not None:
        tracked_count = size_of(f, TRACKED)
        momentum = setting_of(f, MOMENTUM)
        for first in range(0, tracked_count, ROUND):
            i = first + tl.arange(0, ROUND)
            there = i < tracked_count
            tracked = tl.load(f.tracked + i, mask=there, other=-1)
            if SECOND:
                before = f.constants_before + network.to(tl.int64) * size_of(f, CONSTANTS_BEFORE)
                value = tl.load(before + tracked, mask=tracked >= 0, other=0.0)
            else:
                value = shift_of(f, network, tl.where(tracked >= 0, channels + tracked, -1))
            place = network.to(tl.int64) * f.running_stride
            place += tl.load(f.tracked_stats_index + i, mask=there, other=0)
            value = value.to(tl.float64)
            _move(f.running_mean, place, momentum, value, there)
            _move(f.running_var, place, momentum, tl.zeros_like(value), there)
    constants_count = size_of(f, CONSTANTS)
    for first in range(0, constants_count, ROUND):
        i = first + tl.arange(0, ROUND)
        there = i < constants_count
        weights = f.weights + weights_before(f, network)
        beta = tl.load(weights + tl.load(f.betas + i, mask=there, other=0), mask=there, other=0.0)
        value = activate(beta, setting_of(f, SLOPE).to(beta.dtype), ACT)
        tl.store(f.constants + network.to(tl.int64) * constants_count + i, value, mask=there)


@triton.jit
def norm_backward(f, network, first_channel, COUNT: tl.constexpr, SECOND: tl.constexpr):
    """Gradient of a norm: numbers for who reads it, and the gradients of gamma and beta, which are added.

    Args:
        f: a NormBackward.
        network: int32.
        first_channel: int32.
        COUNT: a power of two; channels that there are not are left out.
        SECOND: of the second norm behind a convolution.
    """
    T: tl.constexpr = f.prologue.dtype.element_ty
    AT_ONCE: tl.constexpr = COUNT if COUNT < _MOST else _MOST
    channels, chunks = size_of(f, CHANNELS), size_of(f, CHUNKS)
    pixels = size_of(f, PIXELS).to(tl.float64)
    grad_weights = f.grad_weights + weights_before(f, network)
    for begin in range(0, COUNT, AT_ONCE):
        channel = first_channel + begin + tl.arange(0, AT_ONCE)
        there = channel < channels
        gamma = tl.load(f.gamma + channel, mask=there, other=-1)
        beta = tl.load(f.beta + channel, mask=there, other=-1)
        at = network.to(tl.int64) * channels + channel
        numbers = f.prologue + at * PROLOGUE_NUMBERS + (3 if SECOND else 0)
        mean = tl.load(numbers, mask=there, other=0.0)
        scale = tl.load(numbers + 1, mask=there, other=0.0)
        rstd = tl.load(f.rstd + at, mask=there, other=0.0)
        places = partials_at(network, channel, channels, chunks)
        of_grad = channel_sums(f, places, chunks, there, 0)
        of_product = channel_sums(f, places, chunks, there, 1)
        part = -scale.to(tl.float64) / pixels
        grads = f.grads + at * GRAD_NUMBERS
        tl.store(grads, mean, mask=there)
        tl.store(grads + 1, scale, mask=there)
        tl.store(grads + 2, (part * rstd * rstd * of_product).to(T), mask=there)
        tl.store(grads + 3, (part * of_grad).to(T), mask=there)
        add_to(grad_weights, gamma, of_product * rstd, there)
        add_to(grad_weights, beta, of_grad, there)
