"""The runs of a server: a queue, one process that makes them, and what is known of each."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from oes_fast.errors import InputError
from oes_fast.ui.worker import Began, Command, Ended, Frame, Order, Paused, Picture, work

WAITING, RUNNING, PAUSED, STOPPING = "waiting", "running", "paused", "stopping"
DONE, STOPPED, FAILED = "done", "stopped", "failed"
OVER = (DONE, STOPPED, FAILED)

MOST_WAITING = 20  # runs
MOST_KNOWN = 40  # runs, of which those that ended longest ago go
MOST_KEPT = 100  # frames of a run
_POINTS = 1000  # of a curve
# What a run that is told to stop has to end with what it has, before its process is ended.
_STOP_SECONDS = 10.0
_INTERRUPTED = 130  # exit code


@dataclass(frozen=True)
class Point:
    """A point of the curves: the figures of :class:`oes_fast.ui.worker.Frame`."""

    phase: str
    step: int
    loss: float
    psnr: float | None
    psnr_average: float | None


@dataclass
class Run:
    """What is known of a run; it belongs to the server, whoever looks at it.

    Attributes:
        number: of the run, from 1.
        arguments: of the command line, whose file names are those in ``folder``.
        folder: of its files.
        output: name of the image.
        state: one of the words above.
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
    """

    number: int
    arguments: tuple[str, ...]
    folder: Path
    output: str
    state: str = WAITING
    changed: int = 0
    first: Picture | None = None
    frame: Frame | None = None
    layers: tuple[tuple[str, float], ...] = ()
    points: list[Point] = field(default_factory=list)
    kept: list[Frame] = field(default_factory=list)
    said: str = ""
    spent: float | None = None
    compared: Frame | None = None
    compared_at: float = 0.0
    compared_count: int = 0

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

    def take(self, frame: Frame) -> None:
        """Take in a frame."""
        self.frame = frame
        if frame.layers is not None:
            self.layers = frame.layers
        self.points.append(Point(frame.phase, frame.step, frame.loss, frame.psnr, frame.psnr_average))
        if len(self.points) > _POINTS:
            del self.points[1:-1:2]
        self.changed += 1

    def take_end(self, ended: Ended) -> None:
        """Take in how its command ended."""
        lines = [line.removeprefix("oes-fast: ") for line in ended.said.splitlines() if line.strip()]
        if ended.code in (0, _INTERRUPTED):
            # That it was interrupted is known, and where its checkpoints lie is of no use on a page.
            said = [line for line in lines if "interrupted" not in line]
            self.end(DONE if ended.code == 0 else STOPPED, "\n".join(said))
        else:
            self.end(FAILED, "\n".join(lines).removeprefix("error: ") or f"exit code {ended.code}")
        self.spent = ended.spent

    def end(self, state: str, said: str = "") -> None:
        """It has ended so."""
        self.state, self.said = state, said
        self.changed += 1


class RunQueue:
    """Makes runs one after another in a process of its own; :meth:`close` ends it.

    Args:
        root: folder for those of the runs.
        command: what runs the command line with arguments and a watcher; to be pickled.
    """

    def __init__(self, root: Path, command: Command) -> None:
        self._root, self._command = root, command
        self._runs: dict[int, Run] = {}
        self._last = 0
        self._closed = False
        self._new = threading.Condition()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="oes-fast runs")
        self._thread.start()

    def submit(self, prepare: Callable[[Path], tuple[Sequence[str], str]]) -> Run:
        """Put a run at the end of the queue.

        Args:
            prepare: puts what the run reads into a new folder; gives the arguments of the command line, and
                the name of the image that they write there.

        Raises:
            InputError: too many wait; or what ``prepare`` raises.
        """
        with self._new:
            if len(self.waiting()) >= MOST_WAITING:
                raise InputError(f"queue: expected fewer than {MOST_WAITING} waiting runs, got that many")
            self._last += 1
            number = self._last
        folder = self._root / f"run-{number}"
        folder.mkdir()
        try:
            arguments, output = prepare(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run = Run(number, tuple(arguments), folder, output)
        with self._new:
            self._forget()
            self._runs[number] = run
            self._new.notify_all()
        return run

    def find(self, number: int | None) -> Run | None:
        """The run of that number, None where there is none."""
        return None if number is None else self._runs.get(number)

    def runs(self) -> list[Run]:
        """All that are known, the newest first."""
        return sorted(self._runs.values(), key=lambda run: -run.number)

    def waiting(self) -> list[Run]:
        """Those that wait, the next first."""
        return sorted(
            (run for run in self._runs.values() if run.state == WAITING), key=lambda run: run.number
        )

    def ahead(self, run: Run) -> int:
        """How many runs are to end before a waiting one begins."""
        return sum(not other.over and other.number < run.number for other in self._runs.values())

    def pause(self, run: Run) -> None:
        """Let it wait after the step under way; its process keeps no core busy."""
        with self._new:
            if run.state == RUNNING:
                self._order(Order.PAUSE)

    def go_on(self, run: Run) -> None:
        """Let a paused one go on."""
        with self._new:
            if run.state == PAUSED:
                self._order(Order.GO)

    def stop(self, run: Run) -> None:
        """End it with what it has after the step under way, or leave it out where it has not begun."""
        with self._new:
            if run.state == WAITING:
                run.end(STOPPED, "it was taken out of the queue")
            elif run.state in (RUNNING, PAUSED):
                began, run.state = run.frame is not None, STOPPING
                run.changed += 1
                if began:
                    self._order(Order.STOP)
                    timer = threading.Timer(_STOP_SECONDS, self._kill_if_stopping, [run])
                    timer.daemon = True
                    timer.start()
                else:  # nothing to keep, and it may be long before it looks for orders
                    self._kill()

    def keep(self, run: Run) -> Frame | None:
        """Keep its newest frame; None where there is none.

        Raises:
            InputError: too many are kept.
        """
        with self._new:
            frame = run.frame
            if frame is None:
                return None
            if len(run.kept) >= MOST_KEPT:
                raise InputError(f"kept frames: expected {MOST_KEPT} at most")
            if not any((kept.phase, kept.step) == (frame.phase, frame.step) for kept in run.kept):
                run.kept.append(frame)
                run.changed += 1
            return frame

    def close(self) -> None:
        """End all at once."""
        with self._new:
            self._closed = True
            for run in self.waiting():
                run.end(STOPPED, "the server has ended")
            self._kill()
            self._new.notify_all()
        self._thread.join(10)

    def _work(self) -> None:
        while True:
            with self._new:
                if self._closed:
                    return
                self._start()  # it imports what takes seconds while nobody waits
                while not self._closed and not self.waiting():
                    self._new.wait()
                if self._closed:
                    return
                self._start()
                run = self.waiting()[0]
                run.state = RUNNING
                run.changed += 1
                pipe = self._pipe
                assert pipe is not None
            try:
                pipe.send((run.arguments, run.folder))
                self._follow(run, pipe)
            except (EOFError, OSError):  # the process is gone
                with self._new:
                    # Its pipe closes before it counts as ended: the next run would be given to it.
                    self._process.kill()
                    self._process.join()
                    if run.state == STOPPING or self._closed:
                        run.end(STOPPED)
                    else:
                        run.end(FAILED, "its process ended: it was killed, or ran out of memory")

    def _follow(self, run: Run, pipe: Connection) -> None:
        """Until it has ended."""
        while True:
            message = pipe.recv()
            with self._new:
                if isinstance(message, Began):
                    run.first = message.first
                    run.changed += 1
                elif isinstance(message, Frame):
                    run.take(message)
                elif isinstance(message, Paused):
                    if run.state != STOPPING:
                        run.state = PAUSED if message.paused else RUNNING
                    run.changed += 1
                elif isinstance(message, Ended):
                    run.take_end(message)
                    return

    def _start(self) -> None:
        """Start the process, if there is none."""
        if self._process is not None and self._process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        if self._pipe is not None:
            self._pipe.close()
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, self._command), daemon=True)
        self._process.start()
        other.close()

    def _order(self, order: Order) -> None:
        if self._pipe is not None:
            with suppress(OSError):
                self._pipe.send(order)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _kill_if_stopping(self, run: Run) -> None:
        with self._new:
            if run.state == STOPPING:
                self._kill()

    def _forget(self) -> None:
        """Let go of the runs that ended longest ago."""
        over = sorted((run for run in self._runs.values() if run.over), key=lambda run: run.number)
        for run in over[: max(len(self._runs) - MOST_KNOWN + 1, 0)]:
            del self._runs[run.number]
            shutil.rmtree(run.folder, ignore_errors=True)
