"""Noise on the generator's input in each step (Ulyanov et al. 2018, section 4: reg_noise_std)."""

from __future__ import annotations

from typing import Protocol

from oes_fast.pipelines.hooks import StepHook
from oes_fast.rewrite.noisy_input import StepNoise


class ReadsInput(Protocol):
    """What reads an input, such as a generator function."""

    def draw_input(self, noise: StepNoise | None) -> None:
        """Read it with this noise from now on, or as it is."""


class InputNoise(StepHook):
    """z + std * N(0, 1), drawn anew in each step; a function of (seed, step) alone.

    A final evaluation, whose image is the run's result, has no noise.

    Args:
        function: reads z, made for noise.
        std: standard deviation, > 0.
        seed: of the noise, in [0, 2^64).
        stream: of the noise.
    """

    def __init__(self, function: ReadsInput, std: float, *, seed: int, stream: int) -> None:
        self._function, self._std, self._seed, self._stream = function, std, seed, stream

    def begin(self, step: int, *, final: bool) -> None:
        """Draw the noise of the step."""
        self._function.draw_input(None if final else StepNoise(self._std, self._seed, step, self._stream))
