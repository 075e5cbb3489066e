"""Triton kernel of oes_fast/reference/mask_update.py; its loop is that of csrc/cpu/mask/mask_update_isa.h."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import (
    LAUNCH,
    as_words,
    block_size,
    exp_negative,
    load,
    log_from_split,
    log_ratio,
    logistic_noise,
    on_device_of,
    sigmoid_pair,
    split_ratio,
    store,
)
from torch import Tensor

_KL_EPS = tl.constexpr(1e-6)


@triton.jit
def _kl_gradient(s, kl_offset):
    """The KL term's derivative in the logits; and e = exp(-|s|), 1 + e and log(A / B) for its value."""
    e = exp_negative(tl.where(s < 0.0, -s, s))
    denominator = 1.0 + e
    cleared_eps = _KL_EPS * denominator
    larger, smaller = 1.0 + cleared_eps, e + cleared_eps
    exponent, scaled = split_ratio(larger, smaller)
    total, product, square = larger + scaled, larger * smaller, denominator * denominator
    inverse = tl.div_rn(tl.full(s.shape, 1.0, tl.float32), product * total * square)
    log_odds = log_from_split((larger - scaled) * (inverse * (product * square)), exponent)
    bracket = log_odds + cleared_eps * (1.0 - e) * (inverse * (total * square))
    variance = e * (inverse * (product * total))
    gradient = variance * (tl.where(s < 0.0, -bracket, bracket) - kl_offset)
    return gradient, e, denominator, log_odds


@triton.jit
def _kl_value(s, e, denominator, log_odds, log_density, log_rest):
    one = tl.full(s.shape, 1.0, tl.float32)
    p = tl.div_rn(one, denominator)
    log_larger = -log_ratio(one, p + _KL_EPS)
    of_larger = p * (log_larger - tl.where(s < 0.0, log_rest, log_density))
    of_smaller = (e * p) * (log_larger - log_odds - tl.where(s < 0.0, log_density, log_rest))
    return of_larger + of_smaller


@triton.jit
def _update(
    logits_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    kl_ptr,
    grad_ptr,
    w0_ptr,
    start,
    numel,
    noise,
    numbers,
    HAS_GRADIENT: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    (
        scale,
        kl,
        kl_offset,
        log_density,
        log_rest,
        beta1_rest,
        beta2,
        beta2_rest,
        step_size,
        second_scale,
        eps,
    ) = numbers
    at = start + tl.arange(0, BLOCK)
    s = load(logits_ptr, at, numel, WHOLE)
    grad = load(grad_ptr, at, numel, WHOLE)
    w0 = load(w0_ptr, at, numel, WHOLE)
    exp_avg = load(exp_avg_ptr, at, numel, WHOLE)
    exp_avg_sq = load(exp_avg_sq_ptr, at, numel, WHOLE)
    m_large, m_small = sigmoid_pair((s + noise) * scale)
    g = grad * w0 * (m_large * m_small) * scale
    if HAS_GRADIENT:
        gradient, e, denominator, log_odds = _kl_gradient(s, kl_offset)
        g += kl * gradient
        if HAS_VALUE:
            terms = _kl_value(s, e, denominator, log_odds, log_density, log_rest)
            terms = tl.where(at < numel, terms, 0.0)
            tl.store(kl_ptr + start // BLOCK, tl.sum(terms.to(tl.float64), axis=0))
    first = exp_avg + (g - exp_avg) * beta1_rest
    second = exp_avg_sq * beta2 + g * g * beta2_rest
    updated = s - tl.div_rn(step_size * first, tl.sqrt_rn(second) * second_scale + eps)
    store(exp_avg_ptr, at, first, numel, WHOLE)
    store(exp_avg_sq_ptr, at, second, numel, WHOLE)
    store(logits_ptr, at, updated, numel, WHOLE)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step"])
def update_kernel(
    logits_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    kl_ptr,
    grad_ptr,
    w0_ptr,
    ticks_ptr,
    corrections_ptr,
    numel,
    seed_low,
    seed_high,
    step,
    scale,
    kl,
    kl_offset,
    log_density,
    log_rest,
    beta1_rest,
    beta2,
    beta2_rest,
    step_size,
    second_scale,
    eps,
    rows,
    HAS_GRADIENT: tl.constexpr,
    HAS_VALUE: tl.constexpr,
    HAS_CLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Chain rule, KL gradient and Adam on one block; its KL sum goes to kl_ptr.

    Where there is a clock, the step and what depends on it are read from ticks and corrections.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if HAS_CLOCK:
        ticks = tl.load(ticks_ptr)
        step = ticks.to(tl.int32)
        step_size = tl.load(corrections_ptr + ticks % rows * 2)
        second_scale = tl.load(corrections_ptr + ticks % rows * 2 + 1)
    noise = logistic_noise(start, seed_low, seed_high, step, BLOCK)
    # fmt: off
    numbers = (scale, kl, kl_offset, log_density, log_rest, beta1_rest, beta2, beta2_rest, step_size,
               second_scale, eps)
    if start + BLOCK <= numel:
        _update(logits_ptr, exp_avg_ptr, exp_avg_sq_ptr, kl_ptr, grad_ptr, w0_ptr, start, numel, noise,
                numbers, HAS_GRADIENT, HAS_VALUE, True, BLOCK)
    else:
        _update(logits_ptr, exp_avg_ptr, exp_avg_sq_ptr, kl_ptr, grad_ptr, w0_ptr, start, numel, noise,
                numbers, HAS_GRADIENT, HAS_VALUE, False, BLOCK)
    # fmt: on


def mask_update(
    logits: Tensor,
    grad: Tensor,
    w0: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    seed: int,
    step: int,
    temperature: float,
    kl: float,
    density: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    kl_value: bool,
    ticks: Tensor | None = None,
    corrections: Tensor | None = None,
) -> Tensor:
    """Update in place, float32, shape [n], contiguous arguments; the KL sum, or 0 without ``kl_value``.

    ``ticks``, int64 [1], stands for the step; ``corrections`` [rows, 2] holds Adam's in row step mod rows.
    """
    numel = logits.numel()
    block = block_size(numel)
    programs = triton.cdiv(numel, block)
    kl_of_block = torch.empty(programs if kl_value else 0, dtype=torch.float64, device=logits.device)
    if numel:
        with on_device_of(logits):
            update_kernel[(programs,)](
                logits,
                exp_avg,
                exp_avg_sq,
                kl_of_block,
                grad,
                w0,
                ticks,
                corrections,
                numel,
                *as_words(seed, step),
                1 / temperature,
                kl,
                math.log(density / (1 - density)),
                math.log(density),
                math.log1p(-density),
                1 - beta1,
                beta2,
                1 - beta2,
                lr / (1 - beta1 ** (step + 1)),
                1 / math.sqrt(1 - beta2 ** (step + 1)),
                eps,
                0 if corrections is None else len(corrections),
                HAS_GRADIENT=kl != 0 or kl_value,
                HAS_VALUE=kl_value,
                HAS_CLOCK=ticks is not None,
                BLOCK=block,
                **LAUNCH,
            )
    return kl_of_block.sum().to(logits.dtype)
