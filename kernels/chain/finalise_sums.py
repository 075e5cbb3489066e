"""The partial sums that the programs of a launch leave in memory, as the last of them reads them."""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.chain.kinds import PARTIAL_NUMBERS

# What lies where in the tensor `sizes`, see finalise.finalise_sizes.
CHANNELS = tl.constexpr(0)
CHUNKS = tl.constexpr(1)
PIXELS = tl.constexpr(2)
WEIGHTS = tl.constexpr(3)
TRACKED = tl.constexpr(4)
CONSTANTS = tl.constexpr(5)
CONSTANTS_BEFORE = tl.constexpr(6)
SHIFT_OUTPUTS = tl.constexpr(7)
SHIFT_CONSTANTS = tl.constexpr(8)
SHIFT_TAPS = tl.constexpr(9)

# And in the tensor `settings`, see finalise.finalise_settings.
EPS = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
COPIES = tl.constexpr(2)
FACTOR = tl.constexpr(3)
SLOPE = tl.constexpr(4)

ROUND = tl.constexpr(32)  # chunks, taps or constants that are taken at once


@triton.constexpr_function
def at_once(count):
    """How many of ``count`` channels, a power of two, are taken at once: more would cost a kernel registers.

    Kernels of many outputs have them.
    """
    return min(count, 16 if count <= 32 else 32)


@triton.jit
def size_of(f, which: tl.constexpr):
    """A number of ``f.sizes``."""
    return tl.load(f.sizes + which)


@triton.jit
def setting_of(f, which: tl.constexpr):
    """A number of ``f.settings``, float64."""
    return tl.load(f.settings + which)


@triton.jit
def weights_before(f, network):
    """How many weights the networks before this one have, int64."""
    return network.to(tl.int64) * size_of(f, WEIGHTS)


@triton.jit
def partials_at(network, channel, channels, chunks):
    """Offsets of the first partials of a vector of channels, int64."""
    return (network.to(tl.int64) * channels + channel) * chunks * PARTIAL_NUMBERS


@triton.jit
def partial(f, at, chunk, chunks, there, which: tl.constexpr):
    """Number ``which`` of a tile [channels, chunks] of partials; 0 where there is none."""
    places = at[:, None] + chunk[None, :] * PARTIAL_NUMBERS + which
    mask = there[:, None] & (chunk < chunks)[None, :]
    return tl.load(f.partials + places, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def channel_sums(f, at, chunks, there):
    """Sum of the first numbers of every channel's partials."""
    total = partial(f, at, tl.arange(0, ROUND), chunks, there, 0)
    for begin in range(ROUND, chunks, ROUND):
        total += partial(f, at, begin + tl.arange(0, ROUND), chunks, there, 0)
    return tl.sum(total, axis=1)


@triton.jit
def both_sums(f, at, chunks, there):
    """Sums of the first and of the second numbers of every channel's partials."""
    first = partial(f, at, tl.arange(0, ROUND), chunks, there, 0)
    second = partial(f, at, tl.arange(0, ROUND), chunks, there, 1)
    for begin in range(ROUND, chunks, ROUND):
        first += partial(f, at, begin + tl.arange(0, ROUND), chunks, there, 0)
        second += partial(f, at, begin + tl.arange(0, ROUND), chunks, there, 1)
    return tl.sum(first, axis=1), tl.sum(second, axis=1)


@triton.jit
def add_to(pointer, index, value, there):
    """``value`` is added to elements that are all different; an index of -1 is left out."""
    there = there & (index >= 0)
    old = tl.load(pointer + index, mask=there, other=0.0)
    tl.debug_barrier()  # several threads may hold an element: all have loaded it before one stores it
    tl.store(pointer + index, old + value.to(old.dtype), mask=there)
