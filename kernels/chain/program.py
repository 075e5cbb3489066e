"""Convolutions with batch norms between them, run as one: the program of :mod:`specs` on the kernels.

A block is a convolution with the batch norm, the activation and possibly a second batch norm behind it. Between
two blocks only the convolution's own result is kept; the next block normalises and activates it as it reads it,
forward and backward. All buffers are made once, and nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import triton.language as tl
from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.blocks import Block, Norm, Place
from oes_fast.kernels.chain.conv_taps import conv_taps
from oes_fast.kernels.chain.flat_weights import FlatWeights
from oes_fast.kernels.chain.norm_pass import pass_chunks
from oes_fast.kernels.chain.reader import Image, gradient_image, plain_image
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, NormSpec, OutputAct, Padding
from oes_fast.kernels.chain.tap_sum import (
    ACT_GRAD,
    IMAGE,
    MOMENTS,
    SECOND_SUMS,
    STORE,
    Epilogue,
    tap_sum,
)
from oes_fast.kernels.chain.tap_sum_plan import TapSumPlan, plan_tap_sum
from oes_fast.kernels.chain.weight_grad import plan_weight_grad, weight_grad
from torch import Tensor

# What plans are made for under the interpreter, which pays by the program: of so few that none is split.
_INTERPRETED_PROCESSORS = 1


class Chain:
    """A chain of convolutions and norms for N networks at once.

    First the convolutions and norms are added in their order, then it is finished, then it is evaluated.

    Args:
        networks: N, 1 to 65535.
        channels, rows, columns: of the source.
        constant_input: nobody needs the gradient of the source.
        weights: length of a network's flat vector.
        products: of float32 numbers, one of :data:`oes_fast.precision.PRECISIONS`.
        dtype: of all tensors, float32 or float64.
        device: of all tensors.
        group: outputs of a program, None for the best choice.
        processors: of the device, None to ask it.
    """

    def __init__(
        self,
        networks: int,
        channels: int,
        rows: int,
        columns: int,
        *,
        constant_input: bool,
        weights: int,
        products: str,
        dtype: torch.dtype,
        device: torch.device | str,
        group: int | None = None,
        processors: int | None = None,
    ) -> None:
        self._place = Place(networks, weights, dtype, torch.device(device))
        self._source = channels, rows, columns
        self._constant_input = constant_input
        self._products = products
        self._group = group
        self._processors = _processors(self._place.device) if processors is None else processors
        self._blocks: list[Block] = []
        self._weights = FlatWeights(weights, networks, self._place.device, dtype)
        self._finished = False
        self._target: Tensor | None = None
