"""Convolution over an unstructured mask after nearest up-sampling: checks, autograd, choice of backend.

Operators: ``sparse_up_conv2d_BACKEND`` and ``sparse_up_conv2d_backward_BACKEND``, with the pattern's index
tensors as :class:`SparsePattern` has them; a gradient that is not needed has no elements.
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
from oes_fast.ops.sparse_conv2d import SparsePattern


def sparse_up_conv2d(x: Tensor, values: Tensor, pattern: SparsePattern, *, backend: str = "auto") -> Tensor:
    """conv3x3(reflect_pad1(nearest_up2(x))) with the kept weights alone, never at the high resolution.

    nnz * h * w multiply-adds and 36 additions for each pixel of the input and output channel; see
    :func:`oes_fast.reference.sparse_up_conv2d`.

    Args:
        x: input, float32 or float64, shape [N, C, h, w].
        values: the kept weights in order of (o, c, u, v), shape [pattern.nnz].
        pattern: which weights they are, of a 3 x 3 kernel.
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only).

    Returns:
        Tensor of shape [N, O, 2 h, 2 w]; differentiable in ``x`` and ``values``, twice with backend
        "reference".

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a kernel that is not 3 x 3.
        BackendError: the named backend cannot run here.

    Example:
        >>> x, weight = torch.rand(1, 2, 8, 8), torch.rand(3, 2, 3, 3)
        >>> keep = weight > 0.5
        >>> pattern = oes.functional.SparsePattern.of(keep)
        >>> oes.functional.sparse_up_conv2d(x, weight[keep], pattern).shape
        torch.Size([1, 3, 16, 16])
    """
    if not isinstance(pattern, SparsePattern):
        raise InputError(f"pattern: expected a SparsePattern, got {type(pattern).__name__}")
    outputs, inputs, *kernel = pattern.shape
    if kernel != [3, 3]:
        raise InputError(f"pattern: expected a kernel of 3 x 3, got {kernel[0]} x {kernel[1]}")
    check_tensor("x", x, shape=(None, inputs, None, None))
    if 0 in x.shape[2:]:
        raise InputError(f"x: expected a pixel at least, got shape {tuple(x.shape)}")
    check_tensor("values", values, shape=(pattern.nnz,), like=x)
    chosen = resolve(backend, x.device, _library.candidates(x.dtype))
    if chosen == "reference":
        return reference.sparse_up_conv2d(x, values, pattern.mask.to(x.device))
    operator = _library.kernel("sparse_up_conv2d", chosen)
    return operator(x.contiguous(), values.contiguous(), *pattern.index(x.device), outputs)


def _fake(x: Tensor, values: Tensor, taps: Tensor, by_input: Tensor, outputs: int) -> Tensor:
    n, _, rows, columns = x.shape
    return x.new_empty(n, outputs, 2 * rows, 2 * columns)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    needs_x: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    return grad_x, values.new_empty(values.numel() if needs_values else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, backend: str, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_values = ctx.needs_input_grad[:2]
    operator = _library.kernel("sparse_up_conv2d_backward", backend)
    grad_x, grad_values = operator(grad.contiguous(), *ctx.saved_tensors, needs_x, needs_values)
    return grad_x if needs_x else None, grad_values if needs_values else None, None, None, None


_library.define(
    "sparse_up_conv2d",
    "(Tensor x, Tensor values, Tensor taps, Tensor by_input, SymInt outputs) -> Tensor",
    fake=_fake,
    module="sparse_up_conv2d",
)
_library.define(
    "sparse_up_conv2d_backward",
    "(Tensor grad, Tensor x, Tensor values, Tensor taps, Tensor by_input, bool needs_x, bool needs_values) "
    "-> (Tensor, Tensor)",
    fake=_fake_backward,
    module="sparse_up_conv2d",
)
_library.define_backward("sparse_up_conv2d", _backward, _setup_context)
_library.define_once_differentiable("sparse_up_conv2d")
