"""Jobs on the machines of a Ray cluster, or on this one by Ray.

Ray schedules: every job is a task that asks for so many CPUs and GPUs, and a task whose worker or machine
dies is run again elsewhere. What it had done is in the folder of results, which all machines see. The lock of
a job ends with its process, so a task that is run again waits for one that is not quite dead yet.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from oes_fast.backends import AUTO, backends
from oes_fast.batch.entries import MANIFEST
from oes_fast.batch.job import FAILED, Job, MaskSearch, Options, Outcome, Step, Stopped, ignore, never
from oes_fast.batch.ray_connection import check_room, connected, package
from oes_fast.batch.run import leave_if_broken, run_job
from oes_fast.errors import InputError, OESError, one_line
from oes_fast.version import __version__
from oes_fast.workers import LONGEST

_POLL_SECONDS = 0.2
_STEP_SECONDS = 2.0  # from one step that a worker tells to its next
_END_SECONDS = 120.0  # that tasks have to write their checkpoints when the set is stopped
_SEEN_SECONDS = 30.0  # until a file that one machine wrote must be there on another (NFS keeps names a while)
_SLOTS_SECONDS = 5.0  # from one count of the cluster's CPUs and GPUs to the next
_RETRIES = 20  # after so many deaths of its workers a job is taken to be what kills them
_DIED = (
    f"its worker died {_RETRIES + 1} times, by lack of memory perhaps: with more CPUs for each image, fewer "
    "share it"
)
# Ray would let each task see its GPUs alone, by a variable that CUDA reads once, so that a process could
# serve no second task; and would end the process with the task, to start Python, PyTorch and CUDA anew.
_ALL_GPUS = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}


@dataclass(frozen=True)
class _Place:
    """What a worker must be, and how it runs a task.

    Attributes:
        version: of oes_fast.
        threads: CPU threads of the task.
        gpu: whether it runs on the GPU that Ray gives it.
    """

    version: str
    threads: int
    gpu: bool


@dataclass(frozen=True)
class _Misplaced:
    """A worker cannot work for this driver, for a reason that is none of the image's."""

    why: str


def outcomes(
    jobs: Iterator[Job | MaskSearch],
    options: Options,
    *,
    address: str,
    cpus: float = 1,
    gpus: float = 0,
    stopping: Callable[[], bool],
    tell: Callable[[Step], None],
) -> Iterator[Outcome]:
    """Run jobs on a Ray cluster, and give the outcome of each as it ends; no order is promised.

    About two jobs for each that can run are taken from ``jobs`` ahead, whatever their number. A job that was
    stopped has no outcome.

    When ``stopping`` says so, and at a KeyboardInterrupt, jobs end after the update under way with their
    checkpoints. A second KeyboardInterrupt is passed on, and Ray kills what still runs, as it does where this
    process dies.

    Args:
        jobs: any number, below one folder of results. All machines must see it, and the images, under the
            same names.
        options: how to run; its ``stopping`` and ``report`` are replaced.
        address: see :func:`connected`, which may be entered before, for several calls.
        cpus: that each job takes, of those that each machine was said to have; as many threads, at least 1.
        gpus: that each job takes, to run on a GPU; a share such as 0.5 lets two jobs have one.
        stopping: asked all the time; true ends the jobs.
        tell: is given each :class:`Step`, those of a job a few seconds apart.

    Raises:
        InputError: ``options.device`` is a GPU, and ``gpus`` is 0.
        OESError: Ray is not installed, the cluster cannot be reached, has no machine with so many CPUs and
            GPUs, or one of its machines does not see the folder or has another version of oes_fast.
    """
    if options.device != "cpu" and not gpus:
        raise InputError(f"gpus: expected a number above 0 with device {options.device}, got {gpus:g}")
    ray = package()
    with connected(address):
        check_room(ray, address, cpus, gpus)
        place = _Place(__version__, max(1, int(cpus)), gpus > 0)
        yield from _Run(ray, options, place, cpus, gpus).outcomes(jobs, stopping, tell)


