"""Commands that another program watches step by step, as the page of ``oes-fast ui`` does."""

from __future__ import annotations

import runpy
import sys
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
    """Run ``python -m oes_fast`` with these arguments in this process while ``watch`` looks on.

    Returns:
        Its exit code.
    """
    before, given = watching.set(watch), sys.argv
    sys.argv = [given[0], *arguments]
    try:
        runpy.run_module("oes_fast", run_name="__main__")  # ends as a program does
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.argv = given
        watching.reset(before)
    return 0
