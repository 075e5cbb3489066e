"""Several runs at the same time on a CPU, each in a thread of its own.

The kernels compute without the interpreter's lock, so one run a core makes the most of the cores: a run on
several threads waits for the slowest of them after every layer. Callbacks, warnings and the display of
progress stay with the thread that called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import torch

from oes_fast._memory import available_memory
from oes_fast.errors import OESWarning, warnings_to
from oes_fast.pipelines.environment import counted_as
from oes_fast.pipelines.functions import GeneratorFunction, RewrittenFunction
from oes_fast.pipelines.kinds import SharedFunctions
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.train import TrainResult

_POLL_SECONDS = 0.5
SHARE = 0.5  # of the memory that is free, which runs may take together unless the caller says how much


class Run(Protocol):
    """A run as :class:`AtOnce` makes it.

    Attributes:
        plain: its steps beside the network are the kernels' own: a squared error, Adam.
    """

    plain: bool

    def run(self) -> TrainResult:
        """Make it."""


@dataclass
class _Question:
    """An evaluation that the calling thread is to be told of."""

    number: int
    info: StepInfo
    answer: SimpleQueue[tuple[object, Exception | None]] = field(default_factory=SimpleQueue)


@dataclass(frozen=True)
class _Warned:
    """A warning of a run."""

    number: int
    message: str
    category: type[OESWarning]


@dataclass(frozen=True)
class _Gone:
    """A thread has ended."""

    error: BaseException | None = None


class AtOnce:
    """Makes runs in threads.

    How many, and with how many threads of their kernels each, is decided when the first network is bound.
    A run whose bits may depend on the number of threads, or that may draw random numbers, has all threads and
    waits for those before it.

    Args:
        count: of runs.
        functions: makes the generator functions.
        at_once: as for :func:`oes_fast.train_many`.
        memory: as for :func:`oes_fast.train_many`.
        context: what each thread runs in.
        tell: called in the calling thread with the number of a run and its evaluation; gives what a callback
            is to return.
        warn: called there with a warning and the run's number.
    """

    def __init__(
        self,
        count: int,
        functions: SharedFunctions,
        *,
        at_once: int | None,
        memory: float | None,
        context: Callable[[], AbstractContextManager[object]],
        tell: Callable[[int, StepInfo], object],
        warn: Callable[[int, str, type[OESWarning]], None],
    ) -> None:
        self._functions, self._context = functions, context
        self._at_once, self._memory = at_once, memory
        self._tell, self._warn = tell, warn
        self._cores = torch.get_num_threads()
        self.most = min(count, self._cores if at_once is None else at_once)
        self.threads = self._cores  # of each run
        self._runs: Sequence[Run] = ()
        self._results: list[TrainResult | Exception | None] = [None] * count
        self._next = 0
        self._changed = threading.Condition()
        self._decided = False
        self._independent = [False] * count  # of the order and the number of threads
        self._ended = [False] * count
        self._binding = 0  # runs whose networks are being bound
        self._alone: int | None = None  # the run under way that is not independent
        self._inbox: SimpleQueue[_Question | _Warned | _Gone] = SimpleQueue()
        self._stopped = False

    def make(self, number: int, *args: Any, **kwargs: Any) -> tuple[GeneratorFunction, str]:
        """The generator function of a run, when it is its turn; called in the run's thread."""
        with self._changed:  # to verify a network sets PyTorch's random numbers, which such a run may draw
            self._changed.wait_for(lambda: self._stopped or self._alone is None)
            self._binding += 1
        try:
            function, backend = self._functions.make(*args, **kwargs)
        finally:
            with self._changed:
                self._binding -= 1
                self._changed.notify_all()
        free: RewrittenFunction | None = None  # to run beside others
        if self._runs[number].plain and backend == "cpu" and isinstance(function, RewrittenFunction):
            free = function if function.in_one_chain else None
        with self._changed:
            if not self._decided:
                self._decide(free)
            if free is not None:
                self._independent[number] = True
                self._changed.notify_all()
                torch.set_num_threads(self.threads)
            else:
                before = range(number)
                self._changed.wait_for(
                    lambda: (
                        self._stopped
                        or (
                            self._binding == 0
                            and self._alone is None
                            and all(self._independent[k] or self._ended[k] for k in before)
                        )
                    )
                )
                self._alone = number
        return function, backend

    def told(self, number: int, info: StepInfo) -> object:
        """Have the calling thread told of an evaluation; called in the run's thread."""
        question = _Question(number, info)
        self._inbox.put(question)
        while True:
            try:
                answer, error = question.answer.get(timeout=_POLL_SECONDS)
            except Empty:
                if self._stopped:  # by Ctrl-C between the question and the answer
                    return True
                continue
            if error is not None:
                raise error
            return answer

    def run(self, runs: Sequence[Run]) -> list[TrainResult | Exception]:
        """Make the runs: of each its result, or why it failed.

        An exception in the calling thread that is none of a callback's ends all of them.
        """
        self._runs = runs
        workers = [
            threading.Thread(target=self._work, args=(index,), name=f"oes_fast-run-{index}", daemon=True)
            for index in range(self.most)
        ]
        for worker in workers:
            worker.start()
        gone = 0
        failure: BaseException | None = None
        while gone < len(workers):
            try:
                message = self._inbox.get(timeout=_POLL_SECONDS)
                if isinstance(message, _Gone):
                    gone += 1
                    failure = failure or message.error
                elif isinstance(message, _Warned):
                    if failure is None:
                        self._warn(message.number, message.message, message.category)
                else:
                    self._reply(message, stopped=failure is not None)
            except Empty:
                if not any(worker.is_alive() for worker in workers):
                    break  # Ctrl-C took a message away
            except BaseException as error:
                failure = failure or error
            if failure is not None:
                self._stop()
        try:
            for worker in workers:
                worker.join()
        finally:
            torch.set_num_threads(self._cores)
        if failure is not None:
            raise failure
        return [result for result in self._results if result is not None]

    @property
    def stopped(self) -> bool:
        """Whether the runs are to end, as the calling thread is to raise something."""
        return self._stopped

    def _reply(self, question: _Question, *, stopped: bool) -> None:
        answer: tuple[object, Exception | None] = (True, None)
        try:
            if not stopped:
                answer = (self._tell(question.number, question.info), None)
        except Exception as error:
            answer = (None, error)
        finally:  # the run waits, whatever was raised
            question.answer.put(answer)

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _decide(self, function: RewrittenFunction | None) -> None:
        """How many runs at once; ``function`` is that of the first, None where that is to be alone."""
        most = self.most
        if function is None:
            most = 1
        elif self._memory is not None or self._at_once is None:
            free = available_memory(torch.device("cpu"))
            budget = SHARE * (free + function.memory) if self._memory is None else self._memory
            most = max(1, min(most, int(min(budget / function.memory, most))))
        self.most = most
        self.threads = max(1, self._cores // most)
        self._decided = True
        self._changed.notify_all()

    def _work(self, index: int) -> None:
        error: BaseException | None = None
        try:
            with self._changed:
                if index > 0:
                    self._changed.wait_for(lambda: self._decided or self._stopped)
            if index < self.most:
                with self._context():
                    self._make_runs()
        except BaseException as raised:
            error = raised
        finally:
            if index == 0:  # all failed before one was bound
                with self._changed:
                    self._decided = True
                    self._changed.notify_all()
            self._inbox.put(_Gone(error))

    def _make_runs(self) -> None:
        torch.get_num_threads()  # a thread takes the process's number over when first asked, and not again
        while True:
            with self._changed:
                number = self._next
                if self._stopped or number >= len(self._runs):
                    return
                self._next += 1
            torch.set_num_threads(self._cores)  # to bind the network

            def warned(message: str, category: type[OESWarning], number: int = number) -> None:
                self._inbox.put(_Warned(number, message, category))

            try:
                with warnings_to(warned), counted_as(self._cores):
                    self._results[number] = self._runs[number].run()
            except Exception as error:
                self._results[number] = error
            finally:
                with self._changed:
                    self._ended[number] = True
                    self._alone = None if self._alone == number else self._alone
                    self._changed.notify_all()
