"""The update of the logits of the published generator: time, bandwidth, and its share of a copy's.

pytest benchmarks/bench_mask_update.py
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import NUMEL, report_bandwidth
from oes_fast.ops import mask_update

STREAMS = 8  # reads grad, w0, the logits and both moments, writes the last three


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kl_value", [False, True], ids=["", "kl_value"])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "cuda"])
def test_mask_update(benchmark: Any, backend: str, kl_value: bool, threads: int) -> None:
    if not oes.backends()[backend]:
        pytest.skip(f"{backend} is {oes.backends()[backend]}")
    device = "cuda" if backend in ("triton", "cuda") else "cpu"
    generator = torch.Generator().manual_seed(0)
    logits, w0, grad = torch.randn(3, NUMEL, generator=generator).to(device)
    grad *= 1e-3
    exp_avg, exp_avg_sq = torch.zeros(2, NUMEL, device=device)
    steps = itertools.count()  # the reference keeps the noise of its last step
    report_bandwidth(
        benchmark,
        lambda: mask_update(
            logits,
            grad,
            w0,
            exp_avg,
            exp_avg_sq,
            seed=0,
            step=next(steps),
            kl_value=kl_value,
            backend=backend,
        ),
        moved_bytes=STREAMS * 4 * NUMEL,
        threads=threads,
        device=device,
    )
