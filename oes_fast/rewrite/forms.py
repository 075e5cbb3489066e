"""The sparse or the dense form of a convolution in a chain, whichever is faster on this machine.

The dense form multiplies by all weights, those that the mask drops being zero; every pixel it loads serves
several outputs, so that it overtakes the sparse form long before all weights are kept. Where, depends on the
shape and on the processor: between two shares that leave no doubt both are timed once, and the choice is kept
on disk, so that later runs compute the same bits.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch

from oes_fast.choices import choices_file, processor, read_choices, store_choices

# Shares of the weights below and above which nothing is timed: see benchmarks/bench_dense_conv2d.py.
SPARSE_BELOW, DENSE_FROM = 0.3, 0.85
_ROUNDS = 4


def dense_is_faster(
    extension: Any, dtype: torch.dtype, spec: Any, image: tuple[int, int, int], *, fixed: bool
) -> bool:
    """Which form of a convolution to take.

    Args:
        extension: the C++ module.
        dtype: of the weights.
        spec: the convolution, some of its weights dropped.
        image: channels, rows and columns that it reads.
        fixed: whether the image is given as the first convolution of a chain reads it.
    """
    places = image[0] * spec.outputs * spec.kernel_rows * spec.kernel_columns
    share = len(spec.weights) / places
    if not SPARSE_BELOW <= share < DENSE_FROM:
        return share >= DENSE_FROM
    shape = (spec.kind, spec.kernel_rows, spec.kernel_columns, spec.stride, spec.outputs, *image)
    key = f"{dtype} {' '.join(map(str, shape))} {'fixed' if fixed else 'free'} {round(20 * share) / 20:.2f}"
    known = _known(extension.capability())
    if key not in known:
        known[key] = _time(extension, dtype, spec, image, True, fixed) < _time(
            extension, dtype, spec, image, False, fixed
        )
        store_choices(_file(extension.capability()), {key: known[key]})
    return bool(known[key])


def _file(capability: str) -> Path:
    return choices_file("forms", capability, processor())


@functools.cache
def _known(capability: str) -> dict[str, Any]:
    return read_choices(_file(capability))


def _time(
    extension: Any, dtype: torch.dtype, spec: Any, image: tuple[int, int, int], dense: bool, fixed: bool
) -> float:
    """Seconds of a convolution there and back, the least of some rounds."""
    lone = extension.ConvSpec()
    for name in (
        "kind",
        "pad",
        "border",
        "box",
        "stride",
        "kernel_rows",
        "kernel_columns",
        "outputs",
        "taps",
    ):
        setattr(lone, name, getattr(spec, name))
    lone.weights = list(range(len(spec.weights)))
    lone.bias = [-1] * spec.outputs
    lone.dense = dense
    chain = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[dtype](*image, fixed)
    chain.add_conv(lone)
    chain.finish("leaky_relu", 1.0)
    weights, source = torch.ones(len(lone.weights), dtype=dtype), torch.ones(image, dtype=dtype)
    if fixed and spec.stride == 2:  # four planes of half the size, rounded up
        source = torch.ones(4 * image[0], image[1] // 2 + 1, image[2] // 2 + 1, dtype=dtype)
    output = torch.empty(chain.shape, dtype=dtype)
    grad_weights, grad_source = torch.zeros_like(weights), torch.empty_like(source)
    least = float("inf")
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        chain.forward(weights.data_ptr(), source.data_ptr(), output.data_ptr(), [], 0)
        chain.backward(
            weights.data_ptr(),
            source.data_ptr(),
            output.data_ptr(),
            grad_weights.data_ptr(),
            0 if fixed else grad_source.data_ptr(),
        )
        least = min(least, time.perf_counter() - begin)
    return least