class _Inbox:
    """An actor that keeps the newest step of each job until the driver takes it."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    def put(self, step: Step) -> None:
        """Keep a step."""
        self._steps[step.name] = step

    def take(self) -> list[Step]:
        """What was put since the last time."""
        steps, self._steps = self._steps, {}
        return list(steps.values())


class _Run:
    """What the driver has on the cluster.

    Args:
        ray: the package.
        options: how to run.
        place: what workers must be.
        cpus: of each task.
        gpus: of each task.
    """

    def __init__(self, ray: Any, options: Options, place: _Place, cpus: float, gpus: float) -> None:
        self._ray = ray
        self._cpus, self._gpus = cpus, gpus
        takes: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _RETRIES}
        if gpus:
            takes |= {"max_calls": 0, "runtime_env": _ALL_GPUS}
        self._task = ray.remote(**takes)(_work)
        # It is lost with its machine, and with it some steps; results do not pass through it.
        self._inbox = ray.remote(num_cpus=0, max_restarts=-1)(_Inbox).remote()
        self._taking: Any = None
        self._take_at = 0.0
        share = max(1, int(1 / gpus)) if gpus else 1  # tasks on one GPU
        # The functions of this process cannot be pickled.
        plain = replace(options, stopping=never, report=ignore, workers=share)
        self._shared = ray.put((plain, place))
        self._pending: dict[Any, Job | MaskSearch] = {}
        self._stopped = False
        self._room, self._room_until = 1, 0.0

    def outcomes(
        self, jobs: Iterator[Job | MaskSearch], stopping: Callable[[], bool], tell: Callable[[Step], None]
    ) -> Iterator[Outcome]:
        """See :func:`outcomes` of the module."""
        more = True
        try:
            while True:
                try:
                    if not self._stopped and stopping():
                        raise KeyboardInterrupt
                    while more and not self._stopped and len(self._pending) < self._ahead():
                        job = next(jobs, None)
                        more = job is not None
                        if job is not None:
                            task = self._task.remote(job, _seen(job), self._shared, self._inbox)
                            self._pending[task] = job
                    if not self._pending:
                        return
                    ended = self._ended()
                    self._pass_on(tell)
                except KeyboardInterrupt:
                    if self._stopped:
                        raise
                    self._stopped = True
                    end = time.monotonic() + _END_SECONDS
                    self._cancel()
                    continue
                yield from ended
                if self._stopped and time.monotonic() > end:
                    return
        finally:
            self._cancel()
            if self._pending and not self._stopped:  # an error of one: checkpoints of the others
                self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=_END_SECONDS)

    def _ahead(self) -> int:
        """Number of tasks to have submitted: those that can run, and as many that wait for a worker.

        The cluster is counted every few seconds, as machines come and go.
        """
        now = time.monotonic()
        if now >= self._room_until:
            self._room_until = now + _SLOTS_SECONDS
            found = self._ray.cluster_resources()
            slots = found.get("CPU", 0.0) / self._cpus if self._cpus else float("inf")
            if self._gpus:
                slots = min(slots, found.get("GPU", 0.0) / self._gpus)
            self._room = 2 * max(1, int(min(slots, 2**16)))
        return self._room

    def _ended(self) -> list[Outcome]:
        """Outcomes of the tasks that have ended, after a moment if none has."""
        pending = list(self._pending)
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=_POLL_SECONDS)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        found = []
        for task in ready:
            outcome = self._outcome(task, self._pending.pop(task))
            if outcome is not None:
                found.append(outcome)
        return found

    def _outcome(self, task: Any, job: Job | MaskSearch) -> Outcome | None:
        errors = self._ray.exceptions
        try:
            got = self._ray.get(task)
        except errors.TaskCancelledError:
            return None
        except errors.RayTaskError as error:  # OES_FAST_DEBUG, or the worker has no oes_fast
            if self._stopped:  # by SIGINT between two lines of Ray's own
                return None
            raise OESError(f"ray: a worker failed at {job.name}: {_last_line(error)}") from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            return Outcome(job.name, FAILED, failure=_DIED)
        except errors.RayError as error:  # the cluster's fault, and no image's
            raise OESError(f"ray: {type(error).__name__}: {one_line(error)}"[:LONGEST]) from error
        if isinstance(got, _Misplaced):
            raise OESError(f"ray: {got.why}")
        return got

    def _pass_on(self, tell: Callable[[Step], None]) -> None:
        """Tell the steps that have come, and ask for more from time to time."""
        if self._taking is not None:
            ready, _ = self._ray.wait([self._taking], timeout=0)
            if not ready:
                return
            taking, self._taking = self._taking, None
            with suppress(self._ray.exceptions.RayError):  # its machine is gone; it begins anew elsewhere
                alive = {job.name for job in self._pending.values()}
                for step in self._ray.get(taking):
                    if step.name in alive:  # else its outcome came first
                        tell(step)
        if time.monotonic() >= self._take_at:
            self._take_at = time.monotonic() + _STEP_SECONDS / 4
            self._taking = self._inbox.take.remote()

    def _cancel(self) -> None:
        """Tell the tasks to stop: those that run get SIGINT, those that wait never start."""
        for task in self._pending:
            with suppress(self._ray.exceptions.RayError, RuntimeError):
                self._ray.cancel(task)


def _seen(job: Job | MaskSearch) -> list[Path]:
    """What a worker must see to run a job, as this machine does; a bad entry of the list fails by itself."""
    entries = [job.entry] if isinstance(job, Job) else job.entries
    files = [path for entry in entries for path in (entry.source, entry.clean) if path is not None]
    # Only the folder that the driver writes to has a manifest: a worker without makes a folder of its own.
    return [path for path in (job.root / MANIFEST, *map(Path, files)) if os.path.exists(path)]


def _work(
    job: Job | MaskSearch, seen: list[Path], shared: tuple[Options, _Place], inbox: Any
) -> Outcome | _Misplaced | None:
    """Run a job in a worker; None where it was stopped."""
    import torch

    options, place = shared
    why = _unfit(seen, place, job.settings.backend)
    if why:
        return _Misplaced(why)
    torch.set_num_threads(place.threads)
    if place.gpu:
        options = replace(options, device=_own_gpu())
        torch.cuda.set_device(options.device)
    else:
        options = replace(options, workers=max(1, (os.cpu_count() or 1) // place.threads))
    told_at = 0.0

    def report(step: Step) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= _STEP_SECONDS:
            told_at = now
            inbox.put.remote(step)

    with _cancelled() as stopping:
        try:
            outcome = run_job(job, replace(options, stopping=stopping, report=report))
            leave_if_broken(outcome)
            return outcome
        except Stopped:
            return None
        finally:
            if torch.cuda.is_initialized():  # the next task of this GPU may be another process's
                torch.cuda.empty_cache()


@contextmanager
def _cancelled() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ray has cancelled the task, which it does by SIGINT.

    Without a handler of ours it would raise KeyboardInterrupt anywhere.
    """
    asked = False

    def note(number: int, frame: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        # Where Ray was begun in the background, SIGINT is ignored, and Ray would call that as a function.
        signal.signal(signal.SIGINT, before if callable(before) else signal.default_int_handler)


def _own_gpu() -> str:
    """The device of this process that is the first GPU Ray has given the task."""
    (number, *_) = package().get_gpu_ids()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "")  # what "ray start" was given
    return f"cuda:{visible.split(',').index(str(number)) if visible else number}"


def _unfit(seen: list[Path], place: _Place, backend: str) -> str | None:
    """Why this process cannot work for the driver; None where it can."""
    here = f"the worker on {socket.gethostname()}"
    if place.version != __version__:
        return f"expected oes_fast {place.version} on all machines, as here, got {__version__} for {here}"
    if backend != AUTO and not (status := backends()[backend]).available:
        return f"expected backend {backend} on all machines, but it cannot run for {here}: {status.reason}"
    end = time.monotonic() + _SEEN_SECONDS
    for path in seen:
        while not os.path.exists(path):  # that of Path raises, as for a name that is too long
            if time.monotonic() > end:
                return f"expected folders that all machines share, but {here} does not see {path}"
            time.sleep(_POLL_SECONDS)
    return None


def _last_line(error: BaseException) -> str:
    """What a traceback ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
