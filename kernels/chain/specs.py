"""The program of a chain, which :mod:`oes_fast.rewrite.run.chain_program` writes.

It is that of csrc/common/chain_specs.h. A weight is named by its index in the flat vector of weights; -1
stands for a weight that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np

# Outputs of a pointwise convolution behind one norm that is a kind of its own to the other engines.
MOST_HEAD_OUTPUTS: Final = 4


class ConvKind(IntEnum):
    """See csrc/common/enums.h; here an up-sampling convolution differs from the others alone."""

    DIRECT = 0
    POINTWISE = 1
    UPSAMPLE = 2
    HEAD = 3


class Padding(IntEnum):
    """What an image is continued with."""

    ZEROS = 0
    REFLECT = 1
    REPLICATE = 2
    CIRCULAR = 3


class Act(IntEnum):
    """Activations, as kinds.py numbers them."""

    LEAKY_RELU = 0
    ELU = 1
    SILU = 2


class OutputAct(IntEnum):
    """Activations of the image that leaves the network, as kinds.py numbers them."""

    LEAKY_RELU = 0
    SIGMOID = 1


@dataclass
class ConvSpec:
    """A convolution.

    Attributes:
        kind: of convolution.
        padding: what the border is filled with.
        border: left, right, top, bottom; of a direct convolution.
        box: sum of 2 x 2 pixels first.
        stride: 1 or 2.
        kernel_rows, kernel_columns: of the weights.
        outputs: channels that vary.
        taps: (o, c, u, v) of every kept weight, in that order.
        weights: their indices.
        first_weight: or: all weights are kept, and lie from this index on; taps and weights are empty.
        dense: all weights are kept.
        scale: of the weights.
        bias: [outputs + constant outputs], those whose statistics are kept.
        constant_taps: (output, index of the weight, number of the constant) of every kept weight.
    """

    kind: ConvKind = ConvKind.DIRECT
    padding: Padding = Padding.ZEROS
    border: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    box: bool = False
    stride: int = 1
    kernel_rows: int = 1
    kernel_columns: int = 1
    outputs: int = 0
    taps: list[int] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    first_weight: int = -1
    dense: bool = False
    scale: float = 1.0
    bias: list[int] = field(default_factory=list)
    constant_taps: list[int] = field(default_factory=list)


@dataclass
class NormSpec:
    """A batch norm with the activation behind it.

    Attributes:
        gamma, beta: [channels].
        eps, momentum: of the norm.
        copies: pixels that stand for each.
        tracks: has running statistics.
        stats_index: of the channels in them.
        tracked: constants whose running statistics are kept, as what is before counts them, -1 for zero.
        tracked_stats_index: their places in the running statistics.
        act, slope: of the activation; none is leaky with a slope of 1.
        constants: indices of the beta of every constant channel.
    """

    gamma: list[int] = field(default_factory=list)
    beta: list[int] = field(default_factory=list)
    eps: float = 1e-5
    momentum: float = 0.1
    copies: int = 1
    tracks: bool = False
    stats_index: list[int] = field(default_factory=list)
    tracked: list[int] = field(default_factory=list)
    tracked_stats_index: list[int] = field(default_factory=list)
    act: Act = Act.LEAKY_RELU
    slope: float = 1.0
    constants: list[int] = field(default_factory=list)


def kept_weights(spec: ConvSpec, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """(o, c, u, v) of every kept weight, int64 [kept, 4], and their indices, int64 [kept]."""
    if spec.first_weight < 0:
        return np.array(spec.taps, np.int64).reshape(-1, 4), np.array(spec.weights, np.int64)
    shape = spec.outputs, inputs, spec.kernel_rows, spec.kernel_columns
    taps = np.stack([axis.ravel() for axis in np.indices(shape)], axis=1).astype(np.int64)
    return taps, spec.first_weight + np.arange(len(taps), dtype=np.int64)
