"""Noise on the generator's input in each step (Ulyanov et al. 2018, section 4: reg_noise_std)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from oes_fast.ops.philox import add_normal_noise
from oes_fast.pipelines.hooks import StepHook


class InputNoise(StepHook):
    """z + std * N(0, 1), drawn anew in each step; a function of (seed, step) alone.

    A final evaluation, whose image is the run's result, has no noise.

    Args:
        z: input without noise; left alone.
        std: standard deviation, > 0.
        seed: of the noise, in [0, 2^64).
        stream: of the noise.

    Attributes:
        noisy: what the generator is to read, shape of ``z``: written in place before each evaluation.
    """

    def __init__(self, z: Tensor, std: float, *, seed: int, stream: int) -> None:
        self.noisy = z.clone().contiguous()
        self._z, self._std, self._seed, self._stream = z, std, seed, stream

    def begin(self, step: int, *, final: bool) -> None:
        """Draw the noise of the step."""
        if final:
            self.noisy.copy_(self._z)
            return
        add_normal_noise(self.noisy, self._z, self._std, seed=self._seed, step=step, stream=self._stream)

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON values."""
        return {"input_noise": self._std, "seed": self._seed}
