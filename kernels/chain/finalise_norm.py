"""What batch norms make of their sums, forward and backward.

What is loaded anyway is loaded ahead of the sums, so that all of it is waited for at once.
"""

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
    at_once,
    both_sums,
    partial,
    partials_at,
    setting_of,
    size_of,
    weights_before,
)
from oes_fast.kernels.chain.kinds import GRAD_NUMBERS, PROLOGUE_NUMBERS


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
def _moved(old, momentum, value):
    """A running statistic on its way to ``value``, float64."""
    return ((1 - momentum) * old.to(tl.float64) + momentum * value).to(old.dtype)


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
    AT_ONCE: tl.constexpr = at_once(COUNT)
    channels, chunks = size_of(f, CHANNELS), size_of(f, CHUNKS)
    weights = f.weights + weights_before(f, network)
    running = network.to(tl.int64) * f.running_stride
    for begin in range(0, COUNT, AT_ONCE):
        channel = first_channel + begin + tl.arange(0, AT_ONCE)
        there = channel < channels
        gamma = _weight(weights, f.gamma, channel, there, 1.0).to(tl.float64)
        beta = _weight(weights, f.beta, channel, there, 0.0)
        eps = setting_of(f, EPS)
        if f.running_mean is not None:
            momentum, copies = setting_of(f, MOMENTUM), setting_of(f, COPIES)
            place = running + tl.load(f.stats_index + channel, mask=there, other=0)
            old_mean = tl.load(f.running_mean + place, mask=there, other=0.0)
            old_var = tl.load(f.running_var + place, mask=there, other=0.0)
            if not SECOND:
                shift = shift_of(f, network, tl.where(there, channel, -1)).to(tl.float64)
        count, mean, variance = _moments(f, partials_at(network, channel, channels, chunks), chunks, there)
        rstd = 1 / tl.sqrt(variance + eps)
        at = network.to(tl.int64) * channels + channel
        numbers = f.prologue + at * PROLOGUE_NUMBERS + (3 if SECOND else 0)
        tl.store(f.rstd + at, rstd, mask=there)
        tl.store(numbers, mean.to(T), mask=there)
        tl.store(numbers + 1, (gamma * rstd).to(T), mask=there)
        tl.store(numbers + 2, beta, mask=there)
        if f.running_mean is not None:
            count *= copies
            if not SECOND:
                mean += shift
            tl.debug_barrier()  # several threads may hold a channel: all have loaded it before one stores it
            tl.store(f.running_mean + place, _moved(old_mean, momentum, mean), mask=there)
            variance *= count / (count - 1)
            tl.store(f.running_var + place, _moved(old_var, momentum, variance), mask=there)
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
            old_mean = tl.load(f.running_mean + place, mask=there, other=0.0)
            old_var = tl.load(f.running_var + place, mask=there, other=0.0)
            tl.debug_barrier()
            tl.store(f.running_mean + place, _moved(old_mean, momentum, value.to(tl.float64)), mask=there)
            tl.store(f.running_var + place, _moved(old_var, momentum, 0.0), mask=there)
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
    AT_ONCE: tl.constexpr = at_once(COUNT)
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
        old_gamma = tl.load(grad_weights + gamma, mask=gamma >= 0, other=0.0)
        old_beta = tl.load(grad_weights + beta, mask=beta >= 0, other=0.0)
        places = partials_at(network, channel, channels, chunks)
        of_grad, of_product = both_sums(f, places, chunks, there)
        part = -scale.to(tl.float64) / pixels
        grads = f.grads + at * GRAD_NUMBERS
        tl.store(grads, mean, mask=there)
        tl.store(grads + 1, scale, mask=there)
        tl.store(grads + 2, (part * rstd * rstd * of_product).to(T), mask=there)
        tl.store(grads + 3, (part * of_grad).to(T), mask=there)
        tl.debug_barrier()  # several threads may hold a channel: all have loaded it before one stores it
        tl.store(grad_weights + gamma, old_gamma + (of_product * rstd).to(T), mask=gamma >= 0)
        tl.store(grad_weights + beta, old_beta + of_grad.to(T), mask=beta >= 0)
