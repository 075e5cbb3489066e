"""Jobs on this machine: one after another in this process, or several at once in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from oes_fast.batch.job import Job, Options, Outcome, Step, Stopped
from oes_fast.batch.run import run_job


def outcomes(
    jobs: Iterator[Job],
    options: Options,
    *,
    workers: int = 1,
    threads: int | None = None,
    stopping: Callable[[], bool],
    tell: Callable[[Step], None],
) -> Iterator[Outcome]:
    """Run jobs, and give the outcome of each as it ends; no order is promised.

    Jobs are taken from ``jobs`` as there is somebody to run them, a few ahead at most. A job that was stopped
    has no outcome.

    Args:
        jobs: any number.
        options: how to run; its ``stopping`` and ``report`` are replaced.
        workers: jobs at once.
        threads: CPU threads of each, None for what torch has.
        stopping: asked now and then; true ends the jobs that run after the update under way, and no other
            begins.
        tell: is given each step that is told of.
    """
    options = replace(options, stopping=stopping, report=tell)
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for job in jobs:
            if stopping():
                return
            try:
                outcome = run_job(job, options)
            except Stopped:
                return
            yield outcome
    finally:
        torch.set_num_threads(before)
