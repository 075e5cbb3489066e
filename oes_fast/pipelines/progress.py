"""How far a run has come: a bar in a terminal or a notebook, a line now and then elsewhere.

Terminals and files are shown it on stderr; where that is closed or full, a run goes on without.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from oes_fast.io.display import Display

if TYPE_CHECKING:
    from oes_fast.pipelines.loop import StepInfo

BAR_SECONDS = 0.5  # loss and PSNR wait for the device, so they are asked for this often at most
LINE_SECONDS = 10.0
NAMES = {"search": "Searching", "train": "Training"}

Shown = TypeVar("Shown", bound="ProgressDisplay")


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """What shows phase, step, loss, PSNR, time gone and time left.

    Args:
        quiet: show nothing.
        console: where to; stderr if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._quiet = quiet
        self._console = console or stderr_console()
        self._bars: Progress | None = None
        self._cell: NotebookBar | None = None
        if not quiet and self._console.is_jupyter:
            self._cell = NotebookBar()
        elif not quiet and self._console.is_terminal:
            self._bars = bars_on(self._console)
        self._phase = ""
        self._task: TaskID | None = None
        self._first_step = 0
        self._began = self._shown = 0.0

    def __enter__(self: Shown) -> Shown:
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
        lines = self._bars is None and self._cell is None
        interval = LINE_SECONDS if lines else BAR_SECONDS
        if now - self._shown < interval and info.step < info.steps:
            return
        self._shown = now
        figures = self._figures(info, now)
        if self._cell is not None:
            self._cell.show(NAMES[info.phase], info.step, info.steps, figures)
        elif self._bars is None:
            line = f"{NAMES[info.phase]} {info.step}/{info.steps}  {figures}"
            self._console.print(line, soft_wrap=True)
        elif self._task is not None:
            self._bars.update(self._task, completed=info.step, figures=figures)

    def say(self, line: str) -> None:
        """Print a line, above the bars where there are any."""
        if not self._quiet:
            self._console.print(line, soft_wrap=True, markup=False)

    def _start(self, info: StepInfo, now: float) -> None:
        self._phase, self._first_step, self._began = info.phase, info.step, now
        self._shown = now if self._bars is None and self._cell is None else 0.0
        if self._cell is not None:
            self._cell.next()
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


def stderr_console() -> Console:
    """Rich's console on stderr. Rich ends the process where nobody reads what it writes; a run goes on."""
    stream: Any = Display(sys.stderr)
    return Console(file=stream, highlight=False)


def bars_on(console: Console) -> Progress:
    """Bars of a terminal: description, steps made of all, and the field ``figures``."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        console=console,
        refresh_per_second=4,
        expand=True,
    )


class NotebookBar:
    """A bar in the output of a notebook's cell, replaced in place.

    Rich draws its bars in notebooks with ipywidgets alone, which many notebooks lack.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def next(self) -> None:
        """Leave the present bar as it is; the next one goes below it."""
        self._handle = None

    def show(self, name: str, step: int, steps: int, figures: str) -> None:
        """Draw the bar at ``step`` of ``steps``."""
        from IPython.display import display

        plain = f"{name} {step}/{steps}  {figures}"
        bar = f'<progress value="{step}" max="{max(steps, 1)}"></progress>'
        data = {"text/plain": plain, "text/html": f"{bar} {plain}"}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03" or "2:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
