"""What a convolution adds to all pixels of an output: its bias, and what constant input channels add."""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.chain.activation import activate_grad
from oes_fast.kernels.chain.finalise_sums import (
    CHANNELS,
    CHUNKS,
    FACTOR,
    ROUND,
    SHIFT_CONSTANTS,
    SHIFT_OUTPUTS,
    SHIFT_TAPS,
    SLOPE,
    add_to,
    at_once,
    channel_sums,
    partials_at,
    setting_of,
    size_of,
    weights_before,
)

TAP_NUMBERS = tl.constexpr(3)  # of a tap of a constant channel: weight, number of the constant, output


@triton.jit
def shift_of(f, network, outputs):
    """What is added to all pixels of ``outputs``, an int32 vector; 0 where there is no such output.

    Any program may call it. ``f`` is a NormForward or a Loss; the result is of the dtype of the weights.
    """
    there = (outputs >= 0) & (outputs < size_of(f, SHIFT_OUTPUTS))
    weights = f.weights + weights_before(f, network)
    constants = f.shift_constants + network.to(tl.int64) * size_of(f, SHIFT_CONSTANTS)
    factor = setting_of(f, FACTOR).to(f.weights.dtype.element_ty)
    bias = tl.load(f.shift_bias + outputs, mask=there, other=-1)
    begin = tl.load(f.shift_first + outputs, mask=there, other=0)
    end = tl.load(f.shift_first + outputs + 1, mask=there, other=0)
    total = tl.load(weights + bias, mask=bias >= 0, other=0.0)
    for first in range(0, tl.max(end - begin), ROUND):
        tap = (begin + first)[:, None] + tl.arange(0, ROUND)[None, :]
        seen = tap < end[:, None]
        weight = tl.load(f.shift_taps + tap * TAP_NUMBERS, mask=seen, other=0)
        constant = tl.load(f.shift_taps + tap * TAP_NUMBERS + 1, mask=seen, other=0)
        product = tl.load(weights + weight, mask=seen, other=0.0) * factor
        total += tl.sum(product * tl.load(constants + constant, mask=seen, other=0.0), axis=1)
    return total


@triton.jit
def shift_backward(f, network, COUNT: tl.constexpr, ACT: tl.constexpr):
    """Gradients of a last convolution's bias and of what constant channels add, which are added.

    A beta takes part in many sums: each is summed over all taps of some outputs first.

    Args:
        f: a ShiftBackward.
        network: int32.
        COUNT: a power of two, outputs to take at once if there are not too many.
        ACT: activation of the constants.
    """
    AT_ONCE: tl.constexpr = at_once(COUNT)
    channels, chunks = size_of(f, CHANNELS), size_of(f, CHUNKS)
    constants_count, taps = size_of(f, SHIFT_CONSTANTS), size_of(f, SHIFT_TAPS)
    weights = f.weights + weights_before(f, network)
    grad_weights = f.grad_weights + weights_before(f, network)
    constants = f.shift_constants + network.to(tl.int64) * constants_count
    factor = setting_of(f, FACTOR)
    for first_output in range(0, channels, AT_ONCE):
        output = first_output + tl.arange(0, AT_ONCE)
        there = output < channels
        sums = channel_sums(f, partials_at(network, output, channels, chunks), chunks, there)
        add_to(grad_weights, tl.load(f.shift_bias + output, mask=there, other=-1), sums, there)
        sums *= factor
        for first_constant in range(0, constants_count, ROUND):
            constant = first_constant + tl.arange(0, ROUND)
            of_value = tl.zeros((ROUND,), tl.float64)
            for first in range(0, taps, ROUND):
                tap = first + tl.arange(0, ROUND)
                seen = tap < taps
                weight = tl.load(f.shift_taps + tap * TAP_NUMBERS, mask=seen, other=-1)
                number = tl.load(f.shift_taps + tap * TAP_NUMBERS + 1, mask=seen, other=-1)
                of = tl.load(f.shift_taps + tap * TAP_NUMBERS + 2, mask=seen, other=-1)
                seen = seen & (of >= first_output) & (of < first_output + AT_ONCE)
                sum_of = tl.sum(tl.where(of[:, None] == output[None, :], sums[None, :], 0.0), axis=1)
                if first_constant == 0:
                    value = tl.load(constants + number, mask=seen, other=0.0).to(tl.float64)
                    add_to(grad_weights, weight, sum_of * value, seen)
                product = sum_of * tl.load(weights + weight, mask=seen, other=0.0).to(tl.float64)
                same = number[None, :] == constant[:, None]
                of_value += tl.sum(tl.where(same, product[None, :], 0.0), axis=1)
            inside = constant < constants_count
            beta = tl.load(f.shift_betas + constant, mask=inside, other=-1)
            value = tl.load(weights + beta, mask=beta >= 0, other=0.0)
            slope = activate_grad(value, setting_of(f, SLOPE).to(value.dtype), ACT)
            add_to(grad_weights, beta, of_value * slope.to(tl.float64), inside)
        tl.debug_barrier()  # the next outputs add to the same betas
