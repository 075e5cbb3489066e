"""Works of any number in processes of their own, taken from an iterator as there is somebody to do them.

Every slot is an executor of one process, so that one that is killed takes nothing with it but its own work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from oes_fast.errors import OESError

LONGEST = 500  # characters of a failure: so short a message is written to a pipe whole or not at all
_POLL_SECONDS = 0.1
_NO_START = (
    "workers: expected processes that start, got some that ended before that, for the reason they print; a "
    'script must begin its work under if __name__ == "__main__":'
)
_ORPHAN_SECONDS = 20.0  # that a worker whose parent is gone has to write its checkpoint

# Called once in each process with what it may tell the parent by, and what says whether to stop; gives what
# does one work. To be pickled.
Prepare = Callable[[Callable[[Any], None], Callable[[], bool]], Callable[[Any], Any]]


@dataclass(frozen=True)
class Told:
    """Something that a work told.

    Attributes:
        message: what, of less than 4 KiB: so short a one is written to a pipe whole or not at all.
    """

    message: Any


@dataclass(frozen=True)
class Ended:
    """How a work ended.

    Attributes:
        work: which.
        result: what it gave, None where its process died.
        died: whether its process was killed, as often as it was tried.
        stopping: whether to stop had been asked for.
    """

    work: Any
    result: Any = None
    died: bool = False
    stopping: bool = False


def work_in_processes(
    works: Iterable[Any],
    prepare: Prepare,
    *,
    processes: int,
    threads: int,
    stopping: Callable[[], bool],
    tries: int = 1,
) -> Generator[Told | Ended]:
    """Do works in processes; what they tell, and how each ends, as it comes.

    KeyboardInterrupt asks the works to stop, as ``stopping`` does; a second one ends the processes at once.

    Args:
        works: picklable ones. One is taken when a process is free, none after to stop was asked for.
        prepare: makes what does them, in each process.
        processes: works at once.
        threads: CPU threads of each.
        stopping: asked all the time.
        tries: how often a work is begun whose process is killed.

    Raises:
        BaseException: whatever a work raises; the others are ended, as they are where the iterator is closed,
            which who stops following it by an error is to do.
        OESError: processes cannot start.
    """
    pool = _Pool(works, prepare, processes, threads, stopping, tries)
    try:
        yield from pool.follow()
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()


class _Pool:
    """Slots, and the works that wait for one."""

    def __init__(
        self,
        works: Iterable[Any],
        prepare: Prepare,
        processes: int,
        threads: int,
        stopping: Callable[[], bool],
        tries: int,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.RawValue("b", 0)  # without a lock, which a worker that is killed might keep
        self._works = iter(works)
        self._again: deque[tuple[Any, int]] = deque()
        self._stopping, self._tries = stopping, tries
        self._slots = [_Slot(context, (self._stop, prepare, threads)) for _ in range(processes)]

    def follow(self) -> Iterator[Told | Ended]:
        """Do all works."""
        while True:
            try:
                if self._stopping():
                    self._stop.value = 1
                self._fill()
                busy = [slot for slot in self._slots if slot.future is not None]
                if not busy:
                    return
                futures = [slot.future for slot in busy if slot.future is not None]
                done = wait(futures, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done
            except KeyboardInterrupt:
                if self._stop.value:
                    raise
                self._stop.value = 1
                continue
            for slot in busy:
                yield from slot.told()
            for slot in busy:
                if slot.future in done and (ended := self._ended(slot)) is not None:
                    yield ended

    def _fill(self) -> None:
        for slot in self._slots:
            if slot.future is None and not self._stop.value:
                try:
                    work, tries = self._again.popleft() if self._again else (next(self._works), 0)
                except StopIteration:
                    return
                slot.begin(work, tries + 1)

    def _ended(self, slot: _Slot) -> Ended | None:
        work, tries = slot.work, slot.tries
        stopping = bool(self._stop.value)
        try:
            return Ended(work, slot.result(), stopping=stopping)
        except BrokenProcessPool:
            began = slot.began
            slot.close()
            if not (began or stopping) and tries >= self._tries:
                raise OESError(_NO_START) from None
            if stopping or tries >= self._tries:
                return Ended(work, died=True, stopping=stopping)
            self._again.append((work, tries))
            return None

    def kill(self) -> None:
        self._stop.value = 1
        for slot in self._slots:
            slot.kill()

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class _Slot:
    """A process that does one work at a time, and another one after one that was killed."""

    def __init__(self, context: Any, arguments: tuple[Any, ...]) -> None:
        self._context = context
        self._arguments = arguments
        self._executor: ProcessPoolExecutor | None = None
        self._receiver: Connection | None = None
        self._pid: int | None = None
        self.began = False  # whether the process is ready for works, or was
        self.future: Future[Any] | None = None
        self.work: Any = None
        self.tries = 0

    def begin(self, work: Any, tries: int) -> None:
        """Let the process do a work."""
        self.work, self.tries = work, tries
        executor = self._executor or self._start()
        try:
            self.future = executor.submit(_work, work)
        except BrokenProcessPool:  # it was killed while it had nothing to do
            self.close()
            self.future = self._start().submit(_work, work)

    def result(self) -> Any:
        """What the work gave, once it is done; the slot is free then."""
        future, self.future, self.work = self.future, None, None
        assert future is not None
        return future.result()

    def told(self) -> Iterator[Told]:
        """What the process has told."""
        receiver = self._receiver
        with suppress(OSError, EOFError):
            while receiver is not None and receiver.poll():
                message = receiver.recv()
                if isinstance(message, bool):
                    self.began = message
                elif isinstance(message, int):
                    self._pid = message
                else:
                    yield Told(message)

    def _start(self) -> ProcessPoolExecutor:
        self._receiver, sender = self._context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin, initargs=(sender, *self._arguments)
        )
        return self._executor

    def kill(self) -> None:
        """End the process at once, or after the update under way and its checkpoint."""
        for _ in self.told():  # its number, if that came last
            pass
        if self._pid is not None:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGTERM)

    def close(self) -> None:
        """End the process where it has nothing to do."""
        executor, self._executor, self._pid, self.began = self._executor, None, None, False
        if executor is not None:
            executor.shutdown(wait=True)
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


class _Worker:
    """What a process of a slot keeps for all its works."""

    def __init__(self, sender: Connection, stop: Any, prepare: Prepare, threads: int) -> None:
        self._sender, self._stop, self._orphan = sender, stop, False
        self._at_work = threading.Lock()  # held while there is a work, with a checkpoint to write
        # A terminal sends these to all its processes; what becomes of them is the parent's to say.
        for name in ("SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        torch.set_num_threads(threads)
        threading.Thread(target=self._watch_parent, daemon=True).start()
        self.tell(os.getpid())
        self._do = prepare(self.tell, self.stopping)
        self.tell(True)  # it has begun

    def do(self, work: Any) -> Any:
        """Do a work."""
        with self._at_work:
            return self._do(work)

    def stopping(self) -> bool:
        """Whether to end the work after the update under way."""
        return bool(self._stop.value) or self._orphan

    def tell(self, message: object) -> None:
        """Send a message to the parent."""
        with suppress(OSError):  # it is gone, which the other thread sees to
            self._sender.send(message)

    def _watch_parent(self) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            self._orphan = True
            self._at_work.acquire(timeout=_ORPHAN_SECONDS)
            os._exit(1)


_worker: _Worker | None = None


def _begin(*arguments: Any) -> None:
    global _worker
    _worker = _Worker(*arguments)


def _work(work: Any) -> Any:
    assert _worker is not None
    return _worker.do(work)
