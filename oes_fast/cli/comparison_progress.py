"""How far a comparison has come: a bar for the whole and one for each cell that runs, or lines elsewhere."""

from __future__ import annotations

import math

from rich.console import Console

from oes_fast.cli.many_progress import LINE_SECONDS, ManyProgress
from oes_fast.comparison import Cell, Outcome, Step, Watcher


class ComparisonProgress(ManyProgress, Watcher):
    """Shows a comparison on stderr.

    Args:
        quiet: show nothing but failures.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        super().__init__("cells", quiet=quiet, console=console, line_seconds=LINE_SECONDS)

    def planned(self, cells: list[Cell], done: list[Cell]) -> None:
        """Show what there is to do."""
        self.begin(len(cells), len(done))

    def step(self, step: Step) -> None:
        """Show how far a cell has come."""
        psnr = None if math.isnan(step.psnr) else step.psnr
        self.show(step.cell, step.cell.title, step.phase, step.step, step.steps, psnr)

    def ended(self, outcome: Outcome) -> None:
        """Count a cell, and say why it failed."""
        self.end(outcome.cell, outcome.cell.title, outcome.failure)
