"""The last layer of the generator with its loss: checks, autograd and choice of backend.

Operators: ``output_head_BACKEND`` and ``output_head_backward_BACKEND``, the weight as [O, C]; a gradient that
is not needed has no elements, an incoming one that is None is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_tensor
from oes_fast.backends import resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library

MOST_OUTPUTS = 16  # a Triton program holds all outputs of its pixels


def output_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    sigmoid: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """1 x 1 convolution, sigmoid and mean squared error to the target.

    Args:
        x: features, float32 or float64, shape [N, C, H, W].
        weight: shape [O, C, 1, 1].
        bias: shape [O], or None.
        target: noisy image, shape [N, O, H', W'] with H' <= H and W' <= W; the output is cropped to it at
            the bottom and right.
        sigmoid: squash the output into (0, 1).
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only, O <= 16).

    Returns:
        (output of the target's shape, scalar loss mean((output - target)^2)); differentiable in ``x``,
        ``weight`` and ``bias``, twice with backend "reference".

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        BackendError: the named backend cannot run here.

    Example:
        >>> x, weight = torch.rand(1, 4, 8, 8), torch.rand(3, 4, 1, 1)
        >>> output, loss = oes.functional.output_head(x, weight, None, torch.rand(1, 3, 8, 8))
        >>> output.shape, loss.shape
        (torch.Size([1, 3, 8, 8]), torch.Size([]))
    """
    check_tensor("x", x, ndim=4)
    check_tensor("weight", weight, shape=(None, x.shape[1], 1, 1), like=x)
    if bias is not None:
        check_tensor("bias", bias, shape=(weight.shape[0],), like=x)
    check_tensor("target", target, shape=(x.shape[0], weight.shape[0], None, None), like=x)
    if target.numel() == 0:
        raise InputError(f"target: expected a pixel at least, got shape {tuple(target.shape)}")
    if target.shape[-2] > x.shape[-2] or target.shape[-1] > x.shape[-1]:
        raise InputError(
            f"target: expected at most {tuple(x.shape[-2:])} pixels as the features have, "
            f"got {tuple(target.shape[-2:])}"
        )
    candidates = _library.candidates(x.dtype)
    if weight.shape[0] > MOST_OUTPUTS:
        candidates = tuple(name for name in candidates if name != "triton")
    chosen = resolve(backend, x.device, candidates)
    if chosen == "reference":
        return reference.output_head(x, weight, bias, target, sigmoid=sigmoid)
    flat = weight.flatten(1).contiguous()
    bias = None if bias is None else bias.contiguous()
    return _library.kernel("output_head", chosen)(
        x.contiguous(), flat, bias, target.detach().contiguous(), sigmoid
    )


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(target.shape), x.new_empty(())


def _fake_backward(
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    x: Tensor,
    weight: Tensor,
    output: Tensor,
    target: Tensor,
    sigmoid: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    grad_weight = torch.empty_like(weight) if needs_weight else x.new_empty(0)
    return grad_x, grad_weight, x.new_empty(weight.shape[0] if needs_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _, target, ctx.sigmoid = inputs
    ctx.set_materialize_grads(False)  # a training differentiates the loss alone
    ctx.save_for_backward(x, weight, output[0], target)


def _backward(
    ctx: Any, backend: str, grad_output: Tensor | None, grad_loss: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_output is None and grad_loss is None:
        return (None,) * 5
    needs = ctx.needs_input_grad[:3]
    grad_output = None if grad_output is None else grad_output.contiguous()
    operator = _library.kernel("output_head_backward", backend)
    found = operator(grad_output, grad_loss, *ctx.saved_tensors, ctx.sigmoid, *needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None, None)


_library.define(
    "output_head",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, bool sigmoid) -> (Tensor, Tensor)",
    fake=_fake,
    module="output_head",
)
_library.define(
    "output_head_backward",
    "(Tensor? grad_output, Tensor? grad_loss, Tensor x, Tensor weight, Tensor output, Tensor target, "
    "bool sigmoid, bool needs_x, bool needs_weight, bool needs_bias) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    module="output_head",
)
_library.define_backward("output_head", _backward, _setup_context)
_library.define_once_differentiable("output_head")
