"""Search and training of a few steps, under one name for tests that hold for both."""

from __future__ import annotations

import pytest

import oes_fast as oes
from oes_fast.flat import flatten

BOTH = pytest.mark.parametrize("run", ["search", "train"])


def start(run, problem, **changes):
    """One of the pipelines on a problem, few steps."""
    net, mask, z, noisy, clean = (changes.pop(k, v) for k, v in problem._asdict().items())
    options = {"steps": 4, "clean": clean, "backend": "reference", "record_every": 1} | changes
    if run == "search":
        return oes.search_mask(net, z, noisy, **({"density": 0.3} | options))
    return oes.train_sparse(net, mask, z, noisy, **options)


def outcome(run, result):
    """What two runs of the same settings must share."""
    return result.logits if run == "search" else flatten(result.net)
