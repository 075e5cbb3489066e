"""Convolution with masked weights: checks and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_choice, check_integer, check_tensor
from oes_fast.errors import InputError

Pair = int | tuple[int, int]


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """Two-dimensional cross-correlation of ``x`` with ``weight * mask``, as torch.nn.functional.conv2d.

    Args:
        x: input, float32 or float64, shape [N, C, H, W].
        weight: shape [O, C / groups, kH, kW].
        mask: which weights count, bool or of weight's dtype, shape of ``weight``.
        bias: shape [O], or None.
        stride: one number, or (rows, columns).
        padding: added on both sides, one number or (rows, columns).
        dilation: one number, or (rows, columns).
        groups: blocked connections.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Returns:
        Tensor of shape [N, O, H', W']; differentiable in ``x``, ``weight`` and ``bias``. The gradient of a
        weight that the mask drops is zero.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("x", x, ndim=4)
    check_tensor("weight", weight, ndim=4, like=x)
    check_tensor("mask", mask, shape=weight.shape, dtypes=(torch.bool, weight.dtype), device=weight.device)
    check_integer("groups", groups, minimum=1)
    if weight.shape[0] % groups:
        raise InputError(f"groups: expected a divisor of {weight.shape[0]} output channels, got {groups}")
    if x.shape[1] != weight.shape[1] * groups:
        raise InputError(f"x: expected {weight.shape[1] * groups} channels for this weight, got {x.shape[1]}")
    if bias is not None:
        check_tensor("bias", bias, shape=(weight.shape[0],), like=x)
    check_choice("padding_mode", padding_mode, tuple(reference.PADDING_MODES))
    stride = pair("stride", stride, minimum=1)
    padding = pair("padding", padding, minimum=0)
    dilation = pair("dilation", dilation, minimum=1)
    for size, kernel, pad, spread in zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True):
        reach = spread * (kernel - 1) + 1
        if size + 2 * pad < reach:
            raise InputError(f"x: expected {reach} pixels at least, padding included, got {size} + 2 * {pad}")
        if (padding_mode == "reflect" and pad >= size) or (padding_mode == "circular" and pad > size):
            raise InputError(f"padding: expected less for {padding_mode} padding of {size} pixels, got {pad}")
    return reference.masked_conv2d(
        x,
        weight,
        mask,
        bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
    )


def pair(name: str, value: Pair, *, minimum: int) -> tuple[int, int]:
    """(rows, columns) of one number or two."""
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise InputError(f"{name}: expected one number or (rows, columns), got {value!r}")
    rows, columns = (check_integer(name, v, minimum=minimum) for v in values)
    return rows, columns
