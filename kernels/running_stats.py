"""Triton kernel of oes_fast/reference/running_stats.py."""

from __future__ import annotations

import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

BLOCK = 128  # channels of a program: a layer has about as many


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["offset_ptr"])
def move_kernel(
    running_mean_ptr,
    running_var_ptr,
    mean_ptr,
    var_ptr,
    channels_ptr,
    offset_ptr,
    count,
    momentum,
    correction,
    HAS_CHANNELS: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """r += momentum * (v - r) for some channels of both statistics."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    var = tl.load(var_ptr + at, mask=inside, other=0.0) * correction
    if HAS_OFFSET:
        mean += tl.load(offset_ptr + at, mask=inside, other=0.0)
    place = at
    if HAS_CHANNELS:
        place = tl.load(channels_ptr + at, mask=inside, other=0)
    old_mean = tl.load(running_mean_ptr + place, mask=inside, other=0.0)
    old_var = tl.load(running_var_ptr + place, mask=inside, other=0.0)
    tl.store(running_mean_ptr + place, old_mean + momentum * (mean - old_mean), mask=inside)
    tl.store(running_var_ptr + place, old_var + momentum * (var - old_var), mask=inside)


def running_stats(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    channels: Tensor | None,
    offset: Tensor | None,
    momentum: float,
    correction: float,
) -> None:
    """Update in place, float32, contiguous arguments."""
    count = mean.numel()
    if count == 0:
        return
    with on_device_of(mean):
        move_kernel[(triton.cdiv(count, BLOCK),)](
            running_mean,
            running_var,
            mean,
            var,
            channels,
            offset,
            count,
            momentum,
            correction,
            HAS_CHANNELS=channels is not None,
            HAS_OFFSET=offset is not None,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
