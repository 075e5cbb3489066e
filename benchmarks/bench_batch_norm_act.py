"""Batch norm with LeakyReLU and border at the published generator's full resolution: time and bandwidth.

pytest benchmarks/bench_batch_norm_act.py
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import report_bandwidth
from oes_fast.functional import batch_norm_act

SHAPE = (1, 16, 512, 512)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_batch_norm_act(benchmark: Any, backend: str, part: str, threads: int) -> None:
    if not oes.backends()[backend]:
        pytest.skip(f"{backend} is {oes.backends()[backend]}")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight, bias = torch.ones(SHAPE[1], requires_grad=True), torch.zeros(SHAPE[1], requires_grad=True)
    y = batch_norm_act(x, weight, bias, pad=2, backend=backend)
    grad = torch.ones_like(y)

    def run() -> object:
        if part == "forward":
            with torch.no_grad():
                return batch_norm_act(x, weight, bias, pad=2, backend=backend)
        return torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True)

    # Forward reads x twice, for the statistics and for the result; backward x and the gradient twice.
    streams = 3 if part == "forward" else 5
    report_bandwidth(benchmark, run, moved_bytes=streams * 4 * x.numel(), threads=threads, device="cpu")
