"""Triton kernels of oes_fast/reference/gumbel_mask.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import (
    LAUNCH,
    as_words,
    block_size,
    load,
    logistic_noise,
    on_device_of,
    sigmoid_pair,
    store,
)
from torch import Tensor


@triton.jit
def _forward(
    masked_ptr, w0_ptr, logits_ptr, start, numel, noise, scale, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
    at = start + tl.arange(0, BLOCK)
    w0 = load(w0_ptr, at, numel, WHOLE)
    x = (load(logits_ptr, at, numel, WHOLE) + noise) * scale
    large, small = sigmoid_pair(x)
    store(masked_ptr, at, w0 * tl.where(x < 0.0, small, large), numel, WHOLE)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step"])
def forward_kernel(
    masked_ptr,
    w0_ptr,
    logits_ptr,
    ticks_ptr,
    numel,
    seed_low,
    seed_high,
    step,
    scale,
    HAS_CLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """w0 * sigmoid((s + L) * scale); the step is read from ticks where there is a clock."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if HAS_CLOCK:
        step = tl.load(ticks_ptr).to(tl.int32)
    noise = logistic_noise(start, seed_low, seed_high, step, BLOCK)
    if start + BLOCK <= numel:
        _forward(masked_ptr, w0_ptr, logits_ptr, start, numel, noise, scale, True, BLOCK)
    else:
        _forward(masked_ptr, w0_ptr, logits_ptr, start, numel, noise, scale, False, BLOCK)


@triton.jit
def _backward(
    grad_w0_ptr,
    grad_logits_ptr,
    grad_ptr,
    w0_ptr,
    logits_ptr,
    start,
    numel,
    noise,
    scale,
    NEEDS_W0: tl.constexpr,
    NEEDS_LOGITS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = start + tl.arange(0, BLOCK)
    grad = load(grad_ptr, at, numel, WHOLE)
    x = (load(logits_ptr, at, numel, WHOLE) + noise) * scale
    large, small = sigmoid_pair(x)
    if NEEDS_W0:
        store(grad_w0_ptr, at, grad * tl.where(x < 0.0, small, large), numel, WHOLE)
    if NEEDS_LOGITS:
        w0 = load(w0_ptr, at, numel, WHOLE)
        store(grad_logits_ptr, at, grad * w0 * (large * small) * scale, numel, WHOLE)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "step"])
def backward_kernel(
    grad_w0_ptr,
    grad_logits_ptr,
    grad_ptr,
    w0_ptr,
    logits_ptr,
    numel,
    seed_low,
    seed_high,
    step,
    scale,
    NEEDS_W0: tl.constexpr,
    NEEDS_LOGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients that are needed, the noise drawn again."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    noise = logistic_noise(start, seed_low, seed_high, step, BLOCK)
    # fmt: off
    if start + BLOCK <= numel:
        _backward(grad_w0_ptr, grad_logits_ptr, grad_ptr, w0_ptr, logits_ptr, start, numel, noise, scale,
                  NEEDS_W0, NEEDS_LOGITS, True, BLOCK)
    else:
        _backward(grad_w0_ptr, grad_logits_ptr, grad_ptr, w0_ptr, logits_ptr, start, numel, noise, scale,
                  NEEDS_W0, NEEDS_LOGITS, False, BLOCK)
    # fmt: on


def gumbel_mask_out(
    masked: Tensor,
    w0: Tensor,
    logits: Tensor,
    seed: int,
    step: int,
    temperature: float,
    ticks: Tensor | None = None,
) -> None:
    """Masked weights into ``masked``, float32, shape [n], contiguous arguments; ``ticks``, int64 [1], stands
    for the step."""
    numel = w0.numel()
    if numel:
        block = block_size(numel)
        with on_device_of(w0):
            forward_kernel[(triton.cdiv(numel, block),)](
                masked,
                w0,
                logits,
                ticks,
                numel,
                *as_words(seed, step),
                1 / temperature,
                HAS_CLOCK=ticks is not None,
                BLOCK=block,
                **LAUNCH,
            )


def gumbel_mask(w0: Tensor, logits: Tensor, seed: int, step: int, temperature: float) -> Tensor:
    """Masked weights, float32, shape [n], contiguous arguments."""
    masked = torch.empty_like(w0)
    gumbel_mask_out(masked, w0, logits, seed, step, temperature)
    return masked


def gumbel_mask_backward(
    grad: Tensor,
    w0: Tensor,
    logits: Tensor,
    seed: int,
    step: int,
    temperature: float,
    needs_w0: bool,
    needs_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of w0 and logits, float32, shape [n], or [0] for one that is not needed."""
    numel = w0.numel()
    grad_w0 = w0.new_empty(numel if needs_w0 else 0)
    grad_logits = w0.new_empty(numel if needs_logits else 0)
    if numel:
        block = block_size(numel)
        with on_device_of(w0):
            backward_kernel[(triton.cdiv(numel, block),)](
                grad_w0,
                grad_logits,
                grad,
                w0,
                logits,
                numel,
                *as_words(seed, step),
                1 / temperature,
                NEEDS_W0=needs_w0,
                NEEDS_LOGITS=needs_logits,
                BLOCK=block,
                **LAUNCH,
            )
    return grad_w0, grad_logits
