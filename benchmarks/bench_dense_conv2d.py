"""Convolutions of the published generator at 512 x 512 that keep a share of their weights, in both forms.

Multiply-accumulates a second of the kept weights, those of the up-sampling ones at the low resolution; a
dense form that needs fewer of them (Winograd's) can exceed the machine's matrix product, measured in the same
run.

pytest benchmarks/bench_dense_conv2d.py
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import report_rate
from oes_fast.rewrite.conv_algorithm import LoneConvolution

# Kind, input and output channels, side of the input, kernel, stride.
LAYERS = (
    ("direct", 16, 16, 256, 5, 1),
    ("direct", 32, 64, 128, 5, 2),
    ("direct", 64, 64, 64, 5, 1),
    ("direct", 128, 128, 32, 5, 1),
    ("upsample", 128, 128, 32, 3, 1),
    ("upsample", 64, 32, 128, 3, 1),
    ("upsample", 32, 16, 256, 3, 1),
)
SHARES = (0.2, 0.4, 0.6, 1.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "{}{}to{}at{}".format(*layer))
def test_dense_conv2d(
    benchmark: Any,
    layer: tuple[str, int, int, int, int, int],
    share: float,
    form: str,
    part: str,
    threads: int,
) -> None:
    if not oes.backends()["cpu"]:
        pytest.skip(f"cpu is {oes.backends()['cpu']}")
    extension = importlib.import_module("oes_fast._C")
    kind, inputs, outputs, side, kernel, stride = layer
    spec = extension.ConvSpec()
    spec.kind = getattr(extension.ConvKind, kind.upper())
    spec.outputs, spec.kernel_rows, spec.kernel_columns = outputs, kernel, kernel
    spec.stride, spec.box = stride, stride == 2
    padding = extension.Padding
    spec.padding = padding.REPLICATE if kind == "upsample" else padding.REFLECT
    spec.border = [0] * 4 if kind == "upsample" else [kernel // 2] * 4
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(outputs, inputs, kernel, kernel, generator=generator) < share
    spec.taps = torch.nonzero(keep).flatten().tolist()
    spec.weights = list(range(int(keep.sum())))
    convolution = LoneConvolution(
        extension, torch.float32, spec, (inputs, side, side), dense=form == "dense", constant_input=False
    )
    convolution.forward()
    run = convolution.forward if part == "forward" else convolution.backward
    macs = len(spec.weights) * (side // stride) ** 2 * (1 if part == "forward" else 2)
    report_rate(benchmark, run, macs=macs, threads=threads)
