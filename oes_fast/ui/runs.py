"""The runs of a server: a queue, one process that makes them, and what is known of each."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from oes_fast.errors import InputError, OutputError
from oes_fast.ui.history import write_kept
from oes_fast.ui.run import CUT_OFF, INTERRUPTED, OVER, PAUSED, RUNNING, STOPPED, STOPPING, WAITING, Run
from oes_fast.ui.store import RunStore
from oes_fast.ui.worker import Began, Command, Ended, Frame, Order, Paused, work

MOST_WAITING = 20  # runs
MOST_KNOWN = 40  # runs, of which those that ended longest ago go
# What a run that is told to stop has to end with what it has, before its process is ended.
_STOP_SECONDS = 10.0


class RunQueue:
    """Makes runs one after another in a process of its own; :meth:`close` ends it.

    Args:
        root: folder for those of the runs. What a server that is gone left there is found again: a run that
            had not ended is cut off.
        command: what runs the command line with arguments and a watcher; to be pickled.
        shown: folder for what pages are given.

    Raises:
        InputError: ``root`` cannot be made or locked.
    """

    def __init__(self, root: Path, command: Command, shown: Path) -> None:
        self._store, self._command, self._shown = RunStore(root), command, shown
        self._runs: dict[int, Run] = {}
        for number, record in self._store.adopt():
            run = self._known(number, tuple(record["arguments"]), record["output"])
            run.recall()
            if record["state"] in OVER:
                run.state, run.said = record["state"], record["said"]
            else:
                run.cut_off("The server ended before it.")
            self._runs[number] = run
        self._forget()
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
            self._check_room()
            number, folder = self._store.create()
        try:
            arguments, output = prepare(folder)
        except BaseException:
            self._store.remove(number)
            raise
        run = self._known(number, tuple(arguments), output)
        run.note(WAITING)
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
        """Let a paused one go on, and put one that was cut off into the queue, to go on where it was.

        Raises:
            InputError: too many wait.
        """
        with self._new:
            if run.state == PAUSED:
                self._order(Order.GO)
            elif run.state == CUT_OFF:
                self._check_room()
                run.state, run.said, run.resume = WAITING, "", True
                run.frame = None
                run.changed += 1
                run.note(WAITING)
                self._new.notify_all()

    def _check_room(self) -> None:
        if len(self.waiting()) >= MOST_WAITING:
            raise InputError(f"queue: expected fewer than {MOST_WAITING} waiting runs, got that many")

    def _known(self, number: int, arguments: tuple[str, ...], output: str) -> Run:
        shown = self._shown / f"run-{number}"
        shown.mkdir(parents=True, exist_ok=True)
        return Run(number, arguments, self._store.folder(number), shown, output)

    def stop(self, run: Run) -> None:
        """End it with what it has after the step under way, or leave it out where it has not begun."""
        with self._new:
            if run.state in (WAITING, CUT_OFF):
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
        """Keep its newest frame, in its folder too; None where there is none.

        Raises:
            InputError: too many are kept.
            OutputError: it cannot be written: it is kept until the server ends.
        """
        with self._new:
            frame, new = run.frame, run.keep()
        if new is not None:  # without the lock: what comes from the process meanwhile is taken in
            try:
                write_kept(run.folder, new)
            except OutputError as error:
                why = "" if error.errno is None else f": {os.strerror(error.errno)}"  # not the folder's name
                said = f"the kept frame cannot be written, and ends with the server{why}"
                raise OutputError(said) from None
        return frame

    def close(self) -> None:
        """End all; what had not ended stays for the next server, with the checkpoint of its last step."""
        with self._new:
            self._closed = True
            ended = [run for run in self.runs() if run.over and run.state != CUT_OFF]
            for run in self.waiting():
                run.cut_off("The server ended before it began.")
            under_way = any(run.frame is not None for run in self.runs() if not run.over)
            if under_way:
                self._order(Order.STOP)
            else:
                self._kill()
            self._new.notify_all()
        if under_way:
            self._thread.join(_STOP_SECONDS)
        self._kill()
        self._thread.join(10)
        for run in ended:
            self._store.remove(run.number)
        self._store.close()

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
                resume = ("--resume",) if run.resume else ()
                pipe.send(((*run.arguments, *resume), run.folder))
                self._follow(run, pipe)
            except (EOFError, OSError):  # the process is gone
                with self._new:
                    # Its pipe closes before it counts as ended: the next run would be given to it.
                    self._process.kill()
                    self._process.join()
                    if run.state == STOPPING:
                        run.end(STOPPED)
                    elif self._closed:
                        run.cut_off("The server ended before it.")
                    else:
                        run.cut_off("Its process ended: it was killed, or ran out of memory.")

    def _follow(self, run: Run, pipe: Connection) -> None:
        """Until it has ended."""
        while True:
            message = pipe.recv()
            with self._new:
                if isinstance(message, Began):
                    run.take_first(message)
                elif isinstance(message, Frame):
                    run.take(message)
                elif isinstance(message, Paused):
                    if run.state != STOPPING:
                        run.state = PAUSED if message.paused else RUNNING
                    run.changed += 1
                elif isinstance(message, Ended):
                    if self._closed and message.code == INTERRUPTED and run.state != STOPPING:
                        run.cut_off("The server ended before it.")
                    else:
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
            self._store.remove(run.number)
            shutil.rmtree(run.shown, ignore_errors=True)
