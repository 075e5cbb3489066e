"""A run that was killed or stopped goes on from its checkpoint and ends where an uninterrupted one ends."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import REPO, skip_unless_available
from torch import nn

import oes_fast as oes
from oes_fast.io.files import load_tensors, save_tensors
from oes_fast.pipelines import checkpoint as checkpoints
from oes_fast.pipelines import signals

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

BOTH = pytest.mark.parametrize("run", ["search", "train"])
IMPORTED_FROM = os.pathsep.join(str(REPO / "tests" / folder) for folder in ("", "helpers", "pipelines"))


def start(run, problem, path=None, **changes):
    """One of the pipelines that saves before every step."""
    net, mask, z, noisy, clean = (changes.pop(k, v) for k, v in problem._asdict().items())
    options = {
        "steps": 20, "clean": clean, "backend": "reference", "record_every": 3, "checkpoint": path,
        "checkpoint_seconds": 0.0,
    } | changes  # fmt: skip
    if run == "search":
        return oes.search_mask(net, z, noisy, **({"density": 0.3, "kl": 1e-4} | options))
    return oes.train_sparse(net, mask, z, noisy, **({"average": 0.9} | options))


def assert_same(run, first, second):
    """Bit for bit."""
    assert first.steps == second.steps
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.history.rows.nan_to_num(-1), second.history.rows.nan_to_num(-1))
    if run == "search":
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.mask.flat, second.mask.flat)
        assert first.mask.settings == second.mask.settings
    else:
        assert torch.equal(first.average, second.average)
        for (name, a), b in zip(
            first.net.state_dict().items(), second.net.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name


def stop_at(step):
    return lambda info: info.step == step


CHILD = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import torch
torch.set_num_threads(int(sys.argv[4]))
import conftest, test_checkpoint
problem = conftest.build_problem(dtype=torch.float32)
tell = lambda info: print(info.step, flush=True)
test_checkpoint.start(sys.argv[2], problem, sys.argv[3], steps=10**6, callback=tell)
"""


def test_killed_at_any_moment(make_problem, tmp_path):
    run = "search"  # the loop and the writing of checkpoints are those of a training
    path = tmp_path / "checkpoint"
    arguments = [sys.executable, "-c", CHILD, IMPORTED_FROM, run, str(path), str(torch.get_num_threads())]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=REPO) as child:
        for line in child.stdout:
            if int(line) >= 7:
                break
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL

    saved = load_tensors(path)[1]["step"]
    assert saved >= 7
    problem, seen = make_problem(dtype=torch.float32), []
    steps = saved + 8
    resumed = start(run, problem, path, steps=steps, resume=True, callback=lambda i: seen.append(i.step))
    assert seen == list(range(saved, steps + 1))
    assert_same(run, resumed, start(run, problem, steps=steps))


@BOTH
@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", torch.float64), ("torch", torch.float64), ("cpu", torch.float32)]
)
def test_stopped_by_the_callback(make_problem, run, dtype, backend, tmp_path):
    skip_unless_available(backend)
    problem = make_problem(dtype=dtype)
    path = tmp_path / "checkpoint"
    options = {"backend": backend, "steps": 12}
    stopped = start(run, problem, path, callback=stop_at(3), **options)
    assert stopped.interrupted
    again = start(run, problem, path, resume=True, callback=stop_at(6), **options)  # twice
    assert (again.steps, again.interrupted) == (7, True)
    whole = start(run, problem, **options)
    assert_same(run, start(run, problem, path, resume=True, **options), whole)
    assert_same(run, start(run, problem, path, resume=True, **options), whole)  # nothing left to do


@BOTH
def test_extended_to_more_steps(problem, run, tmp_path):
    path = tmp_path / "checkpoint"
    start(run, problem, path, steps=7)
    assert_same(run, start(run, problem, path, steps=20, resume=True), start(run, problem))


@BOTH
def test_a_checkpoint_beyond_the_steps_asked_for(problem, run, tmp_path):
    path = tmp_path / "checkpoint"
    start(run, problem, path, steps=7)
    before = path.read_bytes()
    with pytest.raises(oes.CheckpointError, match=r"7.*5|5.*7"):
        start(run, problem, path, steps=5, resume=True)
    assert path.read_bytes() == before


@BOTH
def test_the_last_checkpoint_may_be_older_than_the_kill(problem, run, tmp_path):
    path, copy = tmp_path / "checkpoint", tmp_path / "copy"

    def keep_the_one_of_step_5(info):
        if info.step == 5:
            copy.write_bytes(path.read_bytes())

    whole = start(run, problem, path, callback=keep_the_one_of_step_5)
    assert_same(run, start(run, problem, copy, resume=True), whole)


