"""Groups of cells one after another in this process, or several at once in processes of their own.

Every slot is an executor of one process, so that one that is killed takes nothing with it but its own cells.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oes_fast.comparison.cells import Cell
from oes_fast.comparison.run import Options, Step, Stopped, run_cell
from oes_fast.comparison.settings import Settings
from oes_fast.errors import OESError

_POLL_SECONDS = 0.1
_ORPHAN_SECONDS = 20.0  # that a worker whose parent is gone has to write its checkpoint
_LONGEST = 500  # characters of a failure: so short a message is written to a pipe whole or not at all
_DIED = "its process was killed, by lack of memory perhaps; the same command goes on from its checkpoint"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: which.
        failure: why it failed, None where its result is written.
    """

    cell: Cell
    failure: str | None = None


@dataclass(frozen=True)
class _Ended:
    """How a group ended: whole, or stopped before its end, or by the death of its process, or by an error."""

    group: list[Cell]
    whole: bool = True
    died: bool = False
    error: BaseException | None = None


Work = tuple[list[Cell], Tensor]  # a group of cells and their image
Tell = Callable[[Step | Outcome], None]


def run_here(works: Sequence[Work], settings: Settings, options: Options, tell: Tell) -> bool:
    """Run groups one after another in this process; whether all were run, and not stopped."""
    options = replace(options, report=tell)
    return all(_run_group(group, clean, settings, options, tell) for group, clean in works)


