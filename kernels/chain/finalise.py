"""What the last program of a launch does with the sums that all programs have left in memory.

They are added in a fixed order, so that every run gives the same bits, and no launch of its own is needed. From
the partial sums on everything is float64, as in csrc/cuda/norm/finalise.h. One program works alone here: it takes
many channels and chunks at once, and the fewer chunks there are, the sooner it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate, activate_grad
from oes_fast.kernels.chain.kinds import (
    GRAD_NUMBERS,
    LOSS,
    NORM_BACKWARD,
    NORM_FORWARD,
    PARTIAL_NUMBERS,
    PROLOGUE_NUMBERS,
    SHIFT_BACKWARD,
)
from torch import Tensor

# Of the tensor `sizes`.
_CHANNELS = tl.constexpr(0)
_CHUNKS = tl.constexpr(1)
_PIXELS = tl.constexpr(2)
_WEIGHTS = tl.constexpr(3)
_TRACKED = tl.constexpr(4)
_CONSTANTS = tl.constexpr(5)
_CONSTANTS_BEFORE = tl.constexpr(6)
_SHIFT_OUTPUTS = tl.constexpr(7)
_SHIFT_CONSTANTS = tl.constexpr(8)
_SHIFT_TAPS = tl.constexpr(9)

# Of the tensor `settings`.
_EPS = tl.constexpr(0)
_MOMENTUM = tl.constexpr(1)
_COPIES = tl.constexpr(2)
_FACTOR = tl.constexpr(3)
_SLOPE = tl.constexpr(4)

_ROUND_CHANNELS = tl.constexpr(32)  # that are taken at once, with as many chunks
_ROUND = tl.constexpr(32)  # chunks, taps or constants
_SHIFT_NUMBERS = tl.constexpr(3)  # of a tap of a constant channel


class NormForward(NamedTuple):
    """Arguments of :func:`norm_forward`: N networks, T the dtype of the weights.

    All but ``running_mean`` and ``running_var`` are tensors in any case: of one element where there is nothing.
    """

    partials: Tensor  # float64 [N, channels, chunks, 3]: pixels, their mean, sum of squares about it
    sizes: Tensor  # see finalise_sizes
    settings: Tensor  # see finalise_settings; its slope is that of the activation behind this norm
    weights: Tensor  # T [N, weights]
    gamma: Tensor  # int32 [channels]: index of a weight or -1
    beta: Tensor  # the same
    prologue: Tensor  # T [N, channels, 6], written
    rstd: Tensor  # float64 [N, channels], written
    running_mean: Tensor | None  # T [N, running_stride], updated; None: left alone
    running_var: Tensor | None  # the same
    running_stride: int  # 0 where N is 1
    stats_index: Tensor  # int32 [channels]: of the channels in the running statistics
    tracked: Tensor  # int32 [tracked]: constants whose statistics are kept; -1 for zero
    tracked_stats_index: Tensor  # int32 [tracked]
    betas: Tensor  # int32 [constants]: of the constant channels of the result
    constants: Tensor  # T [N, constants], written
    constants_before: Tensor  # T [N, constants of the first norm]; of a second norm
    shift_bias: Tensor  # as Loss has them, of the convolution before the first norm
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor


class NormBackward(NamedTuple):
    """Arguments of :func:`norm_backward`."""

    partials: (
        Tensor  # float64 [N, channels, chunks, 3]: sums of v and of v * (x - mean); the third is not used
    )
    sizes: Tensor
    weights: Tensor  # T [N, weights]
    gamma: Tensor
    beta: Tensor
    prologue: Tensor  # as norm_forward has left it
    grads: Tensor  # T [N, channels, 4], written
    rstd: Tensor  # as norm_forward has left it
    grad_weights: Tensor  # T [N, weights], added to


class Loss(NamedTuple):
    """Arguments of :func:`mean_loss`, and of :func:`shift_of` where there is no loss."""

    partials: Tensor | None  # float64 [N, channels, chunks, 3]: sum of squared errors; two are not used
    sizes: Tensor
    settings: Tensor
    weights: Tensor  # T [N, weights]
    loss: Tensor | None  # T [N], written
    shift_bias: Tensor  # see shift_tables
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor  # T [N, constants]: of the image that the convolution reads


class ShiftBackward(NamedTuple):
    """Arguments of :func:`shift_backward`."""

    partials: Tensor  # float64 [N, channels, chunks, 3]: sum of the gradient; two are not used
    sizes: Tensor
    settings: Tensor  # its slope is that of the constants' activation
    weights: Tensor  # T [N, weights]
    grad_weights: Tensor  # T [N, weights], added to
    shift_bias: Tensor
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor
    shift_betas: Tensor  # int32 [constants]: index of the beta that each is the activation of


def finalise_sizes(
    *,
    channels: int,
    chunks: int,
    pixels: int,
    weights: int,
    device: torch.device | str,
    tracked: int = 0,
    constants: int = 0,
    constants_before: int = 0,
    shift_outputs: int = 0,
    shift_constants: int = 0,
    shift_taps: int = 0,
) -> Tensor:
    """The int32 tensor ``sizes`` of any of the above.

    Args:
        channels: that vary, of the image that the sums are of.
        chunks: partial sums of a channel.
        pixels: of a channel.
        weights: length of a network's flat vector.
        device: of the tensor.
        tracked: constant channels whose running statistics are kept.
        constants: constant channels of the result of this norm.
        constants_before: of a second norm: those of the first.
        shift_outputs: length of the bias, as :func:`shift_tables` takes it.
        shift_constants: constant channels of the image that the convolution reads.
        shift_taps: taps of constant channels, of all outputs.
    """
    numbers = (
        channels, chunks, pixels, weights, tracked, constants, constants_before,
        shift_outputs, shift_constants, shift_taps,
    )  # fmt: skip
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def finalise_settings(
    *,
    device: torch.device | str,
    eps: float = 0.0,
    momentum: float = 0.0,
    copies: float = 1.0,
    factor: float = 1.0,
    slope: float = 1.0,
) -> Tensor:
    """The float64 tensor ``settings`` of any of the above: a kernel's own arguments would round them.

    Args:
        device: of the tensor.
        eps: of a norm.
        momentum: of its running statistics.
        copies: pixels that stand for each.
        factor: of the weights of constant channels: the convolution's scale, times 4 where it has a box.
        slope: of the activation of constant channels: of those written, or of those read.
    """
    return torch.tensor((eps, momentum, copies, factor, slope), dtype=torch.float64, device=device)


def shift_tables(
    bias: Sequence[int], constant_taps: Sequence[int], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """What a convolution adds to all pixels of an output: its bias, and what constant input channels add.

    Args:
        bias: of every output, those that vary first: index of a weight or -1.
        constant_taps: (output, index of the weight, number of the constant) of every kept weight, flat.
        device: of the tensors.

    Returns:
        int32 (shift_bias [outputs], shift_first [outputs + 1]: of each output's taps, shift_taps [taps, 3]: index
        of the weight, number of the constant, output; of one row where there are none).
    """
    taps = torch.tensor(constant_taps, dtype=torch.int32).reshape(-1, 3)
    taps = taps[torch.sort(taps[:, 0], stable=True).indices][:, [1, 2, 0]].contiguous()
    counts = torch.bincount(taps[:, 2].long(), minlength=len(bias))
    first = torch.zeros(len(bias) + 1, dtype=torch.int32)
    first[1:] = counts.cumsum(0)
    if not constant_taps:
        taps = torch.zeros(1, 3, dtype=torch.int32)
    return torch.tensor(bias, dtype=torch.int32, device=device), first.to(device), taps.to(device)


@triton.jit
def is_last(ticket_ptr, count):
    """Whether this program is the last of ``count`` to ask; then the ticket is 0 again.

    What the programs have stored before is there for the last one to load, with ``cache_modifier=".cg"``. All
    of a program's threads must take part.
    """
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def _size(f, which: tl.constexpr):
    return tl.load(f.sizes + which)


@triton.jit
def _weights_of(f, network):
    """Where the weights of the network begin, from those of the first."""
    return network.to(tl.int64) * _size(f, _WEIGHTS)


@triton.jit
def shift_of(f, network, outputs):
    """What is added to all pixels of ``outputs`` (an int32 vector) -> T, of that shape; 0 where there is none.

    Called by any program; ``f``: a NormForward or a Loss.
    """
    there = (outputs >= 0) & (outputs < _size(f, _SHIFT_OUTPUTS))
    weights = f.weights + _weights_of(f, network)
    constants = f.shift_constants + network.to(tl.int64) * _size(f, _SHIFT_CONSTANTS)
    factor = tl.load(f.settings + _FACTOR).to(f.weights.dtype.element_ty)
    bias = tl.load(f.shift_bias + outputs, mask=there, other=-1)
    begin = tl.load(f.shift_first + outputs, mask=there, other=0)
    end = tl.load(f.shift_first + outputs + 1, mask=there, other=0)
    total = tl.load(weights + bias, mask=bias >= 0, other=0.0)
    for first in range(0, tl.max(end - begin), _ROUND):
        tap = (begin + first)[:, None] + tl.arange(0, _ROUND)[None, :]
        seen = tap < end[:, None]
        weight = tl.load(f.shift_taps + tap * _SHIFT_NUMBERS, mask=seen, other=0)
        constant = tl.load(f.shift_taps + tap * _SHIFT_NUMBERS + 1, mask=seen, other=0)
        product = tl.load(weights + weight, mask=seen, other=0.0) * factor
        total += tl.sum(product * tl.load(constants + constant, mask=seen, other=0.0), axis=1)
    return total


@triton.jit
def _move(pointer, at, momentum, value, there):
    """A running statistic moves towards ``value`` (float64)."""
    old = tl.load(pointer + at, mask=there, other=0.0)
    new = (1 - momentum) * old.to(tl.float64) + momentum * value
    tl.store(pointer + at, new.to(old.dtype), mask=there)


@triton.jit
def _partials_at(f, network, channel, channels, chunks):
    """Offset of the first partial of every channel; int64."""
    return (network.to(tl.int64) * channels + channel) * chunks * PARTIAL_NUMBERS


@triton.jit
def _partial(f, at, chunk, chunks, there, which: tl.constexpr):
    """Number ``which`` of a tile [channels, chunks] of partials."""
    places = at[:, None] + chunk[None, :] * PARTIAL_NUMBERS + which
    mask = there[:, None] & (chunk < chunks)[None, :]
    return tl.load(f.partials + places, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def _moments(f, at, chunks, there):
    """Pixels, mean and variance of every channel.

    Every place of a tile of chunks sums about the mean of its first chunk that has pixels: in float64 nothing is
    lost so, and there is no division before the last.
    """
    chunk = tl.arange(0, _ROUND)
    count = _partial(f, at, chunk, chunks, there, 0)
    pivot = _partial(f, at, chunk, chunks, there, 1)
    squares = _partial(f, at, chunk, chunks, there, 2)
    linear = tl.zeros_like(count)
    for first in range(_ROUND, chunks, _ROUND):
        chunk = first + tl.arange(0, _ROUND)
        n = _partial(f, at, chunk, chunks, there, 0)
        mean = _partial(f, at, chunk, chunks, there, 1)
        pivot = tl.where(count == 0, mean, pivot)
        delta = mean - pivot
        linear += n * delta
        squares += _partial(f, at, chunk, chunks, there, 2) + n * delta * delta
        count += n
    total = tl.sum(count, axis=1)
    mean = tl.sum(count * pivot + linear, axis=1) / total
    delta = pivot - mean[:, None]
    squares = tl.sum(squares + delta * (2 * linear + count * delta), axis=1)
    return total, mean, squares / total


@triton.jit
def _weight(f, weights, index_ptr, channel, there, absent: tl.constexpr):
    """A weight of every channel, or ``absent``."""
    index = tl.load(index_ptr + channel, mask=there, other=-1)
    return tl.load(weights + index, mask=index >= 0, other=absent)


@triton.jit
def norm_forward(f, network, first_channel, COUNT: tl.constexpr, SECOND: tl.constexpr, ACT: tl.constexpr):
    """Statistics of COUNT channels from ``first_channel`` on, and what follows from them for who reads them.

    Writes ``prologue`` and ``rstd`` and moves the running statistics of the channels; with a first channel of 0
    those of tracked constants and the constants of the result as well.

    Args:
        f: a NormForward.
        network: int32.
        first_channel: int32.
        COUNT: a power of two; channels that there are not are left out.
        SECOND: of the second norm behind a convolution.
        ACT: activation behind this norm, of the constants.
    """
    T: tl.constexpr = f.weights.dtype.element_ty
    CHANNELS: tl.constexpr = min(COUNT, _ROUND_CHANNELS)
    channels, chunks = _size(f, _CHANNELS), _size(f, _CHUNKS)
    weights = f.weights + _weights_of(f, network)
    momentum = tl.load(f.settings + _MOMENTUM)
    running = network.to(tl.int64) * f.running_stride
    for begin in range(0, COUNT, CHANNELS):
        channel = first_channel + begin + tl.arange(0, CHANNELS)
        there = channel < channels
        count, mean, variance = _moments(
            f, _partials_at(f, network, channel, channels, chunks), chunks, there
        )
        rstd = 1 / tl.sqrt(variance + tl.load(f.settings + _EPS))
        gamma = _weight(f, weights, f.gamma, channel, there, 1.0).to(tl.float64)
        at = network.to(tl.int64) * channels + channel
        numbers = f.prologue + at * PROLOGUE_NUMBERS + (3 if SECOND else 0)
        tl.store(f.rstd + at, rstd, mask=there)
        tl.store(numbers, mean.to(T), mask=there)
        tl.store(numbers + 1, (gamma * rstd).to(T), mask=there)
        tl.store(numbers + 2, _weight(f, weights, f.beta, channel, there, 0.0), mask=there)
        if f.running_mean is not None:
            stands_for = count * tl.load(f.settings + _COPIES)
            if not SECOND:
                mean += shift_of(f, network, tl.where(there, channel, -1)).to(tl.float64)
            place = running + tl.load(f.stats_index + channel, mask=there, other=0)
            _move(f.running_mean, place, momentum, mean, there)
            _move(f.running_var, place, momentum, variance * stands_for / (stands_for - 1), there)
    if first_channel == 0:
        _constants(f, network, channels, weights, momentum, running, SECOND, ACT)


@triton.jit
def _constants(f, network, channels, weights, momentum, running, SECOND: tl.constexpr, ACT: tl.constexpr):
    """Running statistics of tracked constants, and the constants of the result."""
    T: tl.constexpr = f.weights.dtype.element_ty
    if f.running_mean is not None:
        tracked_count = _size(f, _TRACKED)
        for first in range(0, tracked_count, _ROUND):
            i = first + tl.arange(0, _ROUND)
            there = i < tracked_count
            tracked = tl.load(f.tracked + i, mask=there, other=-1)
            if SECOND:
                before = f.constants_before + network.to(tl.int64) * _size(f, _CONSTANTS_BEFORE)
                value = tl.load(before + tracked, mask=tracked >= 0, other=0.0)
            else:
                value = shift_of(f, network, tl.where(tracked >= 0, channels + tracked, -1))
            place = running + tl.load(f.tracked_stats_index + i, mask=there, other=0)
            value = value.to(tl.float64)
            _move(f.running_mean, place, momentum, value, there)
            _move(f.running_var, place, momentum, tl.zeros_like(value), there)
    constants_count = _size(f, _CONSTANTS)
    slope = tl.load(f.settings + _SLOPE).to(T)
    for first in range(0, constants_count, _ROUND):
        i = first + tl.arange(0, _ROUND)
        there = i < constants_count
        beta = tl.load(weights + tl.load(f.betas + i, mask=there, other=0), mask=there, other=0.0)
        to = f.constants + network.to(tl.int64) * constants_count + i
        tl.store(to, activate(beta, slope, ACT), mask=there)


@triton.jit
def _channel_sum(f, at, chunks, there, which: tl.constexpr):
    """Sum of the partials ``which`` of every channel."""
    total = _partial(f, at, tl.arange(0, _ROUND), chunks, there, which)
    for first in range(_ROUND, chunks, _ROUND):
        total += _partial(f, at, first + tl.arange(0, _ROUND), chunks, there, which)
    return tl.sum(total, axis=1)


@triton.jit
def _add(pointer, index, value, there):
    """``value`` is added to a weight's gradient; an index of -1 is left out."""
    there = there & (index >= 0)
    old = tl.load(pointer + index, mask=there, other=0.0)
    tl.store(pointer + index, old + value.to(old.dtype), mask=there)


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
    CHANNELS: tl.constexpr = min(COUNT, _ROUND_CHANNELS)
    channels, chunks = _size(f, _CHANNELS), _size(f, _CHUNKS)
    n = _size(f, _PIXELS).to(tl.float64)
    grad_weights = f.grad_weights + _weights_of(f, network)
    for begin in range(0, COUNT, CHANNELS):
        channel = first_channel + begin + tl.arange(0, CHANNELS)
        there = channel < channels
        places = _partials_at(f, network, channel, channels, chunks)
        of_grad = _channel_sum(f, places, chunks, there, 0)
        of_product = _channel_sum(f, places, chunks, there, 1)
        at = network.to(tl.int64) * channels + channel
        numbers = f.prologue + at * PROLOGUE_NUMBERS + (3 if SECOND else 0)
        mean = tl.load(numbers, mask=there, other=0.0)
        scale = tl.load(numbers + 1, mask=there, other=0.0)
        rstd = tl.load(f.rstd + at, mask=there, other=0.0)
        part = -scale.to(tl.float64) / n
        grads = f.grads + at * GRAD_NUMBERS
        tl.store(grads, mean, mask=there)
        tl.store(grads + 1, scale, mask=there)
        tl.store(grads + 2, (part * rstd * rstd * of_product).to(T), mask=there)
        tl.store(grads + 3, (part * of_grad).to(T), mask=there)
        gamma = tl.load(f.gamma + channel, mask=there, other=-1)
        beta = tl.load(f.beta + channel, mask=there, other=-1)
        _add(grad_weights, gamma, of_product * rstd, there)
        _add(grad_weights, beta, of_grad, there)


