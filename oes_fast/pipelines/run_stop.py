"""A stopping rule within a run: what it has seen and found, and the weights that its image came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.pipelines.measurement import Measurement
from oes_fast.pipelines.objective import Objective, SquaredError
from oes_fast.pipelines.stop_rule import StopReport, StopRule

PREFIX = "stop."  # of what checkpoints keep
_KEPT = "kept."


class RunStop:
    """One run's rule.

    Args:
        rule: what has seen nothing yet.

    Attributes:
        rule: as given.
    """

    def __init__(self, rule: StopRule) -> None:
        self.rule = rule
        self._kept: dict[str, Tensor] = {}

    @property
    def stopped(self) -> bool:
        """Whether the rule said to stop."""
        return self.rule.stopped

    def see(
        self, step: int, output: Tensor, average: Tensor | None, tensors: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Take in an evaluation.

        What is not finite is left to the run, which says what may be to blame.

        Args:
            step: updates made before it.
            output: images [N, C, ...].
            average: running average of the outputs, or None.
            tensors: gives the weights and statistics that the output came from.
        """
        before = self.rule.step
        self.rule.see(step, output, average)
        if self.rule.step != before:
            self._kept = {name: tensor.detach().clone() for name, tensor in tensors().items()}

    def found(self) -> dict[str, Tensor] | None:
        """Weights and statistics of the rule's image, by the names they have in a run's state; or None."""
        return self._kept or None

    def report(self, step: int, *, interrupted: bool) -> StopReport:
        """See :meth:`StopRule.report`."""
        return self.rule.report(step, interrupted=interrupted)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        kept = {_KEPT + name: tensor for name, tensor in self._kept.items()}
        return {PREFIX + name: tensor for name, tensor in (self.rule.state_dict() | kept).items()}

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over what :meth:`state` gave, among others, on the device of the run."""
        own = {name.removeprefix(PREFIX): each for name, each in state.items() if name.startswith(PREFIX)}
        kept = {name: each for name, each in own.items() if name.startswith(_KEPT)}
        self._kept = {name.removeprefix(_KEPT): tensor.to(device, copy=True) for name, tensor in kept.items()}
        self.rule.load_state_dict(
            {name: tensor for name, tensor in own.items() if name not in kept}, device=device
        )


def check_rule(stop: object) -> StopRule | None:
    """A rule of its own for a run, that has seen nothing; None for none.

    Raises:
        InputError: ``stop`` is no rule.
    """
    if stop is None:
        return None
    if not isinstance(stop, StopRule):
        raise InputError(
            "stop: expected an oes_fast.VarianceStop, HoldoutStop or DiscrepancyStop, or None, got "
            f"{type(stop).__name__}"
        )
    return stop.fresh()


def bind_rule(rule: StopRule | None, objective: Objective) -> Objective:
    """What a run with a rule makes small: without the pixels that the rule leaves out.

    Raises:
        InputError: the rule needs what the objective has not: squared errors of real numbers.
    """
    if rule is None or not rule.compares:
        return objective
    target = objective.target
    wanted = f"stop: {type(rule).__name__} expects squared errors of real numbers, got"
    if target.is_complex():
        raise InputError(f"{wanted} complex measurements; VarianceStop takes them")
    if isinstance(objective, Measurement) and objective.has_own_loss:
        raise InputError(f"{wanted} a loss of its own; VarianceStop takes it")
    assert isinstance(objective, Measurement | SquaredError)
    try:
        forward = objective.measured if isinstance(objective, Measurement) else None
        weight = rule.bind(target, objective.weight, forward)
    except InputError as error:
        raise InputError(f"stop: {error}") from error
    if weight is None:
        return objective
    return objective.weighted(weight) if isinstance(objective, Measurement) else SquaredError(target, weight)
