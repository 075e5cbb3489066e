"""Drawing the masked weights of the published generator: time, bandwidth, and its share of a copy's.

pytest benchmarks/bench_gumbel_mask.py
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import oes_fast as oes
from benchmarks.report import NUMEL, report_bandwidth
from oes_fast.ops import gumbel_mask

STREAMS = 3  # reads w0 and the logits, writes the masked weights


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "cuda"])
def test_gumbel_mask(benchmark: Any, backend: str, threads: int) -> None:
    if not oes.backends()[backend]:
        pytest.skip(f"{backend} is {oes.backends()[backend]}")
    device = "cuda" if backend in ("triton", "cuda") else "cpu"
    generator = torch.Generator().manual_seed(0)
    w0, logits = torch.randn(2, NUMEL, generator=generator).to(device)
    masked = torch.empty_like(w0)
    steps = itertools.count()  # the reference keeps the noise of its last step
    report_bandwidth(
        benchmark,
        lambda: gumbel_mask(w0, logits, seed=0, step=next(steps), out=masked, backend=backend),
        moved_bytes=STREAMS * 4 * NUMEL,
        threads=threads,
        device=device,
    )
