"""The sparse kernel under a masked convolution on a CPU, where it is faster than the dense one.

Which is faster depends on the shape, the share of weights kept and the processor: the output, the gradient of
the input and that of the weight are timed once each for a problem, and what was chosen is kept on disk, so
that a layer computes the same bits in every call and every run. The output's form does not depend on whether
gradients are asked for.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch

from oes_fast.autotune_cache import measured_choice
from oes_fast.backends import backends
from oes_fast.ops import _library
from oes_fast.ops.sparse_conv2d import SparsePattern
from oes_fast.timing import times_in_turn

_ROUNDS = 12
_CLEAR = 1.5  # a ratio of times that needs no more rounds
_SECONDS = 1.0  # after which no more rounds begin
_OVERHEAD = 50e-6  # seconds that a call of the sparse form costs around the kernels
_GAIN = 0.85  # share of the dense time that the sparse form must stay below: a draw goes to the dense one
_DENSE_FROM = 0.85  # share of weights kept from which nothing is timed
_DENSE_BELOW = 2**22  # multiply-accumulates of the dense form below which calls cost more than sums


class Window(NamedTuple):
    """How a convolution moves: stride in both directions, zeros above and below, zeros left and right."""

    stride: int
    rows: int
    columns: int


class Forms(NamedTuple):
    """Which parts of a convolution the sparse kernel computes."""

    output: bool
    grad_x: bool
    grad_weight: bool


_NONE = Forms(False, False, False)


class Kept:
    """The weights a mask keeps, as the kernels read them.

    Args:
        mask: bool [O, C, kH, kW] on the CPU; copied.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.detach().clone()
        self.count = int(self.mask.sum())
        self.known: dict[Any, Forms | None] = {}  # by problem, so that a call need not name it for the disk

    @property
    def share(self) -> float:
        """Of the weights that are kept."""
        return self.count / max(self.mask.numel(), 1)

    @functools.cached_property
    def pattern(self) -> SparsePattern:
        """For the kernels."""
        return SparsePattern.of(self.mask)

    @functools.cached_property
    def index(self) -> Tensor:
        """Index of the kept weights into the flat weight, int64 [count]."""
        return self.mask.flatten().nonzero().flatten()


def usable(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> bool:
    """Whether these are plain CPU tensors that the sparse kernel can take, outside of any transform.

    torch.compile, functorch, forward-mode derivatives, tracing and modes that watch every operation see the
    dense convolution: they know how to transform it.
    """
    tensors = (x, weight, mask) if bias is None else (x, weight, mask, bias)
    return (
        all(t.device.type == "cpu" and type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and weight.dtype in (torch.float32, torch.float64)
        and mask.dtype == torch.bool
        and x.numel() > 0
        and not torch.jit.is_tracing()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and _python_dispatch._get_current_dispatch_mode() is None
        and torch._C._len_torch_function_stack() == 0
        and not (x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last))
        and bool(backends()["cpu"])
    )


def choose(kept: Kept, x: Tensor, weight: Tensor, window: Window) -> Forms | None:
    """Which parts the sparse kernel computes of a convolution of this shape; None for none.

    Args:
        kept: the weights.
        x: input [N, C, H, W]; as ``weight``, it serves as an example where there is something to time.
        weight: [O, C, kH, kW].
        window: of the convolution.
    """
    if not kept.count or kept.share >= _DENSE_FROM or _macs(x, weight, window) < _DENSE_BELOW:
        return None
    problem = (x.shape, x.dtype, window, torch.get_num_threads())
    if problem not in kept.known:
        sizes = " ".join(map(str, (*weight.shape, *x.shape, *window)))
        key = f"{x.dtype} {sizes} {torch.get_num_threads()} {kept.share:.2g}"
        capability = importlib.import_module("oes_fast._C").capability()

        def measure() -> list[bool]:
            return list(_measure(kept, x.detach(), weight.detach(), window))

        chosen = measured_choice("masked-conv2d", capability, key, measure, valid=_is_row)
        forms = Forms(*map(bool, chosen))
        kept.known[problem] = forms if any(forms) else None
    return kept.known[problem]


def _macs(x: Tensor, weight: Tensor, window: Window) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3] * weight.numel() // window.stride**2


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) == len(Forms._fields)


@torch.no_grad()
def _measure(kept: Kept, x: Tensor, weight: Tensor, window: Window) -> Forms:
    grad = torch.ones_like(_dense(x, weight, None, window))

    def faster_gradient(of_x: bool) -> bool:
        wanted = of_x, not of_x
        return _faster(
            lambda: _sparse_gradients(kept, grad, x, weight, window, *wanted),
            lambda: _dense_gradients(grad, x, weight * kept.mask, window, *wanted),
        )

    def step(forms: Forms) -> Callable[[], object]:
        return lambda: _step(kept, forms, x, weight, window, grad)

    output = _faster(
        lambda: _sparse(kept, x, weight, window), lambda: _dense(x, weight * kept.mask, None, window)
    )
    best = Forms(output, faster_gradient(True), faster_gradient(False))
    # The parts together, with all that lies between them: what does not pay as a whole is left out.
    for forms in (best, Forms(output, False, False)):
        if any(forms) and _faster(step(forms), step(_NONE), clearly=False):
            return forms
    return _NONE


def _step(kept: Kept, forms: Forms, x: Tensor, weight: Tensor, window: Window, grad: Tensor) -> object:
    """Output and both gradients."""
    with torch.enable_grad():
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        if any(forms):
            output = sparse_form(kept, forms, x, weight, None, window)
        else:
            output = _dense(x, weight * kept.mask, None, window)
        return torch.autograd.grad(output, (x, weight), grad)


