"""MaskedConv2d against torch.nn.Conv2d of the same size: forward and backward, one call of each in turn.

The ratio is that of the two in the same rounds, so that a busy machine hits both.

pytest benchmarks/bench_masked_conv2d.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import oes_fast as oes
from benchmarks.timer import fixture_time, ratios

# Input and output channels, kernel, side of the image.
LAYERS = ((128, 128, 3, 64), (128, 128, 3, 128), (64, 64, 5, 64), (16, 16, 3, 16))
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0)
ROUNDS = 15


def call(layer: nn.Module, x: torch.Tensor, part: str) -> Callable[[], object]:
    """Forward without gradients, or forward and backward."""

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    def step() -> object:
        output = layer(x)
        return torch.autograd.grad(output, [x, *layer.parameters()], torch.ones_like(output))

    return forward if part == "forward" else step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "step"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("sizes", LAYERS, ids=lambda sizes: "{}to{}by{}at{}".format(*sizes))
def test_masked_conv2d(
    benchmark: Any, sizes: tuple[int, int, int, int], share: float, part: str, threads: int
) -> None:
    inputs, outputs, kernel, side = sizes
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    mask = torch.rand(conv.weight.shape, generator=generator) < share
    layer = oes.MaskedConv2d.from_dense(conv, mask)
    x = torch.randn(1, inputs, side, side, generator=generator, requires_grad=True)
    times = fixture_time(
        benchmark,
        call(layer, x, part),
        threads=threads,
        rivals={"dense": call(conv, x, part)},
        in_turn=True,
        rounds=ROUNDS,
    )
    benchmark.extra_info["masked ms"] = round(times["ours"]["median"], 3)
    benchmark.extra_info["dense ms"] = round(times["dense"]["median"], 3)
    for key, faster in ratios(times, "dense")["ours"].items():
        benchmark.extra_info[f"times faster than dense, {key}"] = round(faster, 2)
