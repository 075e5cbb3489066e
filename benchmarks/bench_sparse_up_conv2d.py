"""Up-sampled convolutions of the published generator under a 5 % mask (pepper, 512 x 512), sparse and dense.

Multiply-accumulates a second of the kept weights at the low resolution, with the time of the dense
convolution of the up-sampled live channels and the machine's matrix product in the same run.

pytest benchmarks/bench_sparse_up_conv2d.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import oes_fast as oes
from benchmarks.report import report_rate
from oes_fast.functional import SparsePattern, sparse_up_conv2d

# Input and output channels, side of the input, kept weights of the decoder's convolutions.
LAYERS = (
    (84, 91, 8, 25380),
    (91, 71, 16, 22330),
    (71, 72, 32, 17070),
    (72, 28, 64, 7494),
    (28, 19, 128, 2203),
    (19, 16, 256, 1190),
)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "{}to{}at{}keeps{}".format(*layer))
def test_sparse_up_conv2d(benchmark: Any, layer: tuple[int, int, int, int], part: str, threads: int) -> None:
    if not oes.backends()["cpu"]:
        pytest.skip(f"cpu is {oes.backends()['cpu']}")
    inputs, outputs, side, kept = layer
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(outputs * inputs * 9, dtype=torch.bool)
    mask[torch.randperm(len(mask), generator=generator)[:kept]] = True
    pattern = SparsePattern.of(mask.view(outputs, inputs, 3, 3))
    x = torch.randn(1, inputs, side, side, generator=generator).requires_grad_()
    values = torch.randn(kept, generator=generator).requires_grad_()
    weight = torch.zeros(pattern.shape).masked_scatter(pattern.mask, values.detach()).requires_grad_()
    grad = torch.randn(1, outputs, 2 * side, 2 * side, generator=generator)

    def sparse(x: torch.Tensor) -> torch.Tensor:
        return sparse_up_conv2d(x, values, pattern, backend="cpu")

    def dense(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(F.interpolate(x, scale_factor=2), (1, 1, 1, 1), mode="reflect"), weight)

    def of(operation: Any, wanted: torch.Tensor) -> Any:
        if part == "forward":
            return lambda: operation(x.detach())
        y = operation(x)
        return lambda: torch.autograd.grad(y, (x, wanted), grad, retain_graph=True)

    macs = kept * side**2 * (1 if part == "forward" else 2)
    report_rate(benchmark, of(sparse, values), macs=macs, threads=threads, dense=of(dense, weight))