def _faster(first: Callable[[], object], second: Callable[[], object], *, clearly: bool = True) -> bool:
    """Whether ``first``, the sparse form, takes (clearly) less time: the least of some rounds in turn."""
    deadline = time.perf_counter() + _SECONDS

    def enough(times: list[list[float]]) -> bool:
        least = [min(taken) for taken in times]
        clear = max(least) > _CLEAR * min(least) or time.perf_counter() > deadline
        return len(times[0]) > 2 and clear  # the first round warms up

    sparse, dense = (min(taken) for taken in times_in_turn((first, second), rounds=_ROUNDS, enough=enough))
    return sparse + _OVERHEAD < _GAIN * dense if clearly else sparse < dense


def sparse_form(
    kept: Kept, forms: Forms, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window
) -> Tensor:
    """The convolution, by the sparse kernel where ``forms`` says so.

    Args:
        kept: which weights count.
        forms: from :func:`choose`.
        x: [N, C, H, W].
        weight: [O, C, kH, kW].
        bias: [O], or None.
        window: of the convolution, its stride 1 or 2.

    Returns:
        Tensor [N, O, H', W'], differentiable in ``x``, ``weight`` and ``bias``, any number of times: a first
        derivative that is to be derived again is dense.
    """
    result: Tensor = _SparseForm.apply(x, weight, bias, kept, forms, window)
    return result


class _SparseForm(torch.autograd.Function):
    """A masked convolution and its gradients, each in its own form."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept, forms: Forms, window: Window
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kept, ctx.forms, ctx.window = kept, forms, window
        if not forms.output:
            return _dense(x, weight * kept.mask, bias, window)
        output = _sparse(kept, x, weight, window)
        return output if bias is None else output.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        kept, forms, window = ctx.kept, ctx.forms, ctx.window
        needs = ctx.needs_input_grad[:2]
        # One that is derived again, or a batch of gradients at once, is what autograd knows how to do.
        sparse = forms[1:] if not torch.is_grad_enabled() and _is_plain(grad) else (False, False)
        grad_x = grad_weight = None
        by_sparse = needs[0] and sparse[0], needs[1] and sparse[1]
        by_dense = needs[0] and not sparse[0], needs[1] and not sparse[1]
        if any(by_sparse):
            grad_x, grad_weight = _sparse_gradients(kept, grad, x, weight, window, *by_sparse)
        if any(by_dense):
            dense_x, dense_weight = _dense_gradients(grad, x, weight * kept.mask, window, *by_dense)
            grad_x = dense_x if by_dense[0] else grad_x
            grad_weight = dense_weight * kept.mask if by_dense[1] else grad_weight
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None


def _is_plain(grad: Tensor) -> bool:
    return (
        type(grad) is Tensor
        and not torch._C._functorch.is_legacy_batchedtensor(grad)  # is_grads_batched
        and torch._C._functorch.peek_interpreter_stack() is None
        and _python_dispatch._get_current_dispatch_mode() is None
    )


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    return F.conv2d(x, weight, bias, window.stride, (window.rows, window.columns))


def _dense_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, window: Window, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """(gradient of x, gradient of the weight), differentiable; undefined where not asked for."""
    stride, *padding = window
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, [of_x, of_weight, False]
    )
    return grad_x, grad_weight


def _planes(x: Tensor, window: Window) -> Tensor:
    """The padded input as the kernels read it."""
    x = x.detach()
    if window.rows or window.columns:
        x = F.pad(x, (window.columns, window.columns, window.rows, window.rows))
    x = x.contiguous()
    return _library.kernel("phase_split", "cpu")(x) if window.stride == 2 else x.unsqueeze(2)


def _values(kept: Kept, weight: Tensor) -> Tensor:
    return weight.detach().reshape(-1).index_select(0, kept.index)


def _sparse(kept: Kept, x: Tensor, weight: Tensor, window: Window) -> Tensor:
    outputs, _, *kernel = kept.pattern.shape
    size = [
        (side + 2 * zeros - reach) // window.stride + 1
        for side, zeros, reach in zip(x.shape[2:], window[1:], kernel, strict=True)
    ]
    result: Tensor = _library.kernel("sparse_conv2d", "cpu")(
        _planes(x, window), _values(kept, weight), *kept.pattern.index(x.device), outputs, *kernel, *size
    )
    return result


def _sparse_gradients(
    kept: Kept, grad: Tensor, x: Tensor, weight: Tensor, window: Window, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(gradient of x, gradient of the weight, zero where dropped); None where not asked for."""
    grad_planes, grad_values = _library.kernel("sparse_conv2d_backward", "cpu")(
        grad.detach().contiguous(),
        _planes(x, window),
        _values(kept, weight),
        *kept.pattern.index(x.device),
        *kept.pattern.shape[2:],
        of_x,
        of_weight,
    )
    grad_x = grad_weight = None
    if of_x:
        stride, rows, columns = window
        height, width = x.shape[2:]
        if stride == 2:
            sides = height + 2 * rows, width + 2 * columns
            grad_planes = _library.kernel("phase_merge", "cpu")(grad_planes, *sides).unsqueeze(2)
        grad_x = grad_planes[:, :, 0, rows : rows + height, columns : columns + width].contiguous()
    if of_weight:
        grad_weight = torch.zeros(weight.shape, dtype=weight.dtype, device="cpu")
        grad_weight.view(-1).index_copy_(0, kept.index, grad_values)
    return grad_x, grad_weight
