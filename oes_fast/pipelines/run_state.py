"""What the loop asks of the steps that it makes."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from oes_fast.pipelines.run_stop import RunStop


class RunPart(Protocol):
    """What one run has for itself of the steps that are made for it."""

    def objective(self) -> Tensor:
        """Scalar objective of the output last evaluated."""

    def first_gradient(self) -> Tensor:
        """After the first update, what is finite if its gradient was: Adam's first moment, a share of it."""

    def terms(self) -> tuple[Tensor, tuple[float, float] | None]:
        """(mean squared error of the objective, weight of its KL term and the term's value at the start)."""

    def keep(self) -> None:
        """Remember what a result can be made of, should the run be no longer finite at its end."""

    def fall_back(self) -> bool:
        """Go back to what was last kept; whether there is a result then."""

    def average(self) -> Tensor | None:
        """Running average of the outputs, or None."""

    def stop(self) -> RunStop | None:
        """Its rule when to stop, or None."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""


class Steps(Protocol):
    """What one step of a pipeline consists of, for one run or for several at once."""

    phase: str

    def begin(self, step: int, *, final: bool) -> None:
        """What comes before the evaluation after ``step`` updates and is never recorded with it."""

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """Outputs [N, C, H, W] after ``step`` updates; a final one leaves everything as it is.

        Of several runs, some may end where the others go on: these are evaluated once more.
        """

    def update(self, step: int) -> None:
        """Update number ``step``, from 0."""

    def finish(self, step: int) -> None:
        """What comes after update number ``step`` and is never recorded with it."""


class RunState(Steps, RunPart, Protocol):
    """The steps of one run."""
