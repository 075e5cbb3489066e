"""Triton kernel of oes_fast/reference/running_stats.py."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from torch import Tensor

BLOCK = 128  # channels of a program: a layer has about as many
LAYERS = 4  # that one launch moves


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


@triton.jit
def _move(
    running_mean_ptr,
    running_var_ptr,
    mean_ptr,
    var_ptr,
    channels_ptr,
    offset_ptr,
    count,
    has_offset,
    momentum,
    correction,
    BLOCK: tl.constexpr,
):
    """:func:`move_kernel` for one block of one layer."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    mean += tl.load(offset_ptr + at, mask=at < count * has_offset, other=0.0)
    var = tl.load(var_ptr + at, mask=inside, other=0.0) * correction
    place = tl.load(channels_ptr + at, mask=inside, other=0)
    old_mean = tl.load(running_mean_ptr + place, mask=inside, other=0.0)
    old_var = tl.load(running_var_ptr + place, mask=inside, other=0.0)
    tl.store(running_mean_ptr + place, old_mean + momentum * (mean - old_mean), mask=inside)
    tl.store(running_var_ptr + place, old_var + momentum * (var - old_var), mask=inside)


# fmt: off
@triton.jit(
    do_not_specialize=["count_0", "count_1", "count_2", "count_3",
                       "has_offset_0", "has_offset_1", "has_offset_2", "has_offset_3"],
    do_not_specialize_on_alignment=["offset_0_ptr", "offset_1_ptr", "offset_2_ptr", "offset_3_ptr"],
)
def move_layers_kernel(
    running_mean_0_ptr, running_var_0_ptr, mean_0_ptr, var_0_ptr, channels_0_ptr, offset_0_ptr,
    count_0, has_offset_0, momentum_0, correction_0,
    running_mean_1_ptr, running_var_1_ptr, mean_1_ptr, var_1_ptr, channels_1_ptr, offset_1_ptr,
    count_1, has_offset_1, momentum_1, correction_1,
    running_mean_2_ptr, running_var_2_ptr, mean_2_ptr, var_2_ptr, channels_2_ptr, offset_2_ptr,
    count_2, has_offset_2, momentum_2, correction_2,
    running_mean_3_ptr, running_var_3_ptr, mean_3_ptr, var_3_ptr, channels_3_ptr, offset_3_ptr,
    count_3, has_offset_3, momentum_3, correction_3,
    BLOCK: tl.constexpr,
):
    """r += momentum * (v - r) for some channels of up to four layers, one in each row of the grid."""
    layer = tl.program_id(1)
    if layer == 0:
        _move(running_mean_0_ptr, running_var_0_ptr, mean_0_ptr, var_0_ptr, channels_0_ptr, offset_0_ptr,
              count_0, has_offset_0, momentum_0, correction_0, BLOCK)
    elif layer == 1:
        _move(running_mean_1_ptr, running_var_1_ptr, mean_1_ptr, var_1_ptr, channels_1_ptr, offset_1_ptr,
              count_1, has_offset_1, momentum_1, correction_1, BLOCK)
    elif layer == 2:
        _move(running_mean_2_ptr, running_var_2_ptr, mean_2_ptr, var_2_ptr, channels_2_ptr, offset_2_ptr,
              count_2, has_offset_2, momentum_2, correction_2, BLOCK)
    elif layer == 3:
        _move(running_mean_3_ptr, running_var_3_ptr, mean_3_ptr, var_3_ptr, channels_3_ptr, offset_3_ptr,
              count_3, has_offset_3, momentum_3, correction_3, BLOCK)
# fmt: on


def running_stats_of_layers(
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    channels: Sequence[Tensor],
    offsets: Sequence[Tensor | None],
    momenta: Sequence[float],
    corrections: Sequence[float],
) -> None:
    """Update in place, float32, contiguous arguments; no layer's statistics are those of another."""
    lists = (running_means, running_vars, means, variances, channels, offsets, momenta, corrections)
    layers = [layer for layer in zip(*lists, strict=True) if layer[2].numel()]
    for first in range(0, len(layers), LAYERS):
        arguments: list[Tensor | int | float] = []
        some = layers[first : first + LAYERS]
        for running_mean, running_var, mean, var, place, offset, momentum, correction in some:
            arguments += [running_mean, running_var, mean, var, place, mean if offset is None else offset]
            arguments += [mean.numel(), int(offset is not None), momentum, correction]
        missing = LAYERS - len(some)
        most = max(layer[2].numel() for layer in some)
        with on_device_of(some[0][2]):
            move_layers_kernel[(triton.cdiv(most, BLOCK), len(some))](
                *arguments,
                *arguments[-10:] * missing,
                BLOCK=BLOCK,
                num_warps=4,
                enable_fp_fusion=True,
            )
