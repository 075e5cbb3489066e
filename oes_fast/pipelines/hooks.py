"""What a training may do in each step beside gradient and Adam: each hook is a small piece of its own."""

from __future__ import annotations

from torch import Tensor


class StepHook:
    """Does nothing; what a hook needs it overrides.

    A step is :meth:`begin`, the evaluation, :meth:`seen`, the update of the weights and :meth:`finish`. The
    evaluation and the update may be recorded and repeated (:mod:`oes_fast.pipelines.cuda_graphs`); hooks are
    called each time, outside of the recording, so what they change they change in place.
    """

    def begin(self, step: int, *, final: bool) -> None:
        """Before the evaluation after ``step`` updates; a final one leaves everything as it is."""

    def seen(self, output: Tensor) -> None:
        """The image [1, C, H, W] of that evaluation; copy it to keep it."""

    def finish(self, step: int, weights: Tensor) -> None:
        """After update number ``step``, from 0, of the flat ``weights``."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave, among others."""