@triton.jit
def mean_loss(f, network, COUNT: tl.constexpr):
    """Mean squared error of all channels, COUNT at a time, by the last program of the network; ``f``: a Loss."""
    channels, chunks = _size(f, _CHANNELS), _size(f, _CHUNKS)
    total = tl.zeros((COUNT,), tl.float64)
    for begin in range(0, channels, COUNT):
        channel = begin + tl.arange(0, COUNT)
        at = _partials_at(f, network, channel, channels, chunks)
        total += _channel_sum(f, at, chunks, channel < channels, 0)
    elements = channels.to(tl.float64) * _size(f, _PIXELS).to(tl.float64)
    tl.store(f.loss + network, (tl.sum(total) / elements).to(f.loss.dtype.element_ty))


@triton.jit
def shift_backward(f, network, COUNT: tl.constexpr, ACT: tl.constexpr):
    """Gradients of a last convolution's bias and of what constant channels add, which are added.

    A beta takes part in many sums: every one is added up over all taps first.

    Args:
        f: a ShiftBackward.
        network: int32.
        COUNT: a power of two, of all channels.
        ACT: activation of the constants.
    """
    channels, chunks = _size(f, _CHANNELS), _size(f, _CHUNKS)
    constants_count, taps = _size(f, _SHIFT_CONSTANTS), _size(f, _SHIFT_TAPS)
    weights = f.weights + _weights_of(f, network)
    grad_weights = f.grad_weights + _weights_of(f, network)
    constants = f.shift_constants + network.to(tl.int64) * constants_count
    output = tl.arange(0, COUNT)
    there = output < channels
    sums = _channel_sum(f, _partials_at(f, network, output, channels, chunks), chunks, there, 0)
    _add(grad_weights, tl.load(f.shift_bias + output, mask=there, other=-1), sums, there)
    # Only outputs that vary have sums; the taps of the others lie behind theirs.
    taps = tl.minimum(taps, tl.load(f.shift_first + channels))
    sums = sums * tl.load(f.settings + _FACTOR)
    for first_constant in range(0, constants_count, _ROUND):
        constant = first_constant + tl.arange(0, _ROUND)
        of_value = tl.zeros((_ROUND,), tl.float64)
        for first in range(0, taps, _ROUND):
            tap = first + tl.arange(0, _ROUND)
            seen = tap < taps
            weight = tl.load(f.shift_taps + tap * _SHIFT_NUMBERS, mask=seen, other=-1)
            number = tl.load(f.shift_taps + tap * _SHIFT_NUMBERS + 1, mask=seen, other=-1)
            of = tl.load(f.shift_taps + tap * _SHIFT_NUMBERS + 2, mask=seen, other=-1)
            of_output = tl.sum(tl.where(of[:, None] == output[None, :], sums[None, :], 0.0), axis=1)
            if first_constant == 0:
                value = tl.load(constants + number, mask=seen, other=0.0).to(tl.float64)
                _add(grad_weights, weight, of_output * value, seen)
            product = of_output * tl.load(weights + weight, mask=seen, other=0.0).to(tl.float64)
            of_value += tl.sum(tl.where(number[None, :] == constant[:, None], product[None, :], 0.0), axis=1)
        inside = constant < constants_count
        beta = tl.load(f.shift_betas + constant, mask=inside, other=-1)
        value = tl.load(weights + beta, mask=inside & (beta >= 0), other=0.0)
        slope = activate_grad(value, tl.load(f.settings + _SLOPE).to(value.dtype), ACT)
        tl.debug_barrier()  # two constants may not have one beta, but a beta may be what was added to above
        _add(grad_weights, beta, of_value * slope.to(tl.float64), inside)


@triton.jit
def finalise(
    f,
    network,
    first_channel,
    COUNT: tl.constexpr,
    KIND: tl.constexpr,
    SECOND: tl.constexpr,
    ACT: tl.constexpr,
):
    """What :data:`kinds` calls KIND, for COUNT channels from ``first_channel`` on.

    Called where :func:`is_last` holds: of all programs that add to these channels for a norm, of all programs
    of the network, with a first channel of 0, for the loss and the shift; the shift takes COUNT of all channels.
    """
    if KIND == NORM_FORWARD:
        norm_forward(f, network, first_channel, COUNT, SECOND, ACT)
    elif KIND == NORM_BACKWARD:
        norm_backward(f, network, first_channel, COUNT, SECOND)
    elif KIND == LOSS:
        mean_loss(f, network, COUNT)
    elif KIND == SHIFT_BACKWARD:
        shift_backward(f, network, COUNT, ACT)
