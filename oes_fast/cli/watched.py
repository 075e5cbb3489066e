"""Commands that another program watches step by step, as the page of ``oes-fast ui`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor, nn

from oes_fast.pipelines.loop import StepInfo


class Watch(Protocol):
    """Who watches a command."""

    def begin(
        self, net: nn.Module, first: Tensor, shown: Callable[[Tensor], Tensor], density: float | None
    ) -> None:
        """Before the first step of a restoration.

        Args:
            net: the network.
            first: what the measurement shows, [1, 1 or 3, H, W].
            shown: makes such a picture of an image of the network.
            density: share of the weights that a search is to keep, None where there is none.
        """

    def see(self, info: StepInfo) -> bool:
        """After each step; whether to end the command with what there is."""


watching: ContextVar[Watch | None] = ContextVar("watching", default=None)


def run_watched(arguments: Sequence[str], watch: Watch) -> int:
    """Run the command line with these arguments while ``watch`` looks on; its exit code."""
    from oes_fast.cli import main

    before = watching.set(watch)
    try:
        return main(arguments)
    finally:
        watching.reset(before)
