"""GraSP: pruning that preserves gradient flow (Wang, Zhang and Grosse, ICLR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oes_fast.mask import Mask
from oes_fast.precision import DEFAULT, in_precision


@in_precision
def grasp_scores(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
) -> Tensor:
    """TODO"""
    raise NotImplementedError


@in_precision
def grasp(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    published: bool = False,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
) -> Mask:
    """TODO"""
    raise NotImplementedError
