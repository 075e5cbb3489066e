"""The step in device memory, for launches that are recorded once and repeated with other steps.

An integer step is an argument of a launch and would be recorded with it. Where an operation is given a
:class:`Clock` in its place, its Triton kernel reads the step and Adam's bias corrections from memory.
The numbers are those that integer steps give, so recorded and plain steps agree bit for bit.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

from oes_fast.errors import InputError


class Clock:
    """A step that counts itself on.

    Args:
        device: where it is.
        lr: Adam's learning rate.
        betas: decay of Adam's moments.
        rows: steps whose corrections are held at a time.

    Attributes:
        ticks: the step, int64 [1].
        corrections: lr / (1 - beta1^(t + 1)) and (1 - beta2^(t + 1))^(-1/2) of step t in row t mod ``rows``,
            float32 [rows, 2].
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        rows: int = 1 << 15,
    ) -> None:
        self.ticks = torch.zeros(1, dtype=torch.int64, device=device)
        self.corrections = torch.zeros(rows, 2, dtype=torch.float32, device=device)
        self._lr, self._betas = lr, betas
        self._page = -1
        self._now = -1

    def check(self, backend: str) -> None:
        """Refuse a backend whose launches take no clock.

        Raises:
            InputError: it is not "triton".
        """
        if backend != "triton":
            raise InputError(f'step: expected an integer, since backend "{backend}" takes no Clock')

    def show(self, step: int) -> None:
        """Make it ``step``, outside of a recording; costs nothing where it has counted there by itself."""
        rows = len(self.corrections)
        if step // rows != self._page:
            self._page = step // rows
            # In Python's numbers, as launches with integer steps have it: the same bits.
            beta1, beta2 = self._betas
            counts = range(self._page * rows + 1, (self._page + 1) * rows + 1)
            pairs = [(self._lr / (1 - beta1**n), 1 / math.sqrt(1 - beta2**n)) for n in counts]
            self.corrections.copy_(torch.tensor(pairs, dtype=torch.float64).float())
        if step != self._now:
            self.ticks.fill_(step)
        self._now = step

    def tick(self) -> None:
        """Count on by one, in a recording."""
        self.ticks.add_(1)

    def ticked(self) -> None:
        """Know that a recording counted on."""
        self._now += 1


def clocked(module: str, name: str) -> Callable[..., Any]:
    """The function of oes_fast.kernels.MODULE that takes a clock."""
    return getattr(importlib.import_module(f"oes_fast.kernels.{module}"), name)