@BOTH
def test_without_resume_an_unfinished_run_is_set_aside(problem, run, tmp_path):
    path, old, seen = tmp_path / "run.ckpt", tmp_path / "run.old.ckpt", []
    start(run, problem, path, steps=20, callback=stop_at(5))
    stopped = path.read_bytes()
    said = r"run\.ckpt: the checkpoint of step 6 of an unfinished run, set aside as .*run\.old\.ckpt: without"
    with pytest.warns(oes.CheckpointWarning, match=said) as warned:
        start(run, problem, path, steps=3, callback=lambda i: seen.append(i.step))
    assert {each.filename for each in warned if each.category is oes.CheckpointWarning} == {__file__}
    assert seen == [0, 1, 2, 3]
    assert old.read_bytes() == stopped
    assert_same(run, start(run, problem, old, resume=True), start(run, problem))


@BOTH
def test_without_resume_a_finished_run_is_overwritten(problem, run, tmp_path, recwarn):
    path, seen = tmp_path / "checkpoint", []
    start(run, problem, path, steps=2)
    start(run, problem, path, steps=3, callback=lambda i: seen.append(i.step))
    assert seen == [0, 1, 2, 3]
    start(run, problem, tmp_path / "none yet", steps=1, resume=True, callback=lambda i: seen.append(i.step))
    assert seen[4:] == [0, 1]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checkpoint", "none yet"]
    assert not [each for each in recwarn if each.category is oes.CheckpointWarning]


def test_files_of_others_are_set_aside(problem, tmp_path):
    """Also one that holds no number of steps, as older checkpoints, and a second and a third."""
    path = tmp_path / "run.ckpt"
    start("train", problem, path, steps=1)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {key: value for key, value in metadata.items() if key != "steps"})
    with pytest.warns(oes.CheckpointWarning, match="step 1 of an unfinished run, set aside as"):
        start("train", problem, path, steps=1)
    for number, write in enumerate((problem.mask.save, lambda path: path.write_bytes(b"no checkpoint")), 2):
        write(path)
        kept = path.read_bytes()
        with pytest.warns(oes.CheckpointWarning, match=r"ckpt: no checkpoint that can be read, set aside as"):
            start("train", problem, path, steps=1)
        assert (tmp_path / f"run.old{number}.ckpt").read_bytes() == kept


def test_saves_are_as_far_apart_as_asked(problem, tmp_path):
    path, times = tmp_path / "checkpoint", []
    start("train", problem, path, checkpoint_seconds=1e9, callback=lambda i: times.append(path.exists()))
    assert times == [False] * 20 + [True]


# Ctrl-C


def interrupt_at(*steps):
    def callback(info):
        if info.step in steps:
            signal.raise_signal(signal.SIGINT)

    return callback


@contextmanager
def handled_by(handler) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is handler, "the handler was not restored"
    finally:
        signal.signal(signal.SIGINT, before)


@BOTH
def test_interrupt_stops_cleanly(problem, run, tmp_path):
    path = tmp_path / "checkpoint"
    with handled_by(signal.default_int_handler):
        stopped = start(run, problem, path, checkpoint_seconds=1e9, callback=interrupt_at(6))
    assert (stopped.steps, stopped.interrupted) == (7, True)
    assert_same(run, start(run, problem, path, resume=True), start(run, problem))


