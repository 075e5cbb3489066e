"""Convolutions of the published generator under its 5 % mask (pepper, 512 x 512), sparse against dense.

And one of its size, 32 to 32 channels, in the second level of images of 128 to 2048 pixels, under masks of
0.5 to 100 %.

Multiply-accumulates a second of the kept weights, with the time of the dense convolution over the same live
channels and the machine's matrix product in the same run.

pytest benchmarks/bench_sparse_conv2d.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import oes_fast as oes
from benchmarks.report import report_rate
from oes_fast.functional import SparsePattern, phase_split, sparse_conv2d

# Input and output channels, side of the padded input, stride, kept weights of the 5x5 encoder convolutions.
LAYERS = (
    (32, 6, 515, 2, 868),
    (6, 6, 260, 1, 131),
    (6, 13, 259, 2, 330),
    (13, 14, 132, 1, 558),
    (14, 24, 131, 2, 825),
    (24, 22, 68, 1, 1193),
    (22, 44, 67, 2, 2150),
    (44, 53, 36, 1, 3964),
    (53, 73, 35, 2, 6800),
    (73, 90, 20, 1, 11000),
)
SIZES = (128, 256, 512, 1024, 2048)
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "{}to{}at{}by{}".format(*layer))
def test_sparse_conv2d(
    benchmark: Any, layer: tuple[int, int, int, int, int], part: str, threads: int
) -> None:
    measure(benchmark, layer, part, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("size", SIZES)
def test_sparse_conv2d_by_density(benchmark: Any, size: int, density: float, part: str, threads: int) -> None:
    measure(benchmark, (32, 32, size // 2, 1, round(density * 32 * 32 * 25)), part, threads)


def measure(benchmark: Any, layer: tuple[int, int, int, int, int], part: str, threads: int) -> None:
    """A row of one convolution: see :data:`LAYERS`."""
    if not oes.backends()["cpu"]:
        pytest.skip(f"cpu is {oes.backends()['cpu']}")
    inputs, outputs, side, stride, kept = layer
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(outputs * inputs * 25, dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:kept]] = True
    pattern = SparsePattern.of(mask.view(outputs, inputs, 5, 5))
    x = torch.randn(1, inputs, side, side, generator=generator)
    values = torch.randn(kept, generator=generator)
    weight = values.new_zeros(pattern.shape).masked_scatter(pattern.mask, values)
    grad = torch.randn(F.conv2d(x, weight, stride=stride).shape, generator=generator)
    split = phase_split(x)
    source = split if stride == 2 else x
    planes = split.planes if stride == 2 else x.unsqueeze(2)
    wanted = [part == "input_gradient", part == "weight_gradient"]

    def sparse() -> object:
        if part == "forward":
            return sparse_conv2d(source, values, pattern, stride=stride, backend="cpu")
        return torch.ops.oes_fast.sparse_conv2d_backward_cpu(
            grad, planes, values, pattern.taps, pattern.by_input, 5, 5, *wanted
        )

    def dense() -> object:
        if part == "forward":
            return F.conv2d(x, weight, stride=stride)
        return torch.ops.aten.convolution_backward(
            grad, x, weight, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    macs = kept * grad.shape[2] * grad.shape[3]
    report_rate(benchmark, sparse, macs=macs, threads=threads, dense=dense)
