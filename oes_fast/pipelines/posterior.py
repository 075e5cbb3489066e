"""Mean and variance of the images that a chain of samples passes, by running sums."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast.pipelines.hooks import StepHook


class Posterior(StepHook):
    """Mean and variance of every ``every``-th image after ``burn_in`` updates (Welford 1962), in float64.

    The samples are the images after s updates, s > burn_in a multiple of ``every``, as in the published code.
    A final evaluation is none: a run that is interrupted there makes it again when it goes on.

    Args:
        burn_in: updates before samples count, >= 0.
        every: steps from one sample to the next, >= 1.
        device: of the images.

    Attributes:
        samples: number of images so far.
    """

    def __init__(self, *, burn_in: int, every: int, device: torch.device) -> None:
        self.samples = 0
        self._burn_in, self._every, self._device = burn_in, every, device
        self._sums: tuple[Tensor, Tensor] | None = None  # mean, and sum of squared distances from it
        self._due = False

    def begin(self, step: int, *, final: bool) -> None:
        """Know whether the next image is a sample."""
        self._due = not final and step > self._burn_in and step % self._every == 0

    def seen(self, output: Tensor) -> None:
        """Count it in if it is a sample."""
        if not self._due:
            return
        image = output.to(torch.float64)
        if self._sums is None:
            self._sums = torch.zeros_like(image), torch.zeros_like(image)
        mean, squares = self._sums
        self.samples += 1
        distance = image - mean
        mean += distance / self.samples
        squares += distance * (image - mean)

    def mean(self, dtype: torch.dtype) -> Tensor | None:
        """Mean of the samples [1, C, H, W], None without one."""
        return None if self._sums is None else self._sums[0].to(dtype)

    def std(self, dtype: torch.dtype) -> Tensor | None:
        """Standard deviation of the samples (of n - 1) [1, C, H, W], None with fewer than two."""
        if self._sums is None or self.samples < 2:
            return None
        return (self._sums[1] / (self.samples - 1)).sqrt().to(dtype)

    def state(self) -> dict[str, Tensor]:
        """The sums and how many samples they are of; nothing before the first."""
        if self._sums is None:
            return {}
        return {
            "posterior_samples": torch.tensor(self.samples, device="cpu"),
            "posterior_mean": self._sums[0],
            "posterior_squares": self._sums[1],
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        if "posterior_samples" in state:
            self.samples = int(state["posterior_samples"])
            mean, squares = (state[f"posterior_{name}"].to(self._device) for name in ("mean", "squares"))
            self._sums = mean, squares