@BOTH
def test_second_interrupt_raises(problem, run, tmp_path):
    def twice(info):
        if info.step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    path = tmp_path / "checkpoint"
    with handled_by(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        start(run, problem, path, callback=twice)
    assert_same(run, start(run, problem, path, resume=True), start(run, problem))


def test_handler_is_restored_after_errors_and_left_alone_where_ctrl_c_is_ignored(problem):
    with handled_by(lambda *_: None), pytest.raises(ZeroDivisionError):
        start("train", problem, callback=lambda info: 1 / 0)
    with handled_by(signal.SIG_IGN):  # nohup, or a job in the background
        assert not start("train", problem, callback=interrupt_at(2)).interrupted


def test_interrupt_in_the_last_evaluation_is_not_swallowed(problem):
    with handled_by(signal.default_int_handler):
        fit = start("train", problem, callback=interrupt_at(20))
    assert fit.steps == 20
    assert fit.interrupted  # a caller with another phase to run must learn of it


# SIGTERM and SIGHUP


@contextmanager
def default_handlers(monkeypatch) -> Iterator[list[int]]:
    """The signals that would have ended the process."""
    raised: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    monkeypatch.setattr(signals.signal, "raise_signal", raised.append)
    try:
        yield raised
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadly_signal_waits_for_the_checkpoint(problem, run, number, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"

    def callback(info):
        if info.step == 6:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as timeout(1) does

    with default_handlers(monkeypatch) as raised:
        stopped = start(run, problem, path, checkpoint_seconds=1e9, callback=callback)
    assert raised == [number]
    assert (stopped.steps, stopped.interrupted) == (7, True)  # where the signal is one that does not end it
    assert_same(run, start(run, problem, path, resume=True), start(run, problem))


def test_handlers_of_the_application_are_left_alone(problem, tmp_path, monkeypatch):
    seen = []

    def callback(info):
        seen.append(signal.getsignal(signal.SIGTERM))
        if info.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def handler(number, frame):
        seen.append("handled")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        fit = start("train", problem, tmp_path / "checkpoint", steps=4, callback=callback)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not fit.interrupted
    assert seen == [handler] * 3 + ["handled"] + [handler] * 2


def test_without_a_checkpoint_they_end_the_process_as_ever(problem, monkeypatch):
    seen = []
    with default_handlers(monkeypatch):
        start("train", problem, steps=1, callback=lambda i: seen.append(signal.getsignal(signal.SIGTERM)))
    assert seen == [signal.SIG_DFL] * 2


# callbacks


@pytest.mark.parametrize(
    "answer", [True, 1, "stop", np.True_, np.array(True), torch.tensor(True), torch.ones(1)], ids=repr
)
def test_anything_true_stops(problem, answer):
    assert start("train", problem, steps=4, callback=lambda info: answer).steps == 1


@pytest.mark.parametrize(
    "answer", [None, False, 0, "", np.False_, np.array(0.0), torch.tensor(False), torch.zeros(1)], ids=repr
)
def test_anything_else_does_not(problem, answer):
    assert start("train", problem, steps=2, callback=lambda info: answer).steps == 2


@BOTH
@pytest.mark.parametrize("answer", [np.ones(2), torch.ones(2, 3)], ids=["array", "tensor"])
@pytest.mark.parametrize("at", [3, 20])
def test_neither_true_nor_false(problem, run, answer, at, tmp_path):
    path = tmp_path / "checkpoint"
    message = rf"callback: expected to return something true or false, got \w+ of shape \({answer.shape[0]},"
    with pytest.raises(oes.InputError, match=message):
        start(run, problem, path, checkpoint_seconds=1e9, callback=lambda i: answer if i.step == at else None)
    assert load_tensors(path)[1]["step"] == min(at + 1, 20)
    assert_same(run, start(run, problem, path, resume=True), start(run, problem))


# refused


def other_activation(problem):
    net = oes.models.skip(4, 3, num_channels_down=(4, 6), filter_size_down=3, seed=0, act_fun="ELU")
    return {"net": net.double()}


CHANGES = {
    "lr": ("both", lambda p: {"lr": 0.5}, r"lr = 0\.01, this run has 0\.5"),
    "record_every": ("both", lambda p: {"record_every": 4}, r"record_every = 3, this run has 4"),
    "noisy": (
        "both",
        lambda p: {"noisy": p.noisy.flip(3)},
        r"for another noisy image \(both: 32 x 32 pixels of 3 channels\)",
    ),
    "z": (
        "both",
        lambda p: {"z": p.z * 2},
        r"for another fixed input z \(both: 32 x 32 pixels of 4 channels\)",
    ),
    "clean": ("both", lambda p: {"clean": None}, r"with a clean image, this run has none"),
    "network of other layers": (
        "both",
        other_activation,
        r"for another network \(.*LeakyReLU.*, this run .* ELU",
    ),
    "density": ("search", lambda p: {"density": 0.2}, r"density = 0\.3, this run has 0\.2"),
    "kl": ("search", lambda p: {"kl": 0.0}, r"kl = 0\.0001, this run has 0\.0"),
    "temperature": ("search", lambda p: {"temperature": 1.0}, r"temperature = 0\.2, this run has 1\.0"),
    "seed": ("search", lambda p: {"seed": 2**64 - 1}, r"seed = 0, this run has 18446744073709551615"),
    "mask": (
        "train",
        lambda p: {"mask": p.mask.shuffled(p.net)},
        r"for another mask \(both: keeps \d+ of \d+ weights\)",
    ),
    "average": ("train", lambda p: {"average": None}, r"average = 0\.9, this run has None"),
}
CASES = [
    (run, c, m) for only, c, m in CHANGES.values() for run in ("search", "train") if only in ("both", run)
]


@pytest.mark.parametrize(("run", "changes", "message"), CASES)
def test_other_settings_are_refused_with_both_values(problem, run, changes, message, tmp_path):
    path = tmp_path / "checkpoint"
    start(run, problem, path, steps=1)
    before = path.read_bytes()
    with pytest.raises(oes.CheckpointError, match=message):
        start(run, problem, path, resume=True, **changes(problem))
    assert path.read_bytes() == before


@BOTH
def test_other_weights_are_refused(make_problem, problem, run, tmp_path):
    path = tmp_path / "checkpoint"
    start(run, problem, path, steps=1)
    with pytest.raises(oes.CheckpointError, match=r"the checkpoint was made for other initial weights$"):
        start(run, problem, path, resume=True, net=make_problem(seed=1).net)


def test_a_checkpoint_of_the_other_phase_is_refused(problem, tmp_path):
    path = tmp_path / "checkpoint"
    start("search", problem, path, steps=1)
    with pytest.raises(oes.CheckpointError, match="phase = search, this run has train"):
        start("train", problem, path, resume=True)


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.9, 0.999])
def test_truncated(problem, share, tmp_path):
    path = tmp_path / "checkpoint"
    start("train", problem, path, steps=1)
    data = path.read_bytes()[: int(share * path.stat().st_size)]
    path.write_bytes(data)
    with pytest.raises(oes.CheckpointError, match="checkpoint") as caught:
        start("train", problem, path, resume=True)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == data


