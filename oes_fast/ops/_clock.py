"""The step in device memory, for launches that are recorded once and repeated with other steps.

An integer step is an argument of a launch and would be recorded with it. Where an operation is given a
:class:`Clock` in its place, its kernel on the GPU reads the step and Adam's bias corrections from memory.
The numbers are those that integer steps give, so recorded and plain steps agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.ops._library import LAUNCHED_FROM


class Clock:
    """A step that counts itself on.

    Args:
        device: where it is.
        lr: Adam's learning rate, or a function of the step that gives it; it is asked once for each step.
        betas: decay of Adam's moments.
        rows: steps whose corrections are held at a time.
        dtype: of the corrections, that of the tensors they are for.

    Attributes:
        ticks: the step, int64 [1].
        corrections: lr / (1 - beta1^(t + 1)) and (1 - beta2^(t + 1))^(-1/2) of step t in row t mod ``rows``,
            ``dtype`` [rows, 2].
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        lr: float | Callable[[int], float] = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        rows: int = 1 << 15,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.ticks = torch.zeros(1, dtype=torch.int64, device=device)
        self.corrections = torch.zeros(rows, 2, dtype=dtype, device=device)
        self._lr, self._betas = lr, betas
        self._page = -1
        self._now = -1

    def check(self, backend: str, like: Tensor) -> None:
        """Refuse a backend whose launches take no clock, and tensors that this clock is not for.

        Args:
            backend: of the launch.
            like: a tensor of it.

        Raises:
            InputError: the backend is neither "triton" nor "cuda", or the clock is on another device than the
                tensor or for another dtype.
        """
        if backend not in LAUNCHED_FROM:
            raise InputError(f'step: expected an integer, since backend "{backend}" takes no Clock')
        ours, theirs = self.corrections, like
        if (ours.dtype, ours.device) != (theirs.dtype, theirs.device):
            raise InputError(
                f"step: expected a Clock of {theirs.dtype} on {theirs.device}, got one of {ours.dtype} on "
                f"{ours.device}"
            )

    def show(self, step: int) -> None:
        """Make it ``step``, outside of a recording; costs nothing where it has counted there by itself."""
        rows = len(self.corrections)
        if step // rows != self._page:
            self._page = step // rows
            # In Python's numbers, as launches with integer steps have it: the same bits.
            beta1, beta2 = self._betas
            counts = range(self._page * rows + 1, (self._page + 1) * rows + 1)
            lr = self._lr
            rates = [lr(n - 1) for n in counts] if callable(lr) else [lr] * rows
            pairs = [
                (rate / (1 - beta1**n), 1 / math.sqrt(1 - beta2**n))
                for n, rate in zip(counts, rates, strict=True)
            ]
            self.corrections.copy_(torch.tensor(pairs, dtype=torch.float64).to(self.corrections.dtype))
        if step != self._now:
            self.ticks.fill_(step)
        self._now = step

    def tick(self) -> None:
        """Count on by one, in a recording."""
        self.ticks.add_(1)

    def ticked(self) -> None:
        """Know that a recording counted on."""
        self._now += 1
