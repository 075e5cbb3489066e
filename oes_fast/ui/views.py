"""What a page shows of a run: words, pictures, curves."""

from __future__ import annotations

import html
import math
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oes_fast.pipelines.progress import duration
from oes_fast.ui.history import Point
from oes_fast.ui.pictures import figure, write
from oes_fast.ui.run import CUT_OFF, DONE, FAILED, PAUSED, RUNNING, STOPPED, STOPPING, WAITING, Run
from oes_fast.ui.runs import RunQueue
from oes_fast.ui.worker import Frame, Picture

# Between two drawings of the comparison, at least; and for each point of the curves.
COMPARE_SECONDS, COMPARE_SHARE = 3.0, 0.02

_PHASES = {"search": "searching the mask", "train": "training"}
_ENDS = {
    DONE: "done",
    STOPPED: "stopped",
    FAILED: "failed",
    CUT_OFF: "cut off",
}


def line(text: str, *, alert: bool = False) -> str:
    """HTML of a sentence, which a screen reader says at once if it is an alert; nothing for an empty one."""
    if not text:
        return ""
    said = "<br/>".join(html.escape(part) for part in text.splitlines())
    role = ' role="alert"' if alert else ""
    return f'<p{role} class="oes-line">{said}</p>'


def status(run: Run, queue: RunQueue) -> str:
    """HTML of where a run stands."""
    return f"{line(words(run, queue))}{_bar(run)}{line(run.said, alert=run.state == FAILED)}"


def spoken(run: Run, queue: RunQueue) -> str:
    """What a screen reader says of it, from time to time: without what changes with every step."""
    frame = run.frame
    if run.state == WAITING or frame is None:
        return " ".join([words(run, queue), run.said]).strip()
    quality = "" if frame.psnr_average is None else f", PSNR of the average {frame.psnr_average:.1f} dB"
    done = f", {100 * frame.step // max(frame.steps, 1)} % of its steps"
    return f"Run {run.number}: {_state(run, frame)}{'' if run.over else done}{quality}. {run.said}".strip()


def words(run: Run, queue: RunQueue) -> str:
    """The same in words alone."""
    name, frame = f"Run {run.number}", run.frame
    if run.state == WAITING:
        ahead = queue.ahead(run)
        return f"{name} waits: {ahead} run{'' if ahead == 1 else 's'} ahead of it"
    if frame is None:
        return f"{name}: {_ENDS.get(run.state, 'begins')}"
    parts = [f"{name}: {_state(run, frame)}", f"step {frame.step:,} of {frame.steps:,}"]
    if frame.rate is not None:
        parts.append(f"{frame.rate:.3g} steps a second")
        if run.state == RUNNING:
            parts.append(f"{duration((frame.steps - frame.step) / frame.rate)} left of this phase")
    parts.append(f"loss {frame.loss:.3g}")
    if frame.psnr is not None:
        parts.append(f"PSNR {frame.psnr:.2f} dB")
    if frame.psnr_average is not None:
        parts.append(f"of the average {frame.psnr_average:.2f} dB")
    return ", ".join(parts)


def _state(run: Run, frame: Frame) -> str:
    if run.state in (PAUSED, STOPPING):
        return f"{run.state} while {_PHASES[frame.phase]}"
    return _ENDS.get(run.state, _PHASES[frame.phase])


def _bar(run: Run) -> str:
    frame = run.frame
    if frame is None or run.over:
        return ""
    label = f"Steps of {_PHASES[frame.phase]}"
    return f'<progress value="{frame.step}" max="{frame.steps}" aria-label="{label}"></progress>'


def pictures(frame: Frame | None, first: Picture | None) -> str:
    """HTML of the image of a step and of the running average; of what a run begins with, before."""
    if frame is None:
        return "" if first is None else f'<div class="oes-figures">{figure(first, "To restore")}</div>'
    what = "under the mask of this step" if frame.phase == "search" else "of this step"
    shown = figure(frame.output, f"Image {what}, {frame.step:,}")
    if frame.average is not None:
        shown += figure(frame.average, "Running average of the images")
    return f'<div class="oes-figures">{shown}</div>'


