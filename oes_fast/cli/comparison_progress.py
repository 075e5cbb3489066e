"""How far a comparison has come: a bar for the whole and one for each cell that runs, or lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from oes_fast.cli.console import warn
from oes_fast.comparison import Cell, Outcome, Step, Watcher
from oes_fast.pipelines.progress import bars_on, duration, stderr_console

LINE_SECONDS = 30.0


class ComparisonProgress(Watcher):
    """Shows a comparison on stderr.

    Args:
        quiet: show nothing but failures.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or stderr_console()
        self._bars: Progress | None = None
        if not quiet and self._console.is_terminal and not self._console.is_jupyter:
            self._bars = bars_on(self._console)
        self._all: TaskID | None = None
        self._tasks: dict[Cell, tuple[TaskID, str]] = {}
        self._began = self._shown = time.monotonic()
        self._found = self._ended = self._count = 0

    def __enter__(self) -> ComparisonProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def planned(self, cells: list[Cell], done: list[Cell]) -> None:
        """Show what there is to do."""
        self._count, self._found = len(cells), len(done)
        self._began = self._shown = time.monotonic()
        if self._bars is not None:
            self._all = self._bars.add_task("All cells", total=len(cells), completed=len(done), figures="")
        elif not self._quiet:
            kept = f", {len(done)} of them done before" if done else ""
            self._print(f"{len(cells)} cells{kept}")

    def step(self, step: Step) -> None:
        """Show how far a cell has come."""
        if self._quiet:
            return
        decibels = "" if math.isnan(step.psnr) else f"{step.psnr:.2f} dB"
        if self._bars is None:
            if time.monotonic() - self._shown >= LINE_SECONDS:
                self._shown = time.monotonic()
                self._print(f"{step.cell.title}: {step.phase} {step.step}/{step.steps}  {decibels}")
            return
        known = self._tasks.get(step.cell)
        if known is None or known[1] != step.phase:
            if known is not None:
                self._bars.remove_task(known[0])
            name = f"  {step.cell.title}: {step.phase}"
            known = self._bars.add_task(name, total=step.steps, figures=""), step.phase
            self._tasks[step.cell] = known
        self._bars.update(known[0], completed=step.step, figures=decibels)
        if self._all is not None:
            self._bars.update(self._all, figures=self._times())

    def ended(self, outcome: Outcome) -> None:
        """Count a cell, and say why it failed."""
        self._ended += 1
        known = self._tasks.pop(outcome.cell, None)
        if self._bars is not None and self._all is not None:
            if known is not None:
                self._bars.remove_task(known[0])
            self._bars.update(self._all, advance=1, figures=self._times())
        if outcome.failure is not None:
            if self._bars is not None:
                self._bars.console.print(
                    f"{outcome.cell.title}: failed: {outcome.failure}", markup=False, soft_wrap=True
                )
            else:
                warn(f"{outcome.cell.title}: failed: {outcome.failure}")
        elif self._bars is None and not self._quiet:
            gone = f"{self._found + self._ended}/{self._count}"
            self._print(f"{gone}  {outcome.cell.title}: done  {self._times()}")

    def _times(self) -> str:
        gone = time.monotonic() - self._began
        left = self._count - self._found - self._ended
        guess = duration(gone / self._ended * left) if self._ended else "-:--"
        return f"{duration(gone)} gone, {guess} left"

    def _print(self, line: str) -> None:
        options: dict[str, Any] = {"markup": False, "soft_wrap": True}
        self._console.print(line, **options)
