"""Convolution over an unstructured mask: checks, autograd and choice of backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_tensor
from oes_fast.backends import resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Which weights of a convolution are kept, in the orders the kernels read them; make it with :meth:`of`.

    Attributes:
        mask: bool [O, C, kH, kW].
        taps: (o, c, u, v) of every kept weight, int32 [nnz, 4], in that order.
        by_input: indices of the taps in order of (c, u % 2, v % 2): those that read one plane of the input
            lie together, at either stride. int32 [nnz].
    """

    mask: Tensor
    taps: Tensor
    by_input: Tensor
    _on_devices: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, mask: Tensor) -> SparsePattern:
        """The pattern of a mask.

        Args:
            mask: bool [O, C, kH, kW], none of them 0; copied to the CPU.

        Raises:
            InputError: ``mask`` is no such tensor.
        """
        check_tensor("mask", mask, ndim=4, dtypes=(torch.bool,))
        if 0 in mask.shape:
            raise InputError(f"mask: expected no size of 0, got shape {tuple(mask.shape)}")
        mask = mask.detach().cpu().clone().contiguous()
        taps = torch.nonzero(mask)
        _, inputs, rows, columns = taps.unbind(1)
        key = (inputs * 2 + rows % 2) * 2 + columns % 2
        order = torch.sort(key, stable=True).indices
        return cls(mask, taps.to(torch.int32).contiguous(), order.to(torch.int32))

    def index(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(taps, by_input) on a device; the same tensors in every call, so that kernels can know them."""
        if device.type == "cpu":
            return self.taps, self.by_input
        if device not in self._on_devices:
            self._on_devices[device] = self.taps.to(device), self.by_input.to(device)
        return self._on_devices[device]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(O, C, kH, kW)."""
        outputs, inputs, rows, columns = self.mask.shape
        return outputs, inputs, rows, columns

    @property
    def nnz(self) -> int:
        """How many weights are kept."""
        return len(self.taps)


@dataclass(frozen=True, eq=False)
class PhaseSplit:
    """An image as its even and odd rows and columns, as pixel_unshuffle gives them: a stride of 2 reads them.

    Attributes:
        planes: [N, C, 4, ceil(H / 2), ceil(W / 2)]; see :func:`oes_fast.reference.phase_split`.
        size: (H, W).
    """

    planes: Tensor
    size: tuple[int, int]


def phase_split(x: Tensor, *, backend: str = "auto") -> PhaseSplit:
    """Split an image once that several convolutions of stride 2 read, such as a fixed input.

    Args:
        x: float32 or float64, shape [N, C, H, W].
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only).

    Returns:
        :class:`PhaseSplit`, differentiable in ``x``.

    Raises:
        InputError: ``x`` is no such tensor.
        BackendError: the named backend cannot run here.

    Example:
        >>> split = oes.functional.phase_split(torch.rand(1, 2, 9, 7))
        >>> split.planes.shape, split.size
        (torch.Size([1, 2, 4, 5, 4]), (9, 7))
    """
    check_tensor("x", x, ndim=4)
    chosen = resolve(backend, x.device, _library.candidates(x.dtype))
    height, width = x.shape[2:]
    if chosen == "reference":
        return PhaseSplit(reference.phase_split(x), (height, width))
    return PhaseSplit(_library.kernel("phase_split", chosen)(x.contiguous()), (height, width))


def sparse_conv2d(
    x: Tensor | PhaseSplit,
    values: Tensor,
    pattern: SparsePattern,
    *,
    stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Two-dimensional cross-correlation with the kept weights alone.

    y[n, o, i, j] = sum over the kept (o, c, u, v) of w[o, c, u, v] * x[n, c, s * i + u, s * j + v]. The
    kernels give the same bits for every number of threads; between instruction sets they differ by rounding.
    Weight gradients are summed in the element type over 4096 pixels at a time, these sums in double.

    Args:
        x: input, already padded, float32 or float64, shape [N, C, H, W], or its :func:`phase_split` for
            stride 2.
        values: the kept weights in order of (o, c, u, v), shape [pattern.nnz].
        pattern: which weights they are.
        stride: s, 1 or 2.
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only).

    Returns:
        Tensor of shape [N, O, (H - kH) // s + 1, (W - kW) // s + 1]; differentiable in ``x`` and ``values``,
        twice with backend "reference".

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or another stride.
        BackendError: the named backend cannot run here.

    Example:
        >>> x, weight = torch.rand(1, 2, 8, 8), torch.rand(3, 2, 3, 3)
        >>> keep = weight > 0.5
        >>> pattern = oes.functional.SparsePattern.of(keep)
        >>> oes.functional.sparse_conv2d(x, weight[keep], pattern).shape
        torch.Size([1, 3, 6, 6])
    """
    if not isinstance(pattern, SparsePattern):
        raise InputError(f"pattern: expected a SparsePattern, got {type(pattern).__name__}")
    if check_integer("stride", stride) not in (1, 2):
        raise InputError(f"stride: expected 1 or 2, got {stride}")
    outputs, inputs, kernel_rows, kernel_columns = pattern.shape
    if isinstance(x, PhaseSplit):
        if stride != 2:
            raise InputError(f"x: expected a tensor for stride {stride}, got a PhaseSplit")
        half = tuple((side + 1) // 2 for side in x.size)
        data = check_tensor("x", x.planes, shape=(None, inputs, 4, *half))
        height, width = x.size
    else:
        data = check_tensor("x", x, shape=(None, inputs, None, None))
        height, width = x.shape[2:]
    check_tensor("values", values, shape=(pattern.nnz,), like=data)
    if height < kernel_rows or width < kernel_columns:
        raise InputError(
            f"x: expected {kernel_rows} x {kernel_columns} pixels at least, got {height} x {width}"
        )
    chosen = resolve(backend, data.device, _library.candidates(data.dtype))
    if chosen == "reference":
        image = reference.phase_merge(data, height, width) if isinstance(x, PhaseSplit) else x
        return reference.sparse_conv2d(image, values, pattern.mask.to(data.device), stride=stride)
    if isinstance(x, PhaseSplit):
        planes = data.contiguous()
    elif stride == 2:
        planes = _library.kernel("phase_split", chosen)(x.contiguous())
    else:
        planes = x.contiguous().unsqueeze(2)
    return _library.kernel("sparse_conv2d", chosen)(
        planes,
        values.contiguous(),
        *pattern.index(planes.device),
        outputs,
        kernel_rows,
        kernel_columns,
        (height - kernel_rows) // stride + 1,
        (width - kernel_columns) // stride + 1,
    )


def _fake(
    planes: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    outputs: int,
    kernel_rows: int,
    kernel_columns: int,
    rows: int,
    columns: int,
) -> Tensor:
    return planes.new_empty(planes.shape[0], outputs, rows, columns)


def _fake_backward(
    grad: Tensor,
    planes: Tensor,
    values: Tensor,
    taps: Tensor,
    by_input: Tensor,
    kernel_rows: int,
    kernel_columns: int,
    needs_planes: bool,
    needs_values: bool,
) -> tuple[Tensor, Tensor]:
    grad_planes = torch.empty_like(planes) if needs_planes else planes.new_empty(0)
    return grad_planes, values.new_empty(values.numel() if needs_values else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    planes, values, taps, by_input, _, *kernel = inputs
    ctx.save_for_backward(planes, values, taps, by_input)
    ctx.kernel = kernel[:2]


def _backward(ctx: Any, backend: str, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_planes, needs_values = ctx.needs_input_grad[:2]
    kernel = _library.kernel("sparse_conv2d_backward", backend)
    grad_planes, grad_values = kernel(
        grad.contiguous(), *ctx.saved_tensors, *ctx.kernel, needs_planes, needs_values
    )
    return (grad_planes if needs_planes else None, grad_values if needs_values else None, *[None] * 7)


def _nothing_kept(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _fake_split(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    return x.new_empty(n, c, 4, (height + 1) // 2, (width + 1) // 2)


def _fake_merge(planes: Tensor, height: int, width: int) -> Tensor:
    return planes.new_empty(*planes.shape[:2], height, width)


def _keep_size(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.size = inputs[0].shape[2:]


def _split_backward(ctx: Any, backend: str, grad: Tensor) -> Tensor:
    return _library.kernel("phase_merge", backend)(grad.contiguous(), *ctx.size)


def _merge_backward(ctx: Any, backend: str, grad: Tensor) -> tuple[Tensor, None, None]:
    return _library.kernel("phase_split", backend)(grad.contiguous()), None, None


_library.define(
    "sparse_conv2d",
    "(Tensor planes, Tensor values, Tensor taps, Tensor by_input, SymInt outputs, SymInt kernel_rows, "
    "SymInt kernel_columns, SymInt rows, SymInt columns) -> Tensor",
    fake=_fake,
    module="sparse_conv2d",
)
_library.define(
    "sparse_conv2d_backward",
    "(Tensor grad, Tensor planes, Tensor values, Tensor taps, Tensor by_input, SymInt kernel_rows, "
    "SymInt kernel_columns, bool needs_planes, bool needs_values) -> (Tensor, Tensor)",
    fake=_fake_backward,
    module="sparse_conv2d",
)
_library.define("phase_split", "(Tensor x) -> Tensor", fake=_fake_split, module="sparse_conv2d")
_library.define(
    "phase_merge",
    "(Tensor planes, SymInt height, SymInt width) -> Tensor",
    fake=_fake_merge,
    module="sparse_conv2d",
)
_library.define_backward("sparse_conv2d", _backward, _setup_context)
_library.define_once_differentiable("sparse_conv2d")
_library.define_backward("phase_split", _split_backward, _keep_size)
_library.define_backward("phase_merge", _merge_backward, _nothing_kept)
