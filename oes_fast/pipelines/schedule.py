"""Learning rates that change from step to step."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from typing import Any

from torch import Tensor

from oes_fast._checks import check_choice, check_number
from oes_fast.errors import InputError, OESError
from oes_fast.ops._clock import Clock

SCHEDULES = ("cosine", "linear")
_SAMPLES = 100_000  # values of a function that a checkpoint knows it by
_ROWS = 1 << 15  # steps whose rates a clock holds at a time
_LEAST = math.ulp(0.0)  # the operators refuse 0, and this moves nothing either

Factor = Callable[[int], float]


class Schedule:
    """The learning rate of each step.

    Args:
        lr: learning rate, which the factors multiply.
        schedule: factor of step t of T, from t = 0: "cosine", (1 + cos(pi t / T)) / 2; "linear", 1 - t / T;
            a function of t that gives one, finite and >= 0; or None for 1. It is asked for each step any
            number of times, out of order, and has to give the same each time.
        steps: updates of the run, T.

    Attributes:
        lr: as given.

    Raises:
        InputError: no such schedule.
    """

    def __init__(self, lr: float, schedule: str | Factor | None, steps: int) -> None:
        if not (schedule is None or callable(schedule)):
            check_choice("schedule", schedule, SCHEDULES)
        self.lr = lr
        self._schedule, self._steps = schedule, steps
        self._name: str | None = None  # of a function, once its values were looked at

    @classmethod
    def of(cls, lr: float | Schedule) -> Schedule:
        """A learning rate that stays, or the schedule that came."""
        return lr if isinstance(lr, Schedule) else cls(lr, None, 0)

    @property
    def varies(self) -> bool:
        """Whether there is a schedule."""
        return self._schedule is not None

    def factor(self, step: int) -> float:
        """What multiplies the learning rate in update number ``step``; behind the last, what it was there.

        Raises:
            InputError: the caller's function gives no number that fits.
        """
        step = min(step, max(self._steps - 1, 0))
        if self._schedule is None:
            return 1.0
        if self._schedule == "cosine":
            return math.cos(math.pi / 2 * step / max(self._steps, 1)) ** 2
        if self._schedule == "linear":
            return 1.0 - step / max(self._steps, 1)
        assert not isinstance(self._schedule, str)
        try:
            value = self._schedule(step)
        except OESError:
            raise
        except Exception as error:
            raise InputError(
                f"schedule({step}): expected a number from a function of the step, it raises "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"schedule({step}): expected a number, got {type(value).__name__}") from error
        return check_number(f"schedule({step})", number, minimum=0.0)

    def __call__(self, step: int) -> float:
        """Learning rate of update number ``step``, > 0."""
        return max(self.lr * self.factor(step), _LEAST) if self.varies else self.lr

    def clock(self, like: Tensor) -> Clock:
        """For recorded steps on tensors like ``like``, with the learning rates in its memory."""
        rate = self if self.varies else self.lr
        rows = min(_ROWS, self._steps) if self.varies else _ROWS
        return Clock(like.device, lr=rate, rows=max(rows, 1), dtype=like.dtype)

    def settings(self) -> dict[str, Any]:
        """What a result depends on, as JSON values: a function by a hash of its values.

        Of all steps, or of _SAMPLES among more: no more calls than the run makes.

        Raises:
            InputError: as :meth:`factor`.
        """
        if self._schedule is None:
            return {}
        if isinstance(self._schedule, str):
            name = self._schedule
        elif self._name is not None:
            name = self._name
        else:
            count = min(self._steps, _SAMPLES)
            places = [number * self._steps // count for number in range(count)]
            values = struct.pack(f"<{count}d", *map(self.factor, places))
            name = self._name = f"function {hashlib.sha256(values).hexdigest()[:16]}"
        return {"schedule": f"{name} over {self._steps} steps"}
