"""Drop-in layers."""

from oes_fast.nn.masked_conv2d import MaskedConv2d

__all__ = ["MaskedConv2d"]
