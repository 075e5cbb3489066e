"""How far a run has come: a bar on a terminal, a line now and then elsewhere. Both go to stderr."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from oes_fast.cli import signals
from oes_fast.pipelines.loop import StepInfo

BAR_SECONDS = 0.5  # loss and PSNR wait for the device, so they are asked for this often at most
LINE_SECONDS = 10.0
NAMES = {"search": "Searching", "train": "Training"}


class ProgressReport(AbstractContextManager["ProgressReport"]):
    """What shows phase, step, loss, PSNR, time gone and time left.

    Args:
        quiet: show nothing.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        if not quiet and self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                refresh_per_second=4,
                expand=True,
            )
        self._phase = ""
        self._task: TaskID | None = None
        self._first_step = 0
        self._began = self._shown = 0.0

    def __enter__(self) -> ProgressReport:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, info: StepInfo) -> None:
        """Show ``info`` if it is time to."""
        if self._quiet:
            return
        now = time.monotonic()
        if info.phase != self._phase:
            self._start(info, now)
        interval = LINE_SECONDS if self._bars is None else BAR_SECONDS
        if now - self._shown < interval and info.step < info.steps:
            return
        self._shown = now
        figures = self._figures(info, now)
        if self._bars is None:
            line = f"{NAMES[info.phase]} {info.step}/{info.steps}  {figures}"
            self._console.print(line, soft_wrap=True)
        elif self._task is not None:
            self._bars.update(self._task, completed=info.step, figures=figures)

    def watch(self, info: StepInfo) -> bool:
        """The callback for the pipelines: show ``info``, and end the run if a signal has asked for it."""
        self(info)
        return signals.stop.requested

    def _start(self, info: StepInfo, now: float) -> None:
        self._phase, self._first_step, self._began = info.phase, info.step, now
        self._shown = now if self._bars is None else 0.0
        if self._bars is not None:
            self._task = self._bars.add_task(
                NAMES[info.phase], total=info.steps, completed=info.step, figures=""
            )

    def _figures(self, info: StepInfo, now: float) -> str:
        gone = now - self._began
        made = info.step - self._first_step
        left = duration(gone / made * (info.steps - info.step)) if made else "-:--"
        psnr = "" if info.psnr is None else f"  {info.psnr:.2f} dB"
        return f"loss {info.loss:.3g}{psnr}  {duration(gone)} gone, {left} left"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03" or "2:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
