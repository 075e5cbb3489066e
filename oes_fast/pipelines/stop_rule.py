"""When to stop without the clean image: rules that look at the outputs of a run, in any loop.

A rule is shown the output after each step (:meth:`StopRule.update`), looks at one in ``every``, and takes a
number from it that tends to be least where the output is nearest to the clean image. It keeps the image of
the least number, and says to stop once none has been below it for ``patience`` steps.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from oes_fast._checks import check_integer, check_tensor
from oes_fast.errors import InputError

Rule = TypeVar("Rule", bound="StopRule")


@dataclass(frozen=True, eq=False)
class StopReport:
    """Where and why a run stopped, and by what.

    Attributes:
        rule: "variance", "holdout" or "discrepancy".
        step: updates made before the image that the result is.
        stopped: the rule ended the run. Else it came to its last step, or was interrupted, before the rule
            had waited long enough.
        reason: the same in words.
        curve: (step, criterion) of each look; the image is that of the least.
    """

    rule: str
    step: int
    stopped: bool
    reason: str
    curve: tuple[tuple[int, float], ...]

    def __repr__(self) -> str:
        return f"StopReport({self.rule}: image of step {self.step}; {self.reason})"


class StopRule:
    """What all rules have in common; see :class:`oes_fast.VarianceStop` and
    :class:`oes_fast.HoldoutStop`.

    Args:
        every: steps from one look to the next, >= 1; on a GPU each look waits for the device.
        patience: steps without a lower criterion after which to stop, >= 1.

    Attributes:
        name: of the rule.
        stopped: whether it said to stop.
        step: of the least criterion so far, None before there is one.
        image: output of that step, a copy; None before there is one.
        average: running average of that step, a copy; None where none was shown.
        curve: (step, criterion) of each look.
    """

    name = ""
    compares = False  # outputs with what is fitted, which is squared errors of real numbers then

    def __init__(self, *, every: int, patience: int) -> None:
        self.every = check_integer("every", every, minimum=1)
        self.patience = check_integer("patience", patience, minimum=1)
        self._reset()

    def _reset(self) -> None:
        self.stopped = False
        self.step: int | None = None
        self.image: Tensor | None = None
        self.average: Tensor | None = None
        self.curve: list[tuple[int, float]] = []
        self._seen = -1
        self._least = math.inf

    def update(self, step: int, output: Tensor, average: Tensor | None = None) -> bool:
        """Look at the output after ``step`` updates, if it is a multiple of ``every``; whether to stop.

        Args:
            step: updates made before it, larger than that of the call before.
            output: image [N, C, ...], float32 or float64, the same shape each time. Nothing is computed on
                its graph, and what is kept of it is copied.
            average: running average of the outputs, of its shape, where there is one.

        Raises:
            InputError: an argument does not fit, or the output holds NaN or infinity.
        """
        check_integer("step", step, minimum=0)
        if step <= self._seen:
            raise InputError(f"step: expected one after {self._seen}, got {step}")
        check_tensor("output", output)
        if output.ndim < 3 or output.numel() == 0:
            raise InputError(f"output: expected an image, shape (N, C, ...), got {tuple(output.shape)}")
        like = output if self.image is None else self.image
        if output.shape != like.shape or output.dtype != like.dtype:
            raise InputError(
                f"output: expected {tuple(like.shape)} and {like.dtype} as before, got {tuple(output.shape)} "
                f"and {output.dtype}"
            )
        if average is not None:
            check_tensor("average", average, like=output, shape=output.shape)
        if not self.see(step, output, average):
            raise InputError(f"output: expected finite values, got NaN or infinity at step {step}")
        return self.stopped

    def see(self, step: int, output: Tensor, average: Tensor | None) -> bool:
        """:meth:`update` without its checks: whether what was looked at is finite."""
        if self.stopped:
            return True
        self._seen = step
        if step % self.every:
            return True
        self._move(output.device)
        with torch.no_grad():
            found = self._criterion(output.detach(), None if average is None else average.detach())
        if found is None:
            return True
        value = float(found)
        if not math.isfinite(value):
            return False
        self.curve.append((step, value))
        if value < self._least:
            self._least, self.step = value, step
            self.image = _kept(self.image, output)
            self.average = None if average is None else _kept(self.average, average)
        self.stopped = self._is_over(step, value)
        return True

    def _is_over(self, step: int, value: float) -> bool:
        """Whether to stop at the look of this step."""
        return self.step is not None and step - self.step >= self.patience

    def fresh(self: Rule) -> Rule:
        """A rule with the same settings that has seen nothing."""
        rule = copy.copy(self)
        rule._reset()
        return rule

    def bind(
        self, noisy: Tensor, weight: Tensor | None, forward: Callable[[Tensor], Tensor] | None
    ) -> Tensor | None:
        """Take note of what a run fits; the weights to train with, None for those given.

        Args:
            noisy: what is fitted, real.
            weight: of each squared error, or None for 1.
            forward: from an output to what is compared with ``noisy``, None for the output itself.

        Raises:
            InputError: the rule does not fit it.
        """
        return None

    def report(self, step: int, *, interrupted: bool = False) -> StopReport:
        """What there is to say at the end of a run.

        Args:
            step: that the run ended with, whose image is the result where the rule has found none.
            interrupted: ended by something else than the rule or the last step.
        """
        how = "was interrupted" if interrupted else "ended"
        if self.stopped:
            why = self._why()
        elif self.step is None:
            why = f"the run {how} at step {step}, before there was a first {self.criterion}"
        else:
            why = f"the run {how} at step {step}, {self._why_not()}"
        return StopReport(
            self.name, step if self.step is None else self.step, self.stopped, why, tuple(self.curve)
        )

    def _why(self) -> str:
        """Why it stopped."""
        assert self.step is not None
        return f"the {self.criterion} has not been lower for {self.curve[-1][0] - self.step} steps"

    def _why_not(self) -> str:
        """What it still waited for."""
        assert self.step is not None
        apart = self.curve[-1][0] - self.step
        return f"{apart} steps of {self.patience} after the least {self.criterion} when it was last looked at"

    def describe(self) -> str:
        """The settings in one line: what checkpoints know the rule by."""
        raise NotImplementedError

    @property
    def criterion(self) -> str:
        """What the criterion is called."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Tensor]:
        """All that the next look depends on, as tensors; what was found too."""
        numbers = [int(self.stopped), -1 if self.step is None else self.step, self._seen]
        state = {
            "rule": torch.tensor(list(self.describe().encode()), dtype=torch.uint8, device="cpu"),
            "numbers": torch.tensor(numbers, dtype=torch.int64, device="cpu"),
            "curve": torch.tensor(self.curve, dtype=torch.float64, device="cpu").reshape(-1, 2),
        }
        named = {"image": self.image, "average": self.average, **self._memory()}
        return state | {name: tensor for name, tensor in named.items() if tensor is not None}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | str | None = None) -> None:
        """Go on from what :meth:`state_dict` gave of a rule with the same settings.

        Args:
            state: with tensors on any device.
            device: of the image found; None for where it is in ``state``, until the next look.

        Raises:
            InputError: it is of another rule, and nothing has changed.
        """
        expected = f"state: expected that of {type(self).__name__} ({self.describe()})"
        if missing := sorted(_NEEDED - state.keys()):
            raise InputError(f"{expected}, got one without {', '.join(missing)}")
        if (other := bytes(state["rule"].tolist()).decode()) != self.describe():
            raise InputError(f"{expected}, got that of another rule ({other})")
        self._reset()
        stopped, step, self._seen = state["numbers"].tolist()
        self.curve = [(int(at), value) for at, value in state["curve"].tolist()]
        self._remember(state)
        self.stopped, self.step = bool(stopped), None if step < 0 else step
        self._least = dict(self.curve)[self.step] if self.step is not None else math.inf
        image, average = state.get("image"), state.get("average")
        self.image = None if image is None else image.clone()
        self.average = None if average is None else average.clone()
        if device is not None:
            self._move(torch.device(device))

    def _move(self, device: torch.device) -> None:
        """Bring what was found to where the run is: what checkpoints give is on the CPU."""
        self.image = None if self.image is None else self.image.to(device)
        self.average = None if self.average is None else self.average.to(device)

    def _criterion(self, output: Tensor, average: Tensor | None) -> Tensor | None:
        """The number of this look, a scalar; None where it takes more looks."""
        raise NotImplementedError

    def _memory(self) -> dict[str, Tensor | None]:
        """What the next look depends on beside what all rules keep."""
        return {}

    def _remember(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`_memory` gave, among others."""


_NEEDED = {"rule", "numbers", "curve"}  # of a state


def _kept(before: Tensor | None, tensor: Tensor) -> Tensor:
    """A copy, in the memory of the one before where it fits."""
    tensor = tensor.detach()
    if before is None or before.device != tensor.device:
        return tensor.clone(memory_format=torch.contiguous_format)
    return before.copy_(tensor)