def compared(run: Run) -> tuple[str, str] | None:
    """Files to compare: what the run begins with, and the best there is now; None before there is something.

    Gradio copies what it is given, so the second is drawn ever more seldom: a run of hours leaves some
    hundred copies.
    """
    frame = run.frame
    if run.first is None or frame is None:
        return None
    now = time.monotonic()
    waits = max(COMPARE_SECONDS, COMPARE_SHARE * len(run.points))
    due = run.compared is None or run.state != RUNNING or now - run.compared_at > waits
    if due and run.compared is not frame:
        run.compared, run.compared_at = frame, now
        run.compared_count += 1
        write(_after(run), best(frame))
    return str(_before(run)), str(_after(run))


def kept_compared(run: Run, frame: Frame) -> tuple[str, str] | None:
    """The same for a kept frame."""
    if run.first is None:
        return None
    return str(_before(run)), str(write(run.shown / f"{frame.phase}_{frame.step}.png", best(frame)))


def _before(run: Run) -> Path:
    path = run.shown / "before.png"
    if not path.exists() and run.first is not None:
        write(path, run.first)
    return path


def _after(run: Run) -> Path:
    return run.shown / "after.png"


def best(frame: Frame) -> Picture:
    """The running average, where there is one, else the image of the step."""
    return frame.output if frame.average is None else frame.average


def results(run: Run) -> list[Path]:
    """Copies of the results that there are, where pages may be given them."""
    found = []
    for path in run.files:
        copy = run.shown / path.name
        if not copy.exists() or copy.stat().st_mtime_ns != path.stat().st_mtime_ns:
            shutil.copy2(path, copy)
        found.append(copy)
    return found


def kept_files(run: Run) -> list[Path]:
    """The kept frames as files."""
    found = []
    for frame in list(run.kept):
        stem = f"{Path(run.output).stem}_{frame.phase}_{frame.step}"
        pictures = {f"{stem}.png": frame.output, f"{stem}_average.png": frame.average}
        for name, pixels in pictures.items():
            path = run.shown / name
            if pixels is not None:
                found.append(path if path.exists() else write(path, pixels))
    return found


def command(run: Run) -> str:
    """The command line that repeats a run, to be typed beside the image."""
    return shlex.join(["oes-fast", *run.command])


def loss_rows(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Columns step, loss and phase; both phases from the start: the first rows give the chart its colours."""
    none = [Point(phase, 0, math.nan, None, None) for phase in _PHASES]
    rows = [*none, *points]
    return {
        "step": [point.step for point in rows],
        "loss": [point.loss for point in rows],
        "phase": [_PHASES[point.phase] for point in rows],
    }


def psnr_rows(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Columns step, PSNR and of what, of the training; empty where the clean image is not known."""
    rows: dict[str, list[Any]] = {"step": [], "PSNR": [], "of": []}
    for point in points:
        values = {"image of the step": point.psnr, "running average": point.psnr_average}
        for name, value in values.items():
            if value is not None and point.phase == "train":
                for column, entry in zip(rows.values(), (point.step, value, name), strict=True):
                    column.append(entry)
    return rows


def layer_rows(run: Run) -> dict[str, list[Any]]:
    """Columns layer, without its shape, and density in per cent."""
    return {"layer": layer_names(run), "kept": [100 * kept for _, kept in run.layers]}


def layer_names(run: Run) -> list[str]:
    """Short names, as a telephone has little room; the alphabet, which the chart goes by, has their order."""
    parts = [name.partition(":")[0].rpartition(" ") for name, _ in run.layers]
    return [f"{word} {number:0>2}" if number.isdecimal() else f"{word} {number}" for word, _, number in parts]
