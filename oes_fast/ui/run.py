"""What is known of a run."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oes_fast.errors import InputError
from oes_fast.ui.history import (
    MOST_KEPT,
    MOST_KEPT_BYTES,
    Layers,
    Point,
    frame_bytes,
    read_curves,
    read_first,
    read_kept,
    write_curves,
    write_first,
)
from oes_fast.ui.store import write_record
from oes_fast.ui.worker import Began, Ended, Frame, Picture

WAITING, RUNNING, PAUSED, STOPPING = "waiting", "running", "paused", "stopping"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
CUT_OFF = "cut off"  # its process or the server ended: it can go on from its checkpoint
OVER = (DONE, STOPPED, FAILED, CUT_OFF)
INTERRUPTED = 130  # exit code

_POINTS = 1000  # of a curve
_CURVE_SECONDS = 10.0  # from one writing of the curves to the next


@dataclass
class Run:
    """What is known of a run; it belongs to the server, whoever looks at it.

    Attributes:
        number: of the run, from 1.
        arguments: of the command line, whose file names are those in ``folder``.
        folder: of its files.
        shown: folder of the copies and pictures that pages are given.
        output: name of the image.
        state: one of the words above.
        resume: whether it goes on from a checkpoint, if there is one.
        changed: grows with all that is new.
        first: picture that it begins with, None before.
        frame: the newest.
        layers: of the search, the newest.
        points: of the curves.
        kept: frames that were kept.
        said: what went wrong, or what is to be known.
        spent: share of the time that frames took, None before the end.
        compared: the frame that the comparison shows, None before there is one.
        compared_at: when it was drawn, in seconds of the process's clock.
        compared_count: how often it was.
        written_at: when the curves were written into the folder, as compared_at.
    """

    number: int
    arguments: tuple[str, ...]
    folder: Path
    shown: Path
    output: str
    state: str = WAITING
    resume: bool = False
    changed: int = 0
    first: Picture | None = None
    frame: Frame | None = None
    layers: Layers = ()
    points: list[Point] = field(default_factory=list)
    kept: list[Frame] = field(default_factory=list)
    said: str = ""
    spent: float | None = None
    compared: Frame | None = None
    compared_at: float = 0.0
    compared_count: int = 0
    written_at: float = -math.inf

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER

    @property
    def files(self) -> list[Path]:
        """The results that there are: image, mask, JSON."""
        stem = Path(self.output).stem
        names = (self.output, f"{stem}_mask.safetensors", f"{stem}.json")
        return [path for path in (self.folder / name for name in names) if path.is_file()]

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments that repeat the run: where a training was stopped, with the steps it made.

        Of several trainings, each may have made others; and a rule looks at them all.
        """
        arguments, result = list(self.arguments), self._result
        if self.state != STOPPED or result is None or {"--runs", "--stop"} & set(arguments):
            return self.arguments
        made = result["steps"].get("train")
        if made is None:  # stopped in the search: there is no image to repeat
            return self.arguments
        with suppress(ValueError):
            at = arguments.index("--train-steps")
            del arguments[at : at + 2]
        return (*arguments, "--train-steps", str(made))

    @property
    def _result(self) -> dict[str, Any] | None:
        path = self.folder / f"{Path(self.output).stem}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def recall(self) -> None:
        """Take in what a server that is gone has written of it."""
        self.first = read_first(self.folder)
        self.points, self.layers = read_curves(self.folder)
        self.kept = read_kept(self.folder)

    def take_first(self, began: Began) -> None:
        """Take in what it begins with."""
        self.first = began.first
        write_first(self.folder, began.first)
        self.changed += 1

    def take(self, frame: Frame) -> None:
        """Take in a frame."""
        self.frame = frame
        if frame.layers is not None:
            self.layers = frame.layers
        point = Point(frame.phase, frame.step, frame.loss, frame.psnr, frame.psnr_average)
        self.points = self._with(point, ended=frame.step == frame.steps)
        if len(self.points) > _POINTS:
            del self.points[1:-1:2]
        if time.monotonic() - self.written_at > _CURVE_SECONDS:
            self.write_curves()
        self.changed += 1

    def _with(self, point: Point, *, ended: bool) -> list[Point]:
        """The curves with a point more, without what was seen beyond the checkpoint that it goes on from.

        Where a search had ended its last step is shown again: the training goes on from a checkpoint of its
        own.
        """
        before = [each for each in self.points if each.order < point.order]
        after = [each for each in self.points if each.phase != point.phase and each.order > point.order]
        return [*before, point, *(after if ended else ())]

    def keep(self) -> Frame | None:
        """Keep the newest frame; it, or None where it was kept already.

        Raises:
            InputError: too many are kept.
        """
        frame = self.frame
        if frame is None or any((each.phase, each.step) == (frame.phase, frame.step) for each in self.kept):
            return None
        if len(self.kept) >= MOST_KEPT:
            raise InputError(f"kept frames: expected {MOST_KEPT} at most")
        if sum(map(frame_bytes, [*self.kept, frame])) > MOST_KEPT_BYTES:
            raise InputError(f"kept frames: expected {MOST_KEPT_BYTES >> 20} MiB of pictures at most")
        self.kept.append(frame)
        self.changed += 1
        return frame

    def write_curves(self) -> None:
        """Write the curves into the folder, for the next server."""
        write_curves(self.folder, list(self.points), self.layers)
        self.written_at = time.monotonic()

    def take_end(self, ended: Ended) -> None:
        """Take in how its command ended."""
        self.spent = ended.spent
        lines = [line.removeprefix("oes-fast: ") for line in ended.said.splitlines() if line.strip()]
        if ended.code in (0, INTERRUPTED):
            # That it was interrupted is known, and where its checkpoints lie is of no use on a page.
            said = [line for line in lines if "interrupted" not in line]
            self.end(DONE if ended.code == 0 else STOPPED, "\n".join(said))
        else:
            self.end(FAILED, "\n".join(lines).removeprefix("error: ") or f"exit code {ended.code}")

    def end(self, state: str, said: str = "") -> None:
        """It has ended so."""
        if state != CUT_OFF:  # nothing goes on from them
            for path in self.folder.glob("*.ckpt"):
                with suppress(OSError):
                    path.unlink()
        if self.points:
            self.write_curves()
        self.note(state, said)
        self.said, self.state = said, state  # last: who sees that it has ended finds all written
        self.changed += 1

    def cut_off(self, why: str) -> None:
        """It was ended before it was done, and may go on."""
        self.end(CUT_OFF, f"{why} Go on takes it up from its last checkpoint; Stop gives it up.")

    def note(self, state: str, said: str = "") -> None:
        """Write down what the next server needs to know of it."""
        record = {"arguments": self.arguments, "output": self.output, "state": state, "said": said}
        write_record(self.folder, record)
