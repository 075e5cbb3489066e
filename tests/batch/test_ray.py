"""Sets of images on Ray: what is asked of it, of a stand-in; real workers and commands that are killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import oes_fast as oes
from oes_fast.batch import Entry, Job, Options, Outcome, Settings, Step, ray_connection, ray_workers
from oes_fast.batch.entries import MANIFEST
from oes_fast.errors import OESError

COUNT = 100
SETTINGS = Settings()


class RayError(Exception):
    """As Ray's."""


ERRORS = {
    name: type(name, (RayError,), {})
    for name in (
        "TaskCancelledError", "RayTaskError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError",
        "ObjectLostError",
    )
}  # fmt: skip


class StandIn:
    """What of Ray is used, in this process: a task runs when its result is looked at.

    Attributes:
        resources: of the one machine.
        options: of the functions and classes that were made remote.
        cancelled: tasks that were.
        raises: what the next task raises.
    """

    def __init__(self) -> None:
        self.resources = {"CPU": 4.0, "GPU": 2.0}
        self.options: list[dict[str, Any]] = []
        self.cancelled: list[object] = []
        self.raises: Exception | None = None
        self.exceptions = SimpleNamespace(RayError=RayError, **ERRORS)
        self._tasks: dict[object, Callable[[], Any]] = {}

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}]

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options.append(options)
        return lambda target: SimpleNamespace(remote=partial(self._begin, target))

    def _begin(self, target: Any, *args: Any) -> Any:
        if isinstance(target, type):
            actor = target(*args)
            return SimpleNamespace(
                put=SimpleNamespace(remote=partial(self._begin, actor.put)),
                take=SimpleNamespace(remote=partial(self._begin, actor.take)),
            )
        task = object()
        self._tasks[task] = partial(target, *args)
        return task

    def wait(self, tasks: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[Any, Any]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        error, self.raises = self.raises, None
        if error is not None:
            raise error
        if task in self.cancelled:
            raise ERRORS["TaskCancelledError"]
        return self._tasks.pop(task)()

    def cancel(self, task: Any) -> None:
        self.cancelled.append(task)

    def get_gpu_ids(self) -> list[int]:
        return [3]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Ray's stand-in, with jobs that are done at once."""
    stand_in = StandIn()
    for module in (ray_connection, ray_workers):
        monkeypatch.setattr(module, "package", lambda: stand_in)
    monkeypatch.setattr(ray_workers, "run_job", lambda job, options: Outcome(job.name, "done"))
    return stand_in


def _at_once(begin: Callable[..., Any]) -> Callable[..., Any]:
    """Tasks of actors run when they are begun."""

    def call(self: StandIn, target: Any, *args: Any) -> Any:
        task = begin(self, target, *args)
        if getattr(target, "__name__", "") == "put":
            self._tasks.pop(task)()
        return task

    return call


def jobs(root: Path, count: int = COUNT, taken: list[int] | None = None) -> Iterator[Job]:
    root.joinpath(MANIFEST).touch()
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield Job(root, Entry(f"skimage:{number}", f"{number}"), SETTINGS)


def run(jobs: Iterator[Job], **options: Any) -> Iterator[Outcome]:
    given = {"address": "auto", "stopping": lambda: False, "tell": lambda step: None} | options
    return ray_workers.outcomes(jobs, given.pop("how", Options()), **given)


def test_each_job_has_one_outcome_and_few_are_taken_ahead(ray: StandIn, tmp_path: Path) -> None:
    taken: list[int] = []
    ended = []
    for outcome in run(jobs(tmp_path, taken=taken)):
        ended.append(outcome.name)
        assert len(taken) - len(ended) < 2 * ray.resources["CPU"]
    assert ended == [str(number) for number in range(COUNT)]
    assert {"num_cpus": 1, "num_gpus": 0, "max_retries": ray_workers._RETRIES} in ray.options


def test_more_are_taken_ahead_where_machines_join(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_SLOTS_SECONDS", 0.0)
    taken: list[int] = []
    ended = run(jobs(tmp_path, taken=taken), cpus=2)
    next(ended)
    assert len(taken) == 4
    ray.resources = {"CPU": 16.0}
    next(ended)
    assert len(taken) == 17


def test_stopping_cancels_what_was_submitted(ray: StandIn, tmp_path: Path) -> None:
    taken: list[int] = []
    ended: list[Outcome] = []
    for outcome in run(jobs(tmp_path, taken=taken), stopping=lambda: len(ended) == 3):
        ended.append(outcome)
    assert len(ended) == 3
    assert len(ray.cancelled) == len(taken) - 3 < 2 * ray.resources["CPU"]


def test_what_a_consumer_that_fails_leaves_is_cancelled(ray: StandIn, tmp_path: Path) -> None:
    ended = run(jobs(tmp_path))
    next(ended)
    ended.close()
    assert len(ray.cancelled) == 7


@pytest.mark.parametrize("name", ["WorkerCrashedError", "NodeDiedError", "OutOfMemoryError"])
def test_an_image_whose_workers_die_again_and_again_fails(ray: StandIn, tmp_path: Path, name: str) -> None:
    ray.raises = ERRORS[name]("one page")
    first, *others = run(jobs(tmp_path, 5))
    assert first == Outcome("0", "failed", failure=ray_workers._DIED)
    assert [outcome.state for outcome in others] == ["done"] * 4


def test_other_failures_of_ray_are_told(ray: StandIn, tmp_path: Path) -> None:
    ray.raises = ERRORS["ObjectLostError"]("it is\n lost")
    assert next(run(jobs(tmp_path))).failure == "ray: ObjectLostError: it is lost"


def test_an_error_of_a_worker_ends_the_set(ray: StandIn, tmp_path: Path) -> None:
    ray.raises = ERRORS["RayTaskError"]("Traceback\n  ...\nModuleNotFoundError: No module named 'oes_fast'\n")
    with pytest.raises(OESError, match="a worker failed at 0: ModuleNotFoundError: No module named"):
        next(run(jobs(tmp_path)))
    assert len(ray.cancelled) == 7


def test_steps_are_passed_on(ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Job, options: Options) -> Outcome:
        for step in (1, 2):  # so soon after the first, the second is not told
            options.report(Step(job.name, "train", step, 9, 0.5, None))
        return Outcome(job.name, "done")

    monkeypatch.setattr(ray_workers, "run_job", run_job)
    monkeypatch.setattr(StandIn, "_begin", _at_once(StandIn._begin))
    monkeypatch.setattr(ray_workers, "_STEP_SECONDS", 0.2)
    told: list[Step] = []
    for _ in run(jobs(tmp_path, 3), tell=told.append):
        monkeypatch.setattr(ray_workers, "_STEP_SECONDS", 0.0)
    assert told


def test_a_worker_that_does_not_see_the_folder_ends_the_set(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_SEEN_SECONDS", 0.0)
    ended = run(jobs(tmp_path, 20))
    next(ended)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(OESError, match=rf"expected folders that all machines share, but .*/{MANIFEST}$"):
        list(ended)


def test_a_worker_of_another_version_ends_the_set(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = run(jobs(tmp_path, 20))
    next(ended)
    monkeypatch.setattr(ray_workers, "__version__", "0.0.7")
    with pytest.raises(OESError, match=r"expected oes_fast .* on all machines, as here, got 0\.0\.7 for"):
        list(ended)


def test_a_missing_image_is_its_own_failure(ray: StandIn, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    (tmp_path / "there.png").touch()
    job = Job(tmp_path, Entry(str(tmp_path / "gone.png"), "gone", str(tmp_path / "there.png")), SETTINGS)
    assert ray_workers._seen(job) == [tmp_path / MANIFEST, tmp_path / "there.png"]


def test_no_machine_has_room(ray: StandIn, tmp_path: Path) -> None:
    with pytest.raises(
        OESError,
        match="with 8 CPUs and 0 GPUs for each image in the cluster auto, got machines "
        "with 4 CPUs and 2 GPUs",
    ):
        next(run(jobs(tmp_path), cpus=8))
    ray.resources = {}  # a head whose workers are to come
    assert len(list(run(jobs(tmp_path, 3)))) == 3


def test_a_gpu_is_that_which_ray_gives(ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def run_job(job: Job, options: Options) -> Outcome:
        used.append(options.device)
        return Outcome(job.name, "done")

    monkeypatch.setattr(ray_workers, "run_job", run_job)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    list(run(jobs(tmp_path, 1), gpus=0.5))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")  # of which number 3 is PyTorch's number 1
    list(run(jobs(tmp_path, 1), gpus=1))
    assert used == ["cuda:3", "cuda:3", "cuda:1", "cuda:1"]
    more = {"max_calls": 0, "runtime_env": ray_workers._ALL_GPUS}
    assert ray.options[0] == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 20, **more}
    with pytest.raises(oes.InputError, match="gpus: expected a number above 0 with device cuda, got 0"):
        next(run(jobs(tmp_path), how=Options(device="cuda")))


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OESError, match=r'ray: expected .*, found none; pip install "oes_fast\[ray\]"'):
        next(run(jobs(tmp_path)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999"])
def test_no_cluster_there(ray: StandIn, address: str) -> None:
    with pytest.raises(OESError, match=f"expected the address of a Ray cluster, HOST:PORT, got {address}: "):
        ray_connection._check_reachable(address)


# From here on with Ray itself.


@pytest.fixture(scope="module")
def on_a_cluster() -> Iterator[Way]:
    """A cluster of one worker."""
    pytest.importorskip("ray", reason="ray is not installed")
    with on_ray(workers=1) as way:
        yield way


@pytest.mark.slow
def test_killed_workers_and_commands(
    on_a_cluster: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed, then the command, then all goes on in this process: as without kills."""
    images, peace, out = (tmp_path / name for name in ("images", "peace", "out"))
    make_images(images, 3)
    command = [*map(str, command_for(images, out, steps=600)), *on_a_cluster.words]
    for name, value in on_a_cluster.variables.items():
        monkeypatch.setenv(name, value)
    process = subprocess.Popen(command, start_new_session=True)
    try:
        for victim in ("worker", "command"):
            seen = _checkpoint_after(out, seen=None if victim == "worker" else seen, process=process)
            on_a_cluster.kill(victim, on_a_cluster.victims(process.pid)[victim][0])
    finally:
        process.kill()
        process.wait()
