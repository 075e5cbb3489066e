"""A convolution of which a mask keeps some weights."""

from __future__ import annotations

from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast._checks import FLOAT_DTYPES, check_tensor
from oes_fast.errors import InputError
from oes_fast.meta_device import unfilled
from oes_fast.nn import sparse_form
from oes_fast.nn.plain_conv2d import PlainConv2d
from oes_fast.ops.masked_conv2d import Pair, masked_conv2d
from oes_fast.reference.masked_conv2d import PADDING_MODES


class MaskedConv2d(nn.Conv2d):
    """torch.nn.Conv2d with a mask over its weights, in place of it: same arguments, same state plus ``mask``.

    Attributes:
        mask: bool buffer of the shape of ``weight``; all True until :meth:`set_mask`.

    The output is that of ``weight * mask``; dropped weights get no gradient and, if :meth:`set_mask` was
    called, are zero. The bias is not masked.

    Example:
        >>> dense = torch.nn.Conv2d(16, 32, 3, padding=1)
        >>> conv = oes.MaskedConv2d.from_dense(dense, mask=torch.rand(32, 16, 3, 3) < 0.05)
        >>> conv(torch.rand(1, 16, 64, 64)).shape
        torch.Size([1, 32, 64, 64])
    """

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.padding, str):
            raise InputError(f"padding: expected numbers, got {self.padding!r}")
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None) -> MaskedConv2d:
        """A masked copy of a convolution, of whose parameters it shares none, tied ones included.

        Args:
            conv: the layer to copy, of float32, float64, float16 or bfloat16. A layer that
                torch.nn.utils.prune prunes, or a MaskedConv2d, passes on its mask and the weights it keeps.
            mask: bool of the shape of its weight: which weights to keep of those; None keeps them all.

        Raises:
            InputError: ``mask`` is no such tensor, or ``conv`` has something that a copy would lack and
                differ: hooks, a parametrization, weight or spectral norm, a forward, parameters, buffers or
                modules of its own, a pruned bias, parameters that are not initialised yet, another dtype.
        """
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"conv: expected a torch.nn.Conv2d, got {type(conv).__name__}")
        plain = PlainConv2d.of(conv, MaskedConv2d)
        if mask is not None:
            check_tensor("mask", mask, shape=plain.weight.shape, dtypes=(torch.bool,))
            mask = mask.to(plain.weight.device)
        if plain.mask is not None:
            mask = plain.mask if mask is None else mask & plain.mask
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=plain.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",  # draws no initial weights, so the random state stays as it was
            dtype=plain.weight.dtype,
        )
        layer = unfilled(made, plain.weight.device)
        layer.mask.fill_(True)
        with torch.no_grad():
            layer.weight.copy_(plain.weight)
            if layer.bias is not None and plain.bias is not None:
                layer.bias.copy_(plain.bias)
        for parameter, trained in zip((layer.weight, layer.bias), plain.trained, strict=True):
            if parameter is not None:
                parameter.requires_grad_(trained)
        layer.train(conv.training)
        if mask is not None:
            layer.set_mask(mask)
        return layer

    def set_mask(self, mask: Tensor) -> None:
        """Keep the weights where ``mask`` (bool, shape of ``weight``) is True and zero the others.

        Raises:
            InputError: another shape or dtype.
        """
        check_tensor("mask", mask, shape=self.weight.shape, dtypes=(torch.bool,))
        self.mask.copy_(mask)
        with torch.no_grad():
            self.weight.mul_(self.mask)

    def forward(self, x: Tensor) -> Tensor:
        """Output [N, out_channels, H', W'] of ``x`` [N, in_channels, H, W], or the same without N.

        Where a CPU computes it by the sparse kernel faster, it does: timed once for a shape and kept, see
        :mod:`oes_fast.nn.sparse_form`.
        """
        if not isinstance(x, Tensor) or x.ndim not in (3, 4):
            raise InputError(f"x: expected a tensor of 4 dimensions, got {_kind(x)}")
        if x.ndim == 3:
            return self.forward(x[None])[0]
        autocast = _autocasts(x.device.type)
        if autocast or self.weight.dtype not in FLOAT_DTYPES:
            # What PyTorch makes of other dtypes: the kernels, and the operation, have two.
            if not autocast:
                check_tensor("x", x, dtypes=(self.weight.dtype,), device=self.weight.device)
            return self._conv_forward(x, self.weight * self.mask, self.bias)
        if not torch.compiler.is_compiling() and x.device.type == "cpu":
            mask = self.mask
            seen = _DENSE.get(self)
            if (
                seen is not None
                and seen.mask is mask
                and seen[1:] == (mask._version, x.shape, torch.get_num_threads())
                and x.dtype == self.weight.dtype
            ):
                return self._conv_forward(x, self.weight * mask, self.bias)
            if self._is_sparse_problem(x):
                return self._timed(x)
        return masked_conv2d(
            x,
            self.weight,
            self.mask,
            self.bias,
            stride=cast("Pair", self.stride),
            padding=cast("Pair", self.padding),
            dilation=cast("Pair", self.dilation),
            groups=self.groups,
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        """The arguments, and how many weights are kept."""
        kept = "?" if self.mask.is_meta else int(self.mask.sum())
        return f"{super().extra_repr()}, kept={kept}/{self.mask.numel()}"

    def _is_sparse_problem(self, x: Tensor) -> bool:
        """Whether the sparse kernel can take it: what does not fit is left to the operation's own checks."""
        padded = self.padding_mode != "zeros"
        return (
            self.groups == 1
            and self.dilation == (1, 1)
            and self.stride in ((1, 1), (2, 2))
            and x.dtype == self.weight.dtype
            and x.shape[1] == self.in_channels
            and all(
                side + 2 * pad >= reach and (pad < side or not padded)
                for side, pad, reach in zip(
                    x.shape[2:], cast("tuple[int, int]", self.padding), self.kernel_size, strict=True
                )
            )
            and sparse_form.usable(x, self.weight, self.mask, self.bias)
        )

    def _timed(self, x: Tensor) -> Tensor:
        """The output, in the form that is faster."""
        kept = _KEPT.get(self)
        # By content: whatever wrote to the mask, and however, is seen.
        if kept is None or kept.mask.shape != self.mask.shape or not torch.equal(kept.mask, self.mask):
            kept = _KEPT[self] = sparse_form.Kept(self.mask)
        shape = x.shape
        rows, columns = cast("tuple[int, int]", self.padding)
        if kept.count == kept.mask.numel():
            return self._conv_forward(x, self.weight, self.bias)
        window = sparse_form.Window(self.stride[0], rows, columns)
        if self.padding_mode != "zeros" and (rows or columns):
            x = F.pad(x, (columns, columns, rows, rows), mode=PADDING_MODES[self.padding_mode])
            window = window._replace(rows=0, columns=0)
        forms = sparse_form.choose(kept, x, self.weight, window)
        if forms is None:
            if not self.mask.is_inference():  # it counts no versions
                _DENSE[self] = _Call(self.mask, self.mask._version, shape, torch.get_num_threads())
            return F.conv2d(x, self.weight * self.mask, self.bias, window.stride, window[1:])
        return sparse_form.sparse_form(kept, forms, x, self.weight, self.bias, window)


class _Call(NamedTuple):
    """A call whose dense form was found the faster one; where the next is the same, nothing is looked up."""

    mask: Tensor
    version: int
    shape: torch.Size
    threads: int


# Beside the layers and not in them: copies, pickles and state dicts hold nothing of it.
_KEPT: WeakKeyDictionary[MaskedConv2d, sparse_form.Kept] = WeakKeyDictionary()
_DENSE: WeakKeyDictionary[MaskedConv2d, _Call] = WeakKeyDictionary()


def _autocasts(device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except RuntimeError:  # a kind of device without, such as "meta"
        return False


def _kind(x: object) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