def test_files_that_are_no_checkpoint(problem, tmp_path):
    path = tmp_path / "checkpoint"
    problem.mask.save(path)
    with pytest.raises(oes.CheckpointError, match="expected a checkpoint"):
        start("train", problem, path, resume=True)
    with pytest.raises(oes.OESError, match=tmp_path.name):
        start("train", problem, tmp_path, resume=True)


@pytest.mark.parametrize(
    "lost", ["weights", "exp_avg", "history", "buffer.2.running_mean", "step", "settings"]
)
def test_an_incomplete_checkpoint(problem, lost, tmp_path):
    path = tmp_path / "checkpoint"
    start("train", problem, path, steps=1)
    tensors, metadata = load_tensors(path)
    assert lost in tensors or lost in metadata
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    save_tensors(path, kept, {name: value for name, value in metadata.items() if name != lost})
    with pytest.raises(oes.CheckpointError, match="checkpoint"):
        start("train", problem, path, resume=True)


# full disk


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writes fail in the middle, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_older_checkpoint(problem, tmp_path):
    path = tmp_path / "checkpoint"
    start("train", problem, path, steps=5)
    before = path.read_bytes()
    with no_file_larger_than(1000), pytest.warns(oes.CheckpointWarning, match="checkpoint: cannot write"):
        result = start("train", problem, path, resume=True)
    assert_same("train", result, start("train", problem))  # what was computed is there all the same
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]  # no rubbish left on the full disk
    assert_same("train", start("train", problem, path, resume=True), start("train", problem))


def test_after_a_failed_save_the_next_interval_is_waited_for(problem, tmp_path, monkeypatch):
    now, tried = [0.0], []

    def full(path, *rest):
        tried.append(now[0])
        raise oes.OutputError(f"{path}: cannot write: No space left on device")

    def tick(info):
        now[0] += 1.0

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    with pytest.warns(oes.CheckpointWarning) as warned:
        start("train", problem, tmp_path / "checkpoint", checkpoint_seconds=6.0, callback=tick)
    assert tried == [6, 12, 18, 20]  # and the last step
    assert len(warned) == 4


def test_a_place_that_cannot_be_written_is_refused_before_the_work(problem, tmp_path):
    def refuse(info):
        raise AssertionError("the run began")

    with pytest.raises(oes.OutputError, match="nowhere"):
        start("train", problem, tmp_path / "nowhere" / "checkpoint", callback=refuse)


def test_a_checkpoint_of_a_network_without_buffers(problem, tmp_path):
    net = nn.Conv2d(4, 3, 3, padding=1).double()
    mask = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters())))
    other = problem._replace(net=net, mask=mask)
    start("train", other, tmp_path / "checkpoint", steps=5)
    assert_same("train", start("train", other, tmp_path / "checkpoint", resume=True), start("train", other))


@pytest.mark.parametrize("name", ["weights", "exp_avg", "history"])
def test_contents_that_changed_are_refused(tmp_path, name):
    """Bytes that a disk has lost, where the file is as long as it was."""
    path = tmp_path / "run.ckpt"
    net = oes.models.skip(4, 3, num_channels_down=(4,), filter_size_down=3, seed=0)
    z, noisy = oes.noise_input(4, (16, 16), seed=0), torch.rand(1, 3, 16, 16)
    mask = oes.Mask.from_flat(net, torch.ones(sum(p.numel() for p in net.parameters())))
    run = functools.partial(oes.train_sparse, net, mask, z, noisy, checkpoint=path, verify=False)
    run(steps=2)
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    at = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[at : at + 4] = struct.pack("<f", 50.0)
    path.write_bytes(data)
    with pytest.raises(oes.CheckpointError, match=r"run.ckpt: the checkpoint is damaged"):
        run(steps=3, resume=True)