def _run_group(group: list[Cell], clean: Tensor, settings: Settings, options: Options, tell: Tell) -> bool:
    """Run the cells of a group; False where the comparison is to stop."""
    for cell in group:
        if options.stopping():
            return False
        failure = None
        try:
            run_cell(cell, group, clean, settings, options)
        except Stopped:
            return False
        except (OESError, OSError) as error:
            failure = _one_line(error)
        except Exception as error:  # a fault of ours or of a library, or no memory: the others go on
            if os.environ.get("OES_FAST_DEBUG", "") not in ("", "0"):
                raise
            failure = f"{type(error).__name__}: {_one_line(error)}"
        tell(Outcome(cell, None if failure is None else failure[:_LONGEST]))
    return True


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def run_in_processes(
    works: Sequence[Work], settings: Settings, options: Options, tell: Tell, *, jobs: int, threads: int
) -> bool:
    """Run groups in ``jobs`` processes of ``threads`` threads each; whether all were run, and not stopped.

    KeyboardInterrupt ends the groups as ``options.stopping`` does; a second one ends the processes at once.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.RawValue("b", 0)  # without a lock, which a worker that is killed might keep
    plain = replace(options, stopping=_never, report=_ignore)  # those of this process cannot be pickled
    slots = [_Slot(context, (stop, settings, plain, threads)) for _ in range(min(jobs, len(works)))]
    free: SimpleQueue[_Slot] = SimpleQueue()
    for slot in slots:
        free.put(slot)
    inbox: SimpleQueue[Step | Outcome | _Ended] = SimpleQueue()

    def run(group: list[Cell], clean: Tensor) -> None:
        slot = free.get()
        try:
            ended = _Ended(group, whole=False) if stop.value else slot.run(group, clean, inbox.put)
        except BaseException as error:
            ended = _Ended(group, error=error)
        finally:
            free.put(slot)
        inbox.put(ended)

    pool = ThreadPoolExecutor(len(slots), thread_name_prefix="oes_fast-comparison")
    try:
        for group, clean in works:
            pool.submit(run, group, clean)
        return _follow(len(works), inbox, stop, options.stopping, tell)
    except BaseException:
        stop.value = 1
        for slot in slots:
            slot.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for slot in slots:
            slot.close()


def _follow(
    count: int,
    inbox: SimpleQueue[Step | Outcome | _Ended],
    stop: Any,
    stopping: Callable[[], bool],
    tell: Tell,
) -> bool:
    """Pass on what comes until so many groups have ended; whether all are whole."""
    told: set[Cell] = set()
    whole = True
    while count:
        try:
            if stopping():
                stop.value = 1
            message = inbox.get(timeout=_POLL_SECONDS)
        except Empty:
            continue
        except KeyboardInterrupt:
            if stop.value:
                raise
            stop.value = 1
            continue
        if isinstance(message, _Ended):
            count -= 1
            if message.error is not None:
                raise message.error
            stopped = not message.whole or (message.died and bool(stop.value))
            whole &= not stopped
            if message.died and not stopped:
                for cell in message.group:
                    if cell not in told:
                        tell(Outcome(cell, _DIED))
            continue
        if isinstance(message, Outcome):
            told.add(message.cell)
        tell(message)
    return whole


class _Slot:
    """A process that runs one group at a time, and another one after one that was killed."""

    def __init__(self, context: Any, arguments: tuple[Any, ...]) -> None:
        self._context = context
        self._arguments = arguments
        self._executor: ProcessPoolExecutor | None = None
        self._receiver: Connection | None = None
        self._pid: int | None = None

    def run(self, group: list[Cell], clean: Tensor, put: Callable[[Step | Outcome], None]) -> _Ended:
        """Run a group in the process, and pass on what it tells."""
        executor = self._executor or self._start()
        # NumPy's arrays are pickled; torch would pass its tensors by shared memory and open files.
        future = executor.submit(_work, group, clean.numpy())
        while True:
            done = bool(wait([future], timeout=_POLL_SECONDS).done)
            self._pass_on(put)
            if done:
                return self._ended(group, future)

    def _ended(self, group: list[Cell], future: Future[bool]) -> _Ended:
        try:
            return _Ended(group, whole=future.result())
        except BrokenProcessPool:
            self.close()
            return _Ended(group, died=True)

    def _start(self) -> ProcessPoolExecutor:
        self._receiver, sender = self._context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin, initargs=(sender, *self._arguments)
        )
        return self._executor

    def _pass_on(self, put: Callable[[Step | Outcome], None]) -> None:
        receiver = self._receiver
        with suppress(OSError, EOFError):
            while receiver is not None and receiver.poll():
                message = receiver.recv()
                if isinstance(message, int):
                    self._pid = message
                else:
                    put(message)

    def kill(self) -> None:
        """End the process at once, or after the update under way and its checkpoint."""
        if self._pid is not None:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGTERM)

    def close(self) -> None:
        """End the process where it has nothing to do."""
        executor, self._executor, self._pid = self._executor, None, None
        if executor is not None:
            executor.shutdown(wait=True)
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def _never() -> bool:
    return False


def _ignore(message: object) -> None:
    pass


class _Worker:
    """What a process of a slot keeps for all its groups."""

    def __init__(
        self, sender: Connection, stop: Any, settings: Settings, options: Options, threads: int
    ) -> None:
        self._sender, self._stop, self._orphan = sender, stop, False
        self._settings = settings
        self._options = replace(options, stopping=self.stopping, report=self.tell)
        # A terminal sends these to all its processes; what becomes of them is the parent's to say.
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        torch.set_num_threads(threads)
        threading.Thread(target=self._watch_parent, daemon=True).start()
        self.tell(os.getpid())

    def stopping(self) -> bool:
        """Whether to end the run after the update under way."""
        return bool(self._stop.value) or self._orphan

    def tell(self, message: Step | Outcome | int) -> None:
        """Send a message to the parent."""
        with suppress(OSError):  # it is gone, which the other thread sees to
            self._sender.send(message)

    def run(self, group: list[Cell], clean: Tensor) -> bool:
        """Run a group."""
        return _run_group(group, clean, self._settings, self._options, self.tell)

    def _watch_parent(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            self._orphan = True
            time.sleep(_ORPHAN_SECONDS)
            os._exit(1)


_worker: _Worker | None = None


def _begin(*arguments: Any) -> None:
    global _worker
    _worker = _Worker(*arguments)


def _work(group: list[Cell], pixels: np.ndarray) -> bool:
    assert _worker is not None
    return _worker.run(group, torch.from_numpy(pixels))
