"""Networks on PyTorch's device "meta", whose tensors have a shape and no values, without its compiler.

Most of what PyTorch does there it does in Python, and its compiler and a system of computer algebra are
imported at the first call. Together they take a second and a half: more than a small network takes to train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def unfilled(layer: ModuleT, device: torch.device) -> ModuleT:
    """``layer``, made on the device "meta", with parameters and buffers of any values on ``device``.

    As ``layer.to_empty(device=device)``, for a layer without others inside.
    """
    for name, parameter in list(layer.named_parameters(recurse=False)):
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        setattr(layer, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        setattr(layer, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    return layer


class QuickShapes(TorchFunctionMode):
    """Inside, what generators are mostly made of gives its shape at once on the device "meta".

    Convolutions, batch normalisation in evaluation, mirrored edges, activations, enlarging and putting
    channels together, where nothing can be wrong with the call. All else is left to PyTorch, which says what
    is.

    Example:
        >>> conv = torch.nn.Conv2d(4, 6, 3, stride=2, device="meta")
        >>> with QuickShapes():
        ...     conv(torch.empty(1, 4, 9, 9, device="meta")).shape
        torch.Size([1, 6, 4, 4])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``."""
        kwargs = kwargs or {}
        shape = _shape(func, args, kwargs)
        if shape is None:
            return func(*args, **kwargs)
        if func is F.leaky_relu and (kwargs.get("inplace") or any(args[2:])):
            return args[0]
        given = args[0] if func is torch.cat else (*args, *kwargs.values())
        return _Shaped.apply(shape, *(each for each in given if isinstance(each, Tensor)))


def _shape(func: Callable[..., Any], args: Any, kwargs: Any) -> Sequence[int] | None:
    """Of the result, None where PyTorch is to say it."""
    if func not in _SHAPES or not args:
        return None
    try:
        return _SHAPES[func](*args, **kwargs)
    except Exception:  # an argument that is not known here, or that nobody takes
        return None


class _Shaped(torch.autograd.Function):
    """A result of a shape, with a gradient where what it is made of has one."""

    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], *tensors: Tensor) -> Tensor:
        return torch.empty(shape, dtype=tensors[0].dtype, device="meta")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError("a tensor without values has no gradient")


def _alike(*tensors: Tensor | None) -> bool:
    """Whether all but None are contiguous tensors on the device "meta", of one floating-point dtype."""
    given = [t for t in tensors if t is not None]
    plain = all(type(t) in (Tensor, nn.Parameter) and t.is_meta and t.is_contiguous() for t in given)
    return plain and given[0].dtype in _FLOATS and len({t.dtype for t in given}) == 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _pair(value: Any) -> tuple[int, int] | None:
    pair = (value,) * 2 if type(value) is int else tuple(value)
    return pair if len(pair) == 2 and all(type(v) is int for v in pair) else None


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Sequence[int] | None:
    steps, edges, gaps = (None if isinstance(v, str) else _pair(v) for v in (stride, padding, dilation))
    if not _alike(input, weight, bias) or input.ndim != 4 or steps is None or edges is None or gaps is None:
        return None
    outputs, inputs, *kernel = weight.shape
    if input.shape[1] != inputs * groups or outputs % groups or min(*steps, *gaps) < 1 or min(edges) < 0:
        return None
    if bias is not None and bias.shape != (outputs,):
        return None
    sides = zip(input.shape[2:], edges, gaps, kernel, strict=True)
    reaches = [side + 2 * edge - gap * (k - 1) - 1 for side, edge, gap, k in sides]
    if min(reaches) < 0:
        return None
    return (input.shape[0], outputs, *(reach // step + 1 for reach, step in zip(reaches, steps, strict=True)))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> Sequence[int] | None:
    if training or running_mean is None or running_var is None:
        return None
    if not (_is_number(momentum) and _is_number(eps) and eps > 0):
        return None
    vectors = [v for v in (running_mean, running_var, weight, bias) if v is not None]
    fit = input.ndim > 1 and all(v.shape == input.shape[1:2] for v in vectors)
    return input.shape if fit and _alike(input, *vectors) else None


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Sequence[int] | None:
    whole = len(pad) == 4 and all(type(p) is int and p >= 0 for p in pad)
    if not whole or value is not None or not _alike(input) or input.ndim != 4:
        return None
    left, right, top, bottom = pad
    height, width = input.shape[2:]
    if mode != "reflect" or max(left, right) >= width or max(top, bottom) >= height:
        return None
    return (*input.shape[:2], height + top + bottom, width + left + right)


def _interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: Any = False,
) -> Sequence[int] | None:
    factor = int(scale_factor) if _is_number(scale_factor) else 0
    whole = size is None and factor > 0 and factor == scale_factor
    if not whole or not _alike(input) or input.ndim != 4 or mode not in ("nearest", "bilinear"):
        return None
    aligned = align_corners is None or (mode == "bilinear" and type(align_corners) is bool)
    if not aligned or recompute_scale_factor is not None or antialias is not False:
        return None
    return (*input.shape[:2], *(side * factor for side in input.shape[2:]))


def _cat(tensors: Any, dim: int = 0) -> Sequence[int] | None:
    if dim != 1 or not tensors or not all(isinstance(t, Tensor) for t in tensors) or not _alike(*tensors):
        return None
    first = tensors[0].shape
    if any(t.ndim != 4 or (t.shape[0], *t.shape[2:]) != (first[0], *first[2:]) for t in tensors):
        return None
    return (first[0], sum(t.shape[1] for t in tensors), *first[2:])


def _avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> Sequence[int] | None:
    size = _pair(kernel_size)
    usual = ceil_mode is False and type(count_include_pad) is bool and divisor_override is None
    if size is None or min(size) < 1 or padding != 0 or not usual or input.ndim != 4:
        return None
    if not _alike(input) or (stride is not None and _pair(stride) != size):
        return None
    (height, width), (rows, columns) = input.shape[2:], size
    return None if height % rows or width % columns else (*input.shape[:2], height // rows, width // columns)


def _sigmoid(input: Tensor) -> Sequence[int] | None:
    return input.shape if _alike(input) else None


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Sequence[int] | None:
    refused = inplace and input.requires_grad and input.is_leaf
    known = _is_number(negative_slope) and type(inplace) is bool and not refused
    return input.shape if known and _alike(input) else None


_SHAPES: dict[Callable[..., Any], Callable[..., Sequence[int] | None]] = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
    F.pad: _pad,
    F.interpolate: _interpolate,
    torch.cat: _cat,
    torch.sigmoid: _sigmoid,
    F.leaky_relu: _leaky_relu,
    F.avg_pool2d: _avg_pool2d,
}
