"""A convolution of which a mask keeps some weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from oes_fast._checks import check_tensor
from oes_fast.errors import InputError
from oes_fast.ops.masked_conv2d import Pair, masked_conv2d


class MaskedConv2d(nn.Conv2d):
    """torch.nn.Conv2d with a mask over its weights, in place of it: same arguments, same state plus ``mask``.

    Attributes:
        mask: bool buffer of the shape of ``weight``; all True until :meth:`set_mask`.

    The output is that of ``weight * mask``; dropped weights get no gradient and, if :meth:`set_mask` was
    called, are zero. The bias is not masked.
    """

    mask: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.padding, str):
            raise InputError(f"padding: expected numbers, got {self.padding!r}")
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None) -> MaskedConv2d:
        """A masked copy of a convolution.

        Args:
            conv: the layer to copy.
            mask: bool of the shape of its weight; None keeps all.
        """
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"conv: expected a torch.nn.Conv2d, got {type(conv).__name__}")
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",  # draws no initial weights, so the random state stays as it was
            dtype=conv.weight.dtype,
        ).to_empty(device=conv.weight.device)
        layer.mask.fill_(True)
        for copy, original in zip(layer.parameters(), conv.parameters(), strict=True):
            copy.data.copy_(original.detach())
            copy.requires_grad_(original.requires_grad)
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
        """Output [N, out_channels, H', W'] of ``x`` [N, in_channels, H, W]."""
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
        return f"{super().extra_repr()}, kept={int(self.mask.sum())}/{self.mask.numel()}"
