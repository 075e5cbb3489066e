"""Layers whose initial weights come from a generator of their own, the same in every dtype and thread."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch.nn import init
from torch.nn.modules.conv import _ConvNd

from oes_fast.meta_device import unfilled

Conv = TypeVar("Conv", bound=_ConvNd)


def drawn_conv(
    kind: type[Conv],
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
    **options: Any,
) -> Conv:
    """A convolution in PyTorch's default initialisation.

    Args:
        kind: torch.nn.Conv2d, another dimension's, or a transposed one.
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: size of the kernel in each dimension.
        generator: on the CPU, draws weights and biases in float32, which are then converted. None for
            PyTorch's own way: the global generator, in the dtype and on the device of the weights.
        dtype: of the weights.
        device: of the weights.
        **options: of the class.
    """
    # The classes share these arguments; their common base has others.
    make: Any = kind
    if generator is None:
        made: Conv = make(inputs, outputs, kernel, dtype=dtype, device=device, **options)
        return made
    # Nothing is drawn on "meta".
    conv: Conv = unfilled(make(inputs, outputs, kernel, dtype=dtype, device="meta", **options), device)
    drawn = torch.empty(conv.weight.shape, dtype=torch.float32, device="cpu")
    init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as reset_parameters of the class
    with torch.no_grad():
        conv.weight.copy_(drawn)
        if conv.bias is not None:
            bound = 1 / math.sqrt(drawn[0].numel())  # fan in, as PyTorch takes it
            drawn = torch.empty(conv.bias.shape, dtype=torch.float32, device="cpu")
            conv.bias.copy_(init.uniform_(drawn, -bound, bound, generator=generator))
    return conv
