"""Adam over the kept weights, and over all of the published generator: time and bandwidth.

pytest benchmarks/bench_masked_adam.py
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import NUMEL, report_bandwidth
from oes_fast.functional import masked_adam

STREAMS = 7  # reads the gradient, the weights and both moments, writes the last three


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("numel", [NUMEL // 20, NUMEL])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "cuda"])
def test_masked_adam(benchmark: Any, backend: str, numel: int, threads: int) -> None:
    if not oes.backends()[backend]:
        pytest.skip(f"{backend} is {oes.backends()[backend]}")
    device = "cuda" if backend in ("triton", "cuda") else "cpu"
    weights, grad = torch.randn(2, numel, generator=torch.Generator().manual_seed(0)).to(device)
    exp_avg, exp_avg_sq = torch.zeros(2, numel, device=device)
    steps = itertools.count()
    report_bandwidth(
        benchmark,
        lambda: masked_adam(weights, grad, exp_avg, exp_avg_sq, step=next(steps), backend=backend),
        moved_bytes=STREAMS * 4 * numel,
        threads=threads,
        device=device,
    )
