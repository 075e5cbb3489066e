"""Processes for works: those that cannot start are told apart from those that a work kills."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import oes_fast as oes
from oes_fast import batch, workers
from oes_fast.batch import local
from oes_fast.comparison import run as comparison_run
from oes_fast.comparison import workers as comparison_workers
from oes_fast.comparison.settings import Settings
from oes_fast.workers import Ended, Told, work_in_processes


class Dying:
    """In the place of an executor: its process dies at each work.

    Args:
        says: what the process tells before.
        sender: where to.
    """

    def __init__(self, says: list[object], sender: Any) -> None:
        self._says, self._sender = says, sender

    def submit(self, *_: Any) -> Future[Any]:
        for message in self._says:
            self._sender.send(message)
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("terminated abruptly"))
        return future

    def shutdown(self, *, wait: bool) -> None:
        self._sender.close()


def events(says: list[object], monkeypatch: pytest.MonkeyPatch, *, tries: int) -> list[Told | Ended]:
    monkeypatch.setattr(
        workers,
        "ProcessPoolExecutor",
        lambda count, *, mp_context, initializer, initargs: Dying(says, initargs[0]),
    )
    monkeypatch.setattr(workers.os, "kill", lambda *_: None)
    found = work_in_processes(
        ["a", "b"], lambda *_: pytest.fail("none starts"), processes=1, threads=1, stopping=lambda: False,
        tries=tries,
    )  # fmt: skip
    return list(found)


@pytest.mark.parametrize("says", [[], [4711]])  # it cannot be imported; what prepares its work fails
def test_none_that_starts_is_no_fault_of_a_work(says: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(oes.OESError, match=r"expected processes that start, got .* if __name__"):
        events(says, monkeypatch, tries=3)


def test_one_that_had_started_is_the_work_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = events([4711, True], monkeypatch, tries=3)
    assert found == [Ended("a", died=True), Ended("b", died=True)]


@pytest.mark.parametrize("which", ["batch", "comparison"])
def test_an_error_of_who_is_told_ends_the_processes(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    def works(*_: Any, **__: Any) -> Iterator[Told]:
        try:
            yield Told("a step")
        finally:
            ended.append(True)

    def tell(message: object) -> None:
        raise oes.OutputError("disk full")

    monkeypatch.setattr(local if which == "batch" else comparison_workers, "work_in_processes", works)

    def follow() -> None:
        if which == "batch":
            next(local.outcomes(iter([]), batch.Options(), workers=2, stopping=lambda: False, tell=tell))
        else:
            options = comparison_run.Options(tmp_path)
            comparison_workers.run_in_processes(
                [], Settings(methods=("oes",)), options, tell, jobs=1, threads=1
            )

    with pytest.raises(oes.OutputError) as caught:  # kept, with its frames
        follow()
    assert (ended, str(caught.value)) == ([True], "disk full")


def test_a_worker_says_when_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(workers.torch, "set_num_threads", lambda _: None)
    prepared: list[object] = []
    sender = SimpleNamespace(send=said.append)
    worker = workers._Worker(sender, SimpleNamespace(value=0), lambda *_: prepared.extend(said) or len, 1)  # type: ignore[arg-type]
    assert (prepared, said, worker.do("four")) == ([os.getpid()], [os.getpid(), True], 4)
