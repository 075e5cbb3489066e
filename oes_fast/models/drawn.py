"""Layers whose initial weights come from a generator of their own, the same in every dtype and thread."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import init


def drawn_conv2d(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device,
    **options: Any,
) -> nn.Conv2d:
    """torch.nn.Conv2d in PyTorch's default initialisation.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: rows and columns of the kernel.
        generator: on the CPU, draws weights and biases in float32, which are then converted. None for
            PyTorch's own way: the global generator, in the dtype and on the device of the weights.
        dtype: of the weights.
        device: of the weights.
        **options: of torch.nn.Conv2d.
    """
    if generator is None:
        return nn.Conv2d(inputs, outputs, kernel, dtype=dtype, device=device, **options)
    # Nothing is drawn on "meta".
    conv = nn.Conv2d(inputs, outputs, kernel, dtype=dtype, device="meta", **options).to_empty(device=device)
    drawn = torch.empty(conv.weight.shape, dtype=torch.float32, device="cpu")
    init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as Conv2d.reset_parameters
    with torch.no_grad():
        conv.weight.copy_(drawn)
        if conv.bias is not None:
            bound = 1 / math.sqrt(drawn[0].numel())  # fan in
            drawn = torch.empty(conv.bias.shape, dtype=torch.float32, device="cpu")
            conv.bias.copy_(init.uniform_(drawn, -bound, bound, generator=generator))
    return conv
