"""How far many runs have come: a bar for the whole and one for each that is under way, or lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Hashable
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from oes_fast.cli.console import warn
from oes_fast.pipelines.progress import bars_on, duration, stderr_console

LINE_SECONDS = 30.0
_END_SECONDS = 1.0  # from one line about a run that has ended to the next, where not each has one

Shown = TypeVar("Shown", bound="ManyProgress")


class ManyProgress:
    """Shows many runs on stderr.

    Args:
        noun: what they are: "cells".
        quiet: show nothing but failures.
        console: where to; stderr if None.
        line_seconds: where there are no bars, time from one line about a run under way to the next.
        every: there, a line for each run that has ended, and not one in a second at most.
    """

    def __init__(
        self,
        noun: str,
        *,
        quiet: bool = False,
        console: Console | None = None,
        line_seconds: float = LINE_SECONDS,
        every: bool = True,
    ) -> None:
        self._noun, self._quiet = noun, quiet
        self._line_seconds, self._every = line_seconds, every
        self._console = console or stderr_console()
        self._bars: Progress | None = None
        if not quiet and self._console.is_terminal and not self._console.is_jupyter:
            self._bars = bars_on(self._console)
        self._all: TaskID | None = None
        self._tasks: dict[Hashable, tuple[TaskID, str]] = {}
        self._began = self._shown = time.monotonic()
        self._end_shown = 0.0
        self._found = self._ended = self._count = 0

    def __enter__(self: Shown) -> Shown:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, count: int, done: int) -> None:
        """Show how many runs there are, and how many of them were done before."""
        self._count, self._found = count, done
        self._began = self._shown = time.monotonic()
        if self._bars is not None:
            self._all = self._bars.add_task(f"All {self._noun}", total=count, completed=done, figures="")
        elif not self._quiet:
            kept = f", {done} of them done before" if done else ""
            self._print(f"{count} {self._noun}{kept}")

    def show(self, key: Hashable, title: str, phase: str, step: int, steps: int, psnr: float | None) -> None:
        """Show how far a run has come."""
        if self._quiet:
            return
        decibels = "" if psnr is None else f"{psnr:.2f} dB"
        if self._bars is None:
            if time.monotonic() - self._shown >= self._line_seconds:
                self._shown = time.monotonic()
                self._print(f"{title}: {phase} {step}/{steps}  {decibels}")
            return
        known = self._tasks.get(key)
        if known is None or known[1] != phase:
            if known is not None:
                self._bars.remove_task(known[0])
            known = self._bars.add_task(f"  {escape(title)}: {phase}", total=steps, figures=""), phase
            self._tasks[key] = known
        self._bars.update(known[0], completed=step, figures=decibels)
        if self._all is not None:
            self._bars.update(self._all, figures=self._times())

    def end(self, key: Hashable, title: str, failure: str | None) -> None:
        """Count a run, and say why it failed."""
        self._ended += 1
        self.remove(key)
        if self._bars is not None and self._all is not None:
            self._bars.update(self._all, advance=1, figures=self._times())
        if failure is not None:
            if self._bars is not None:
                self._bars.console.print(f"{title}: failed: {failure}", markup=False, soft_wrap=True)
            else:
                warn(f"{title}: failed: {failure}")
        elif self._bars is None and not self._quiet:
            now = time.monotonic()
            if self._every or now - self._end_shown >= _END_SECONDS:
                self._end_shown = now
                gone = f"{self._found + self._ended}/{self._count}"
                self._print(f"{gone}  {title}: done  {self._times()}")

    def remove(self, key: Hashable) -> None:
        """Take away the bar of a run."""
        known = self._tasks.pop(key, None)
        if self._bars is not None and known is not None:
            self._bars.remove_task(known[0])

    def _times(self) -> str:
        gone = time.monotonic() - self._began
        left = self._count - self._found - self._ended
        guess = duration(gone / self._ended * left) if self._ended else "-:--"
        return f"{duration(gone)} gone, {guess} left"

    def _print(self, line: str) -> None:
        options: dict[str, Any] = {"markup": False, "soft_wrap": True}
        self._console.print(line, **options)
