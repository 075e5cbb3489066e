"""Convolution with masked weights: checks, autograd and choice of backend.

Operators: ``masked_conv2d_triton`` and ``masked_conv2d_backward_triton``. ``window`` holds strides, paddings
(of zeros) and dilations, rows before columns; ``precision`` is the index in :data:`PRECISIONS`; a gradient
that is not needed has no elements.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_choice, check_integer, check_tensor
from oes_fast.backends import AUTO, resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library

Pair = int | tuple[int, int]
PRECISIONS = ("float32", "tf32", "bf16")


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
    precision: str = "float32",
    backend: str = "auto",
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
        precision: of the products, with backend "triton": "float32"; "tf32", whose operands are cut to 11
            bits, so that a product is off by 2^-9 of itself at most; "bf16", rounded to 8 bits, 2^-7. The
            sums are in float32 in all three. On a GPU the reference computes as :func:`oes_fast.precision`
            says.
        backend: "auto", "reference", "torch" (the same here) or "triton" (float32 only, one group, no
            derivative in a mask of floats). "auto" is the reference, since no measurement on a device says
            yet where the kernels are faster.

    Returns:
        Tensor of shape [N, O, H', W']; differentiable in ``x``, ``weight`` and ``bias``, twice with backend
        "reference". The gradient of a weight that the mask drops is zero.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        BackendError: the named backend cannot run here.

    Example:
        >>> x, weight = torch.rand(1, 2, 8, 8), torch.rand(3, 2, 3, 3)
        >>> oes.functional.masked_conv2d(x, weight, weight > 0.5, padding=1).shape
        torch.Size([1, 3, 8, 8])
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
    check_choice("precision", precision, PRECISIONS)
    has_kernel = backend != AUTO and groups == 1 and not mask.requires_grad
    candidates = _library.candidates(x.dtype, cpu=False) if has_kernel else ("reference",)
    chosen = resolve(backend, x.device, candidates)
    if chosen == "reference":
        if precision != "float32":
            raise InputError(f'precision: expected float32 without backend "triton", got {precision!r}')
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
    if padding_mode != "zeros" and any(padding):
        rows, columns = padding
        x = F.pad(x, (columns, columns, rows, rows), mode=reference.PADDING_MODES[padding_mode])
        padding = (0, 0)
    return _library.kernel("masked_conv2d", chosen)(
        x.contiguous(),
        weight.contiguous(),
        mask.contiguous(),
        None if bias is None else bias.contiguous(),
        [*stride, *padding, *dilation],
        PRECISIONS.index(precision),
    )


def pair(name: str, value: Pair, *, minimum: int) -> tuple[int, int]:
    """(rows, columns) of one number or two."""
    values = (value, value) if isinstance(value, int) else value
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise InputError(f"{name}: expected one number or (rows, columns), got {value!r}")
    rows, columns = (check_integer(name, v, minimum=minimum) for v in values)
    return rows, columns


def _fake(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, window: list[int], precision: int
) -> Tensor:
    size = [
        (x.shape[2 + i] + 2 * window[2 + i] - window[4 + i] * (weight.shape[2 + i] - 1) - 1) // window[i] + 1
        for i in (0, 1)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *size)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    window: list[int],
    precision: int,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    grad_weight = torch.empty_like(weight) if needs_weight else x.new_empty(0)
    return grad_x, grad_weight, x.new_empty(weight.shape[0] if needs_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, mask, _, ctx.window, ctx.precision = inputs
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx: Any, backend: str, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
    operator = _library.kernel("masked_conv2d_backward", backend)
    grad_x, grad_weight, grad_bias = operator(
        grad.contiguous(), *ctx.saved_tensors, ctx.window, ctx.precision, needs_x, needs_weight, needs_bias
    )
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        None,
        grad_bias if needs_bias else None,
        None,
        None,
    )


_library.define(
    "masked_conv2d",
    "(Tensor x, Tensor weight, Tensor mask, Tensor? bias, SymInt[] window, SymInt precision) -> Tensor",
    fake=_fake,
    module="masked_conv2d",
)
_library.define(
    "masked_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor mask, SymInt[] window, SymInt precision, bool needs_x, "
    "bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    module="masked_conv2d",
)
_library.define_backward("masked_conv2d", _backward, _setup_context)
_library.define_once_differentiable("masked_conv2d")
