"""The published generator's last layer with its loss, 512 x 512: time and bandwidth.

pytest benchmarks/bench_output_head.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import report_bandwidth
from oes_fast.functional import output_head

CHANNELS, OUTPUTS, SIDE = 16, 3, 512


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_output_head(benchmark: Any, backend: str, threads: int) -> None:
    if not oes.backends()[backend]:
        pytest.skip(f"{backend} is {oes.backends()[backend]}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator).requires_grad_()
    weight = torch.randn(OUTPUTS, CHANNELS, 1, 1, generator=generator).requires_grad_()
    bias = torch.zeros(OUTPUTS, requires_grad=True)
    target = torch.rand(1, OUTPUTS, SIDE, SIDE, generator=generator)

    def run() -> object:
        _, loss = output_head(x, weight, bias, target, backend=backend)
        return torch.autograd.grad(loss, (x, weight, bias))

    # Reads x forward and backward and writes its gradient; output and target are small beside it.
    moved = 4 * SIDE**2 * (3 * CHANNELS + 5 * OUTPUTS)
    report_bandwidth(benchmark, run, moved_bytes=moved, threads=threads, device="cpu")
