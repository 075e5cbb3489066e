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
    numel,
    beta1,
    beta1_rest,
    beta2,
    beta2_rest,
    step_size,
    second_scale,
    eps,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One step of Adam on one block."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
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
) -> None:
    """Update in place, float32, shape [n], contiguous arguments."""
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
            numel,
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            lr / (1 - beta1 ** (step + 1)),
            1 / math.sqrt(1 - beta2 ** (step + 1)),
            eps,
            HAS_MASK=mask is not None,
            BLOCK=block,
            **LAUNCH,
        )
