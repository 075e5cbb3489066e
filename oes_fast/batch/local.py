"""Jobs on this machine: one after another in this process, or several at once in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch

from oes_fast.batch.job import FAILED, Job, MaskSearch, Options, Outcome, Step, Stopped, ignore, never
from oes_fast.batch.run import leave_if_broken, run_job
from oes_fast.workers import Told, work_in_processes

TRIES = 5  # for an image whose process is killed: it goes on from its checkpoint
DIED = f"its process was killed {TRIES} times, by lack of memory perhaps: fewer --workers need less"


def outcomes(
    jobs: Iterator[Job | MaskSearch],
    options: Options,
    *,
    workers: int = 1,
    threads: int | None = None,
    stopping: Callable[[], bool],
    tell: Callable[[Step], None],
) -> Iterator[Outcome]:
    """Run jobs, and give the outcome of each as it ends; no order is promised.

    A job is taken from ``jobs`` when there is somebody to run it. A job that was stopped has no outcome.

    Args:
        jobs: any number.
        options: how to run; its ``stopping`` and ``report`` are replaced.
        workers: jobs at once, each in a process of its own where there is more than one.
        threads: CPU threads of each; None for what torch has, and with several workers for one.
        stopping: asked now and then; true ends the jobs that run after the update under way, and no other
            begins.
        tell: is given each step that is told of.
    """
    if workers == 1:
        return _here(jobs, replace(options, stopping=stopping, report=tell), threads)
    return _in_processes(jobs, options, workers, threads or 1, stopping, tell)


def _here(jobs: Iterator[Job | MaskSearch], options: Options, threads: int | None) -> Iterator[Outcome]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for job in jobs:
            outcome = _stoppable(job, options)
            if outcome is None:
                return
            yield outcome
            if options.stopping():
                return
    finally:
        torch.set_num_threads(before)


def _in_processes(
    jobs: Iterator[Job | MaskSearch],
    options: Options,
    workers: int,
    threads: int,
    stopping: Callable[[], bool],
    tell: Callable[[Step], None],
) -> Iterator[Outcome]:
    plain = replace(options, stopping=never, report=ignore, workers=workers)
    events = work_in_processes(
        jobs, partial(_prepare, plain), processes=workers, threads=threads, stopping=stopping, tries=TRIES
    )
    with closing(events):
        for event in events:
            if isinstance(event, Told):
                tell(event.message)
            elif event.result is not None:
                yield event.result
            elif event.died and not event.stopping:
                yield Outcome(event.work.name, FAILED, failure=DIED)


def _prepare(
    options: Options, tell: Callable[[Step], None], stopping: Callable[[], bool]
) -> Callable[[Job | MaskSearch], Outcome | None]:
    """What runs a job in a process."""
    return partial(_replaceable, options=replace(options, stopping=stopping, report=tell))


def _stoppable(job: Job | MaskSearch, options: Options) -> Outcome | None:
    """The outcome of a job, None where it was stopped."""
    if options.stopping():
        return None
    try:
        return run_job(job, options)
    except Stopped:
        return None


def _replaceable(job: Job | MaskSearch, options: Options) -> Outcome | None:
    """As :func:`_stoppable`, in a process that is begun anew when it ends."""
    outcome = _stoppable(job, options)
    leave_if_broken(outcome)
    return outcome
