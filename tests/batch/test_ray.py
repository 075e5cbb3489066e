"""Sets of images on Ray: what is asked of it, of a stand-in; real workers and commands that are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_runs import fails
from cli_runs import run as cli

import oes_fast as oes
from benchmarks.batch_kills import command_for, differences, make_images, on_ray
from oes_fast.backends import BackendStatus
from oes_fast.batch import (
    Entry,
    Job,
    Options,
    Outcome,
    Settings,
    Step,
    arguments,
    ray_connection,
    ray_workers,
    restore_all,
)
from oes_fast.batch import run as batch_run
from oes_fast.batch.entries import MANIFEST
from oes_fast.cli import settings as cli_settings
from oes_fast.cli.ray_options import ray_device
from oes_fast.errors import OESError
from oes_fast.io.locks import FileLock

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


def test_errors_of_tasks_that_were_stopped_are_no_errors(ray: StandIn, tmp_path: Path) -> None:
    ended: list[Outcome] = []
    for outcome in run(jobs(tmp_path), stopping=lambda: len(ended) == 3):
        ended.append(outcome)
        if len(ended) == 3:
            ray.raises = ERRORS["RayTaskError"]("TypeError: 'Handlers' object is not callable")
    assert len(ended) == 3


def test_a_worker_that_ignored_ctrl_c_can_be_stopped_after_its_first_task() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ray_workers._cancelled() as stopping:
            assert not stopping()
            signal.raise_signal(signal.SIGINT)
            assert stopping()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


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


def test_other_failures_of_ray_are_no_image_s(ray: StandIn, tmp_path: Path) -> None:
    ray.raises = ERRORS["ObjectLostError"]("it is\n lost")
    with pytest.raises(OESError, match=r"^ray: ObjectLostError: it is lost$"):
        next(run(jobs(tmp_path)))
    assert len(ray.cancelled) == 7


def test_an_error_of_a_worker_ends_the_set(ray: StandIn, tmp_path: Path) -> None:
    ray.raises = ERRORS["RayTaskError"]("Traceback\n  ...\nModuleNotFoundError: No module named 'oes_fast'\n")
    with pytest.raises(OESError, match="a worker failed at 0: ModuleNotFoundError: No module named"):
        next(run(jobs(tmp_path)))
    assert len(ray.cancelled) == 7


def test_steps_are_passed_on(ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Job, options: Options) -> Outcome:
        for step in (1, 2):  # so soon after the first, the second is not told
            options.report(Step("2", "train", step, 9, 0.5, None))  # of the last, under way meanwhile
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


def test_a_worker_without_the_backend_ends_the_set(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = BackendStatus(False, "PyTorch finds no GPU")
    monkeypatch.setattr(ray_workers, "backends", lambda: {"cuda": here})
    tmp_path.joinpath(MANIFEST).touch()
    job = Job(tmp_path, Entry("skimage:camera", "a"), Settings(backend="cuda"))
    with pytest.raises(
        OESError, match=r"expected backend cuda on all machines, but .*: PyTorch finds no GPU"
    ):
        next(run(iter([job])))


def test_a_worker_whose_gpu_is_lost_ends(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(BaseException):
        """In the place of the end of the process."""

    def leave(code: int) -> None:
        raise Gone

    lost = Outcome("0", "failed", failure="CUDA error: unspecified launch failure", broken=True)
    monkeypatch.setattr(ray_workers, "run_job", lambda *_: lost)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Gone):
        next(run(jobs(tmp_path)))


def test_the_backend_of_a_cluster_is_not_that_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engine(jobs: Iterator[Job], *_: Any, **__: Any) -> Iterator[Outcome]:
        return (Outcome(job.name, "done") for job in jobs)

    none = {"cuda": BackendStatus(False, "PyTorch finds no GPU")}
    for module in (arguments, cli_settings):
        monkeypatch.setattr(module, "backends", lambda: none)
    assert cli_settings.find_backend("cuda", here=False) == "cuda"
    with pytest.raises(oes.BackendError, match="cuda cannot run here: PyTorch finds no GPU"):
        cli_settings.find_backend("cuda")
    wanted, source = Settings(backend="cuda", search="each"), ["skimage:camera"]
    with pytest.raises(oes.BackendError, match="cuda cannot run here: PyTorch finds no GPU"):
        restore_all(source, tmp_path / "here", wanted)
    assert restore_all(source, tmp_path / "there", wanted, engine=engine).counts["done"] == 1


def test_a_missing_image_is_its_own_failure(ray: StandIn, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    (tmp_path / "there.png").touch()
    job = Job(tmp_path, Entry(str(tmp_path / "gone.png"), "gone", str(tmp_path / "there.png")), SETTINGS)
    assert ray_workers._seen(job) == [tmp_path / MANIFEST, tmp_path / "there.png"]


def test_a_name_that_no_file_can_have_is_for_its_job_to_refuse(
    ray: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "_SEEN_SECONDS", 0.0)
    (tmp_path / MANIFEST).touch()
    job = Job(tmp_path, Entry(f"/{'x' * 300}.png", "a"), SETTINGS)
    assert [outcome.name for outcome in run(iter([job]))] == ["a"]
    assert ray_workers._unfit([Path(job.entry.source)], ray_workers._Place(oes.__version__, 1, False), "auto")


def test_steps_of_an_image_that_has_ended_are_not_told(ray: StandIn, tmp_path: Path) -> None:
    told: list[Step] = []
    whole = ray_workers._Run(ray, Options(), ray_workers._Place("", 1, False), 1, 0)
    whole._pending = {object(): Job(tmp_path, Entry("/b.png", "b"), SETTINGS)}
    for name in ("a", "b"):
        ray.get(whole._inbox.put.remote(Step(name, "train", 1, 9, 0.5, None)))
    whole._pass_on(told.append)
    whole._pass_on(told.append)
    assert [step.name for step in told] == ["b"]


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


def test_a_lock_that_nobody_works_under_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file server may keep that of a machine that has died."""
    (job,) = jobs(tmp_path, 1)
    job.work.mkdir(parents=True)
    checkpoint = job.work / "train.ckpt"
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(len(looks))
        if len(looks) < 5:  # somebody does, so far
            checkpoint.write_text("step")
            os.utime(checkpoint, (len(looks), len(looks)))

    held = FileLock(job.work.with_name(f"{job.work.name}.lock"))
    clock = iter(range(0, 100_000, 500))
    monkeypatch.setattr(batch_run, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=sleep))
    outcome = batch_run.run_job(job, Options())
    held.release()
    assert len(looks) == 5  # without its signs of life it would be 1
    assert outcome.state == "failed"
    assert not outcome.fatal
    assert "has written nothing for 15 minutes; the file server may keep the lock" in (outcome.failure or "")
    assert checkpoint.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999"])
