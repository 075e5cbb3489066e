"""Iterative magnitude pruning with rewinding: lottery tickets (Frankle et al. 2019)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oes_fast.mask import Mask
from oes_fast.pipelines.history import History
from oes_fast.pipelines.loop import Callback
from oes_fast.precision import DEFAULT


@dataclass(frozen=True, eq=False)
class ImpRound:
    """One round: training, then pruning.

    Attributes:
        density: that the round pruned to.
        mask: of that density: what the next round, or the ticket, trains.
        history: of the round's training, which has the mask of the round before, at first the full one.
    """

    density: float
    mask: Mask
    history: History


@dataclass(frozen=True, eq=False)
class ImpResult:
    """What :func:`imp_rounds` returns.

    Attributes:
        mask: of the last round.
        net: network with weights and running statistics of step ``rewind_step``: what the ticket starts from.
        rounds: all rounds that were finished, in order.
        interrupted: stopped before the last round's end, by Ctrl-C or a callback.
        seconds: time this call took.
        backend: that ran the last round.
    """

    mask: Mask
    net: nn.Module
    rounds: tuple[ImpRound, ...]
    interrupted: bool
    seconds: float
    backend: str


def imp_rounds(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    densities: Sequence[float] | None = None,
    density: float | None = None,
    rounds: int | None = None,
    share: float = 0.2,
    steps: int = 40_000,
    lr: float = 1e-2,
    rewind_step: int = 0,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    published: bool = False,
    clean: Tensor | None = None,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
    record_every: int = 10,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
) -> ImpResult:
    """TODO"""
    raise NotImplementedError


def imp(net: nn.Module, z: Tensor, noisy: Tensor, *, density: float, **options: Any) -> Mask:
    """``imp_rounds(...).mask``."""
    return imp_rounds(net, z, noisy, density=density, **options).mask
