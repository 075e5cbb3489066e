"""Triton kernel of oes_fast/reference/masked_adam.py."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from oes_fast.kernels.philox import LAUNCH, block_size, load, on_device_of, store
from torch import Tensor


@triton.jit
def _update(
    weights_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    mask_ptr,
    start,
    numel,
    numbers,
    HAS_MASK: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    beta1, beta1_rest, beta2, beta2_rest, step_size, second_scale, eps = numbers
    at = start + tl.arange(0, BLOCK)
    g = load(grad_ptr, at, numel, WHOLE)
    if HAS_MASK:
        g = tl.where(load(mask_ptr, at, numel, WHOLE) != 0, g, 0.0)
    weights = load(weights_ptr, at, numel, WHOLE)
    exp_avg = load(exp_avg_ptr, at, numel, WHOLE)
    exp_avg_sq = load(exp_avg_sq_ptr, at, numel, WHOLE)
    # As torch's lerp: from the end that is nearer, so that a small gradient survives a large moment.
    near_old = exp_avg + (g - exp_avg) * beta1_rest
    first = tl.where(beta1_rest < 0.5, near_old, g - (g - exp_avg) * beta1)
    second = exp_avg_sq * beta2 + g * g * beta2_rest
    updated = weights - tl.div_rn(step_size * first, tl.sqrt_rn(second) * second_scale + eps)
    store(exp_avg_ptr, at, first, numel, WHOLE)
    store(exp_avg_sq_ptr, at, second, numel, WHOLE)
    store(weights_ptr, at, updated, numel, WHOLE)


@triton.jit
def update_kernel(
    weights_ptr,
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    mask_ptr,
    ticks_ptr,
    corrections_ptr,
    numel,
    beta1,
    beta1_rest,
    beta2,
    beta2_rest,
    step_size,
    second_scale,
    eps,
    rows,
    HAS_MASK: tl.constexpr,
    HAS_CLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of Adam on one block; where there is a clock, what depends on the step is read from memory."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    if HAS_CLOCK:
        ticks = tl.load(ticks_ptr)
        step_size = tl.load(corrections_ptr + ticks % rows * 2)
        second_scale = tl.load(corrections_ptr + ticks % rows * 2 + 1)
    # fmt: off
    numbers = (beta1, beta1_rest, beta2, beta2_rest, step_size, second_scale, eps)
    if start + BLOCK <= numel:
        _update(weights_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, mask_ptr, start, numel, numbers,
                HAS_MASK, True, BLOCK)
    else:
        _update(weights_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, mask_ptr, start, numel, numbers,
                HAS_MASK, False, BLOCK)
    # fmt: on


def masked_adam(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    mask: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    ticks: Tensor | None = None,
    corrections: Tensor | None = None,
) -> None:
    """Update in place, float32, shape [n], contiguous arguments.

    ``ticks``, int64 [1], stands for the step; ``corrections`` [rows, 2] holds Adam's in row step mod rows.
    """
    numel = weights.numel()
    if numel == 0:
        return
    block = block_size(numel)
    with on_device_of(weights):
        update_kernel[(triton.cdiv(numel, block),)](
            weights,
            grad,
            exp_avg,
            exp_avg_sq,
            mask,
            ticks,
            corrections,
            numel,
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            lr / (1 - beta1 ** (step + 1)),
            1 / math.sqrt(1 - beta2 ** (step + 1)),
            eps,
            0 if corrections is None else len(corrections),
            HAS_MASK=mask is not None,
            HAS_CLOCK=ticks is not None,
            BLOCK=block,
            **LAUNCH,
        )
