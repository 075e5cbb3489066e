"""The sparse or the dense form of a convolution in a chain, whichever is faster on this machine.

The dense form multiplies by all weights, those that the mask drops being zero; every pixel it loads serves
several outputs, so that it overtakes the sparse form long before all weights are kept. Where, depends on the
shape and on the processor: between two shares that leave no doubt both are timed once, and the choice is kept
on disk, so that later runs compute the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from oes_fast.autotune_cache import measured_choice
from oes_fast.timing import times_in_turn

# Shares of the weights below and above which nothing is timed: see benchmarks/bench_dense_conv2d.py.
SPARSE_BELOW, DENSE_FROM = 0.3, 0.85
_ROUNDS = 4
_NAME_IN_KEY = {"upsample": "up"}  # what checkpoints and caches have called a kind since before its name


def dense_is_faster(
    extension: Any, dtype: torch.dtype, spec: Any, image: tuple[int, int, int], *, constant_input: bool
) -> bool:
    """Which form of a convolution to take.

    Args:
        extension: the C++ module.
        dtype: of the weights.
        spec: the convolution, some of its weights dropped.
        image: channels, rows and columns that it reads.
        constant_input: whether the image is given as the first convolution of a chain reads it.
    """
    weights = image[0] * spec.outputs * spec.kernel_rows * spec.kernel_columns
    share = len(spec.weights) / weights
    if not SPARSE_BELOW <= share < DENSE_FROM:
        return share >= DENSE_FROM
    kind = spec.kind.name.lower()
    shape = (
        _NAME_IN_KEY.get(kind, kind),
        spec.kernel_rows,
        spec.kernel_columns,
        spec.stride,
        spec.outputs,
        *image,
    )
    source = "fixed" if constant_input else "free"
    key = f"{dtype} {' '.join(map(str, shape))} {source} {round(20 * share) / 20:.2f}"
    capability = extension.capability()

    def dense_takes_less() -> bool:
        dense, sparse = (_time(extension, dtype, spec, image, form, constant_input) for form in (True, False))
        return dense < sparse

    return bool(
        measured_choice(
            "form",
            capability,
            key,
            dense_takes_less,
            valid=lambda row: isinstance(row, bool),
            file="forms",
        )
    )


class LoneConvolution:
    """One convolution in a chain of its own, on made-up images and weights.

    Args:
        extension: the C++ module.
        dtype: of the weights.
        spec: the convolution.
        image: channels, rows and columns that it reads.
        dense: the form.
        constant_input: whether the image is given as the first convolution of a chain reads it; it has no
            gradient then.
    """

    def __init__(
        self,
        extension: Any,
        dtype: torch.dtype,
        spec: Any,
        image: tuple[int, int, int],
        *,
        dense: bool,
        constant_input: bool,
    ) -> None:
        lone = extension.ConvSpec()
        for name in ("kind", "padding", "border", "box", "stride", "kernel_rows", "kernel_columns"):
            setattr(lone, name, getattr(spec, name))
        lone.outputs, lone.taps = spec.outputs, spec.taps
        lone.weights = list(range(len(spec.weights)))
        lone.bias = [-1] * spec.outputs
        lone.dense = dense
        chain_type = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[dtype]
        self._chain = chain_type(*image, constant_input, len(lone.weights))
        self._chain.add_conv(lone)
        self._chain.finish(extension.OutputAct.LEAKY_RELU, 1.0)
        weights, source, output = (
            torch.ones(size, dtype=dtype, device="cpu").numpy()
            for size in (len(lone.weights), self._chain.source_size(0), math.prod(self._chain.shape))
        )
        self._forward: tuple[Any, ...] = (weights, [source], output, [], None)
        grad_source = None if constant_input else source.copy()
        self._backward = (weights, [source], output, weights.copy(), [grad_source])

    def forward(self) -> None:
        """The convolution."""
        self._chain.forward(*self._forward)

    def backward(self) -> None:
        """Its gradients, after a forward."""
        self._chain.backward(*self._backward)


def _time(
    extension: Any,
    dtype: torch.dtype,
    spec: Any,
    image: tuple[int, int, int],
    dense: bool,
    constant_input: bool,
) -> float:
    """Seconds of a convolution there and back, the least of some rounds."""
    convolution = LoneConvolution(extension, dtype, spec, image, dense=dense, constant_input=constant_input)

    def step() -> None:
        convolution.forward()
        convolution.backward()

    return min(times_in_turn([step], rounds=_ROUNDS)[0])