def test_no_cluster_there(ray: StandIn, address: str) -> None:
    with pytest.raises(OESError, match=f"expected the address of a Ray cluster, HOST:PORT, got {address}: "):
        ray_connection._check_reachable(address)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ray-cpus", 2), "--ray-cpus: expected --ray beside it, got 2 alone"),
        (("--ray-gpus", 1), "--ray-gpus: expected --ray beside it, got 1 alone"),
        (
            ("--ray", "auto", "--workers", 2),
            "--workers: expected --ray-cpus in its place beside --ray, got 2",
        ),
        (
            ("--ray", "auto", "--threads", 2),
            "--threads: expected --ray-cpus in its place beside --ray, got 2",
        ),
        (("--ray", "auto", "--ray-cpus", 0), "--ray-cpus: expected a finite number > 0.0, got 0.0"),
        (("--ray", "auto", "--ray-gpus", 2), "--ray-gpus: expected 0 to 1 with --device auto, got 2"),
        (("--ray", "auto", "--ray-gpus", 1, "--device", "cpu"), "--ray-gpus: expected 0 with --device cpu"),
        (
            ("--ray", "auto", "--ray-gpus", 0, "--device", "cuda"),
            "--ray-gpus: expected more than 0 and at most 1",
        ),
        (("--ray", "auto", "--device", "cuda:1"), "--device: expected auto, cpu or cuda beside --ray"),
        (
            ("--ray", "127.0.0.1:1"),
            "ray: expected the address of a Ray cluster, HOST:PORT, got 127.0.0.1:1: ",
        ),
    ],
)
def test_options_that_do_not_fit(
    ray: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert said in fails(capsys, "batch", "skimage:camera", "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_the_gpus_of_a_cluster_are_not_those_of_this_machine() -> None:
    assert ray_device("auto", None, "auto") == ("cpu", 0.0)
    assert ray_device("auto", None, "cuda") == ("cuda", 1.0)
    assert ray_device("auto", 0.5, "auto") == ("cuda", 0.5)


@pytest.mark.slow
def test_killed_workers_and_commands(tmp_path: Path) -> None:
    """With Ray itself: a worker is killed, then the command; it is given again, and all is as in peace."""
    pytest.importorskip("ray", reason="ray is not installed")
    images, peace, out = (tmp_path / name for name in ("images", "peace", "out"))
    make_images(images, 2)
    out.mkdir()
    with on_ray(workers=0) as way:
        assert cli(*command_for(images, peace, steps=400)[3:], "--threads", 1) == 0
        for path in peace.glob("batch_mask_*"):  # as if they had been searched already
            shutil.copy(path, out)
        command = [*map(str, command_for(images, out, steps=400)), *way.words]
        process = subprocess.Popen(command, env=os.environ | way.variables)
        try:
            for victim in ("worker", "command"):
                _wait_for_a_checkpoint(out, process)
                for pid in way.victims(process.pid)[victim]:
                    way.kill(victim, pid)
        finally:
            process.kill()
            process.wait()
        subprocess.run(command, env=os.environ | way.variables, check=True)
    assert differences(out, peace) == []


def _wait_for_a_checkpoint(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for one that is written from now on."""
    began, deadline = time.time(), time.monotonic() + 300
    while not any(_changed(path) > began for path in out.glob(".oes-unfinished/*/train.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _changed(path: Path) -> float:
    with suppress(FileNotFoundError):  # the image is done
        return path.stat().st_mtime
    return 0.0
