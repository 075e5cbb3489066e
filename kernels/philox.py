"""Philox4x32-10 and the logistic transform in Triton: the contract of oes_fast/reference/philox.py.

The steps and coefficients are those of csrc/common/vector_math.h, and every division is rounded to
nearest, so with fused multiply-add off (:data:`LAUNCH`) the results are those of the CPU kernels.
"""

from __future__ import annotations

import contextlib
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}

_BLOCK = 512  # of 4 warps: a thread makes the four words of one counter and moves 16 bytes at a time
_INTERPRETER_BLOCK = 1 << 17  # the interpreter pays by the program, not by the element


def block_size(numel: int) -> int:
    """Elements one program works on."""
    if os.environ.get("TRITON_INTERPRET", "0") != "1":
        return _BLOCK
    return min(_INTERPRETER_BLOCK, max(16, triton.next_power_of_2(numel)))


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launches inside go to the tensor's GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def as_words(seed: int, step: int) -> tuple[int, int, int]:
    """(low seed word, high seed word, step) as int32 of the same bits, so that Triton sees one type."""
    words = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, step & 0xFFFFFFFF)
    low, high, step = (word - 2**32 if word >= 2**31 else word for word in words)
    return low, high, step


@triton.jit
def load(ptr, at, numel, WHOLE: tl.constexpr):
    """Elements ``at``; where they are not all inside, those beyond ``numel`` are 0.

    A mask whose bound is odd splits 16-byte accesses into single ones, so whole blocks do without.
    """
    if WHOLE:
        return tl.load(ptr + at)
    return tl.load(ptr + at, mask=at < numel, other=0)


@triton.jit
def store(ptr, at, value, numel, WHOLE: tl.constexpr):
    """Store ``value`` to the elements ``at`` that are inside."""
    if WHOLE:
        tl.store(ptr + at, value)
    else:
        tl.store(ptr + at, value, mask=at < numel)


@triton.jit
def _words(start, seed_low, seed_high, step, stream, BLOCK: tl.constexpr):
    """The 32-bit words of elements start .. start + BLOCK - 1, start a multiple of 4."""
    block = start // 4 + tl.arange(0, BLOCK // 4).to(tl.int64)
    zero = tl.zeros((BLOCK // 4,), tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = zero + step.to(tl.uint32, bitcast=True)
    c3 = zero + stream.to(tl.uint32, bitcast=True)
    k0 = zero + seed_low.to(tl.uint32, bitcast=True)
    k1 = zero + seed_high.to(tl.uint32, bitcast=True)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, 10)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK,))


@triton.jit
def split_ratio(large, small):
    """large / small = 2^exponent large / scaled, large / scaled in [2/3, 3/2]; 0 < 0.75 small <= large."""
    bits = small.to(tl.int32, bitcast=True)
    exponent = (large.to(tl.int32, bitcast=True) - bits + 0x400000) >> 23
    return exponent, (bits + (exponent << 23)).to(tl.float32, bitcast=True)


@triton.jit
def log_from_split(z, exponent):
    """The logarithm of a split ratio, from z = (large - scaled) / (large + scaled)."""
    w = z * z
    polynomial = (0.15182624343767107 * w + 0.19978803916502147) * w + 0.33333474755043483
    half = z + z * (w * polynomial)
    k = exponent.to(tl.float32)
    return (half + half + k * 1.42860677e-06) + k * 0.693145751953125


@triton.jit
def log_ratio(large, small):
    """log(large / small), exact to the last bits also near 0."""
    exponent, scaled = split_ratio(large, small)
    return log_from_split(tl.div_rn(large - scaled, large + scaled), exponent)


@triton.jit
def exp_negative(x):
    """exp(-x) for x >= 0, 0 beyond 43."""
    shifted = 12582912.0 - x * 1.44269502162933349609375
    k = shifted - 12582912.0
    r = (-x - k * 0.693145751953125) - k * 1.42860677e-06
    p = (0.0013814598646664034 * r + 0.0083687168797281399) * r + 0.041668388045313997
    p = (p * r + 0.16666520631709497) * r + 0.49999993447796487
    power = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    result = power * (1.0 + (r + (r * r) * p))
    return tl.where(x > 43.0, 0.0, result)


@triton.jit
def sigmoid_pair(x):
    """sigmoid(|x|) and sigmoid(-|x|)."""
    e = exp_negative(tl.where(x < 0.0, -x, x))
    large = tl.div_rn(tl.full(e.shape, 1.0, tl.float32), 1.0 + e)
    return large, e * large


@triton.jit
def _logistic(words):
    a = (words >> 9).to(tl.int32).to(tl.float32) + 0.5
    b = 8388608.0 - a
    magnitude = log_ratio(tl.where(a < b, b, a), tl.where(a < b, a, b))
    return tl.where(a < b, -magnitude, magnitude)


@triton.jit
def logistic_noise(start, seed_low, seed_high, step, BLOCK: tl.constexpr):
    """Logistic noise of elements start .. start + BLOCK - 1 on the stream of the mask."""
    return _logistic(_words(start, seed_low, seed_high, step, tl.full((), 0, tl.int32), BLOCK))


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step", "stream"])
def random_bits_kernel(words_ptr, numel, seed_low, seed_high, step, stream, BLOCK: tl.constexpr):
    """Store the words as int64."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    words = _words(start, seed_low, seed_high, step, stream, BLOCK)
    store(words_ptr, start + tl.arange(0, BLOCK), words.to(tl.int64), numel, False)


@triton.jit
def logistic_from_bits_kernel(noise_ptr, bits_ptr, numel, BLOCK: tl.constexpr):
    """Transform stored words."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = load(bits_ptr, at, numel, False)
    store(noise_ptr, at, _logistic(bits.to(tl.uint32)), numel, False)


def random_bits(words: Tensor, seed: int, step: int, stream: int) -> None:
    """Fill ``words`` (int64, shape [n]), see oes_fast.reference.random_bits."""
    numel = words.numel()
    if numel == 0:
        return
    block = block_size(numel)
    low, high, step = as_words(seed, step)
    stream = as_words(stream, 0)[0]
    with on_device_of(words):
        random_bits_kernel[(triton.cdiv(numel, block),)](
            words, numel, low, high, step, stream, BLOCK=block, **LAUNCH
        )


def logistic_from_bits(noise: Tensor, bits: Tensor) -> None:
    """Fill ``noise`` (float32) from ``bits`` (int64), shape [n]: oes_fast.reference.logistic_from_bits."""
    numel = bits.numel()
    if numel == 0:
        return
    block = block_size(numel)
    with on_device_of(noise):
        logistic_from_bits_kernel[(triton.cdiv(numel, block),)](noise, bits, numel, BLOCK=block, **LAUNCH)
