"""SynFlow: pruning without data by synaptic flow (Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oes_fast.mask import Mask
from oes_fast.precision import DEFAULT, in_precision


@in_precision
def synflow_scores(
    net: nn.Module,
    z: Tensor,
    *,
    kept: Tensor | None = None,
    backend: str = "auto",
    verify: bool = True,
) -> Tensor:
    """TODO"""
    raise NotImplementedError


@in_precision
def synflow(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor | None = None,
    *,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    rounds: int = 100,
    published: bool = False,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
) -> Mask:
    """TODO"""
    raise NotImplementedError
