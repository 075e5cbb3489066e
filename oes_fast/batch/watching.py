"""What runs the jobs of a set, and what is told how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from oes_fast.batch.job import Job, MaskSearch, Options, Outcome, Step


class Engine(Protocol):
    """What runs jobs: :func:`oes_fast.batch.local.outcomes` with what is its own settled."""

    def __call__(
        self,
        jobs: Iterator[Job | MaskSearch],
        options: Options,
        *,
        stopping: Callable[[], bool],
        tell: Callable[[Step], None],
    ) -> Iterator[Outcome]:
        """The outcome of each job, as it ends; a job that was stopped has none."""


class Watcher:
    """Is told how a set goes on; the methods of this one do nothing."""

    def listed(self, count: int, done: int) -> None:
        """Before the first image: how many there are, and how many of them are done with."""

    def step(self, step: Step) -> None:
        """Now and then, of every image or search that runs."""

    def ended(self, outcome: Outcome) -> None:
        """After every image."""

    def searched(self, outcome: Outcome) -> None:
        """After every search for a mask that images share."""
