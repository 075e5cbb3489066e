"""Several trainings in one call: each as if it were alone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from conftest import Problem, build_problem, skip_unless_available

import oes_fast as oes
from oes_fast.flat import flatten
from oes_fast.pipelines.failures import without_diverged
from oes_fast.pipelines.functions import RewrittenFunction

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")

COUNT = 3
QUICK: dict[str, Any] = {"steps": 5, "record_every": 2, "verify": False}
BACKENDS = ("cpu", "torch", "reference")


@pytest.fixture(scope="module")
def small() -> Problem:
    return build_problem(size=(16, 20), dtype=torch.float32, density=0.6)


@pytest.fixture(scope="module")
def each(small: Problem) -> dict[str, list[Any]]:
    """Networks, inputs and images of their own for each run."""
    problems = [build_problem(size=(16, 20), dtype=torch.float32, seed=seed) for seed in range(COUNT)]
    return {
        "nets": [problem.net for problem in problems],
        "z": [problem.z for problem in problems],
        "noisy": [problem.noisy for problem in problems],
        "clean": [problem.clean for problem in problems],
        "seed": [5, 6, 7],
    }


def alone(small: Problem, each: dict[str, list[Any]], number: int, **options: Any) -> oes.TrainResult:
    """Run ``number`` by itself."""
    return oes.train_sparse(
        each["nets"][number],
        small.mask,
        each["z"][number],
        each["noisy"][number],
        clean=each["clean"][number],
        seed=each["seed"][number],
        **(QUICK | options),
    )


def together(small: Problem, each: dict[str, list[Any]], **options: Any) -> list[oes.TrainResult]:
    return oes.train_many(masks=small.mask, **each, **(QUICK | options))


def assert_same(found: oes.TrainResult, expected: oes.TrainResult) -> None:
    """Equal bit for bit but for the time taken."""
    assert torch.equal(found.output, expected.output)
    assert torch.equal(flatten(found.net), flatten(expected.net))
    for one, other in zip(found.net.buffers(), expected.net.buffers(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(found.history.rows.nan_to_num(), expected.history.rows.nan_to_num())
    assert (found.average is None) == (expected.average is None)
    if found.average is not None and expected.average is not None:
        assert torch.equal(found.average, expected.average)
    ended = ("steps", "interrupted", "collapsed", "diverged", "backend")
    assert [getattr(found, name) for name in ended] == [getattr(expected, name) for name in ended]


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_are_those_of_single_calls(small, each, backend, at_once):
    skip_unless_available(backend)
    options = {"backend": backend, "average": 0.9, "input_noise": 0.03}
    fits = together(small, each, at_once=at_once, **options)
    assert len(fits) == COUNT
    for number, fit in enumerate(fits):
        assert_same(fit, alone(small, each, number, **options))


def test_one_of_anything_stands_for_all(small):
    common = {"steps": 3, "input_noise": 0.1, "verify": False}
    fits = oes.train_many(small.net, small.mask, small.z, small.noisy, seed=[1, 2], **common)
    for seed, fit in zip((1, 2), fits, strict=True):
        assert_same(fit, oes.train_sparse(small.net, small.mask, small.z, small.noisy, seed=seed, **common))
    assert not torch.equal(fits[0].output, fits[1].output)


def test_masks_differ_and_may_be_none(small):
    common = {"steps": 3, "verify": False}
    dense = oes.Mask.from_flat(small.net, torch.ones(small.mask.flat.numel(), dtype=torch.bool))
    fits = oes.train_many(small.net, [small.mask, None], small.z, small.noisy, **common)
    assert_same(fits[0], oes.train_sparse(small.net, small.mask, small.z, small.noisy, **common))
    assert torch.equal(fits[1].mask.flat, dense.flat)
    assert torch.equal(
        fits[1].output, oes.train_sparse(small.net, dense, small.z, small.noisy, **common).output
    )


def test_images_of_different_sizes(small):
    other = build_problem(size=(20, 32), dtype=torch.float32)
    common = {"steps": 2, "verify": False}
    fits = oes.train_many(small.net, small.mask, [small.z, other.z], [small.noisy, other.noisy], **common)
    assert [fit.output.shape for fit in fits] == [small.noisy.shape, other.noisy.shape]
    assert_same(fits[1], oes.train_sparse(small.net, small.mask, other.z, other.noisy, **common))


def test_a_callback_ends_its_own_run(small, each):
    seen: list[tuple[int, int]] = []

    def callback(number: int, info: oes.StepInfo) -> bool:
        seen.append((number, info.step))
        return number == 1 and info.step == 2

    fits = together(small, each, callback=callback)
    assert [(fit.steps, fit.interrupted) for fit in fits] == [(5, False), (3, True), (5, False)]
    assert_same(fits[1], alone(small, each, 1, callback=lambda info: info.step == 2))
    assert_same(fits[2], alone(small, each, 2))
    for number, last in enumerate((5, 3, 5)):
        assert [step for run, step in seen if run == number] == list(range(last + 1))


def test_checkpoints_are_those_of_single_runs(small, each, tmp_path):
    files = [tmp_path / f"{number}.ckpt" for number in range(COUNT)]
    stopped = together(
        small, each, average=0.9, checkpoints=files, callback=lambda number, info: info.step == number
    )
    assert [fit.steps for fit in stopped] == [1, 2, 3]
    whole = [alone(small, each, number, average=0.9) for number in range(COUNT)]
    # One goes on alone, then all together: that one has nothing left to do.
    assert_same(alone(small, each, 1, average=0.9, checkpoint=files[1], resume=True), whole[1])
    for fit, expected in zip(
        together(small, each, average=0.9, checkpoints=files, resume=True), whole, strict=True
    ):
        assert_same(fit, expected)


def test_a_run_that_fails_leaves_the_others(small, each):
    def broken(number: int, info: oes.StepInfo) -> bool:
        if number == 1 and info.step == 2:
            raise OSError("no space")
        return False

    with pytest.raises(OSError, match="no space") as caught:
        together(small, each, callback=broken)
    assert caught.value.run == 1
    first, failed, last = caught.value.results
    assert failed is None
    assert_same(first, alone(small, each, 0))
    assert_same(last, alone(small, each, 2))


def test_a_loss_that_is_no_longer_finite_names_the_run(small, each):
    noisy = [image.clone() for image in each["noisy"]]
    noisy[2] = noisy[2] * 1e30
    with pytest.raises(oes.OESError, match=r"^run 2: train: ") as caught:
        together(small, each | {"noisy": noisy})
    assert caught.value.run == 2
    assert_same(caught.value.results[0], alone(small, each, 0))
    assert caught.value.results[2] is None


def test_errors_say_what_each_run_failed_with(small, each):
    def broken(number: int, info: oes.StepInfo) -> bool:
        if number == 1 and info.step == 2:
            raise oes.OutputError("no space")
        return False

    noisy = [each["noisy"][0] * 1e30, *each["noisy"][1:]]
    with pytest.raises(oes.OESError, match=r"^run 0: train: ") as caught:
        together(small, each | {"noisy": noisy}, callback=broken)
    first, second, third = caught.value.errors
    assert first is caught.value
    assert str(second) == "run 1: no space"
    assert third is None
    with pytest.raises(oes.OutputError, match=r"^run 1: no space") as raised:
        without_diverged(caught.value)
    assert raised.value is second
    assert second.run == 1
    assert_same(second.results[2], alone(small, each, 2))


def test_what_is_left_where_losses_are_not_finite(small, each):
    noisy = [each["noisy"][0] * 1e30, each["noisy"][1], each["noisy"][2] * 1e30]
    with pytest.raises(oes.OESError) as caught:
        together(small, each | {"noisy": noisy})
    results, failed = without_diverged(caught.value)
    assert [result is None for result in results] == [True, False, True]
    assert list(failed) == [0, 2]
    for number, text in failed.items():
        assert text.startswith(f"run {number}: train: the loss is ")
    with pytest.raises(oes.InputError, match=r"^seed") as caught:
        together(small, each | {"seed": [1, 2]})
    with pytest.raises(oes.InputError, match=r"^seed"):
        without_diverged(caught.value)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"lr": 0.5}, "made with lr = 0.5, this run has 0.01"),
        ({"weight_decay": 0.5}, "made with weight_decay = 0.5, this run has None"),
        ({"average": 0.5}, "made with average = 0.5, this run has None"),
        ({"steps": 7, "callback": None}, "is at step 7, beyond the 5 asked for"),
        ({"damaged": True}, "damaged|cannot read|expected"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error::oes_fast.CheckpointWarning")
def test_a_checkpoint_that_is_refused_is_told_before_any_run_begins(small, each, tmp_path, made, message):
    files = [tmp_path / f"{number}.ckpt" for number in range(COUNT)]
    stops = {"callback": lambda info: info.step == 1}
    damaged = made == {"damaged": True}
    alone(small, each, 0, checkpoint=files[0], **stops)
    alone(small, each, 1, checkpoint=files[1], **(stops | ({} if damaged else made)))
    if damaged:
        content = bytearray(files[1].read_bytes())
        content[-3] ^= 255
        files[1].write_bytes(content)
    before = [path.read_bytes() for path in files[:2]]
    seen = []
    with pytest.raises(oes.CheckpointError, match=f"^run 1: .*1.ckpt.*({message})") as caught:
        together(small, each, checkpoints=files, resume=True, callback=lambda *told: seen.append(told))
    assert not seen
    assert [path.read_bytes() for path in files[:2]] == before
    assert not files[2].exists()
    assert caught.value.run == 1
    assert caught.value.errors == [None, caught.value, None]
    assert caught.value.results == [None] * COUNT


@pytest.mark.parametrize("options", [{}, {"optimizer": lambda w: torch.optim.SGD(w, lr=0.1)}, {"tv": 0.1}])
def test_checkpoints_of_the_same_settings_are_not_refused(small, each, tmp_path, options):
    files = [tmp_path / f"{number}.ckpt" for number in range(COUNT)]
    options = {**options, "average": 0.9, "weight_decay": 0.0, "input_noise": 0.02, "schedule": "cosine"}
    together(small, each, checkpoints=files, callback=lambda number, info: info.step == 1, **options)
    fits = together(small, each, checkpoints=files, resume=True, **options)
    assert_same(fits[1], alone(small, each, 1, **options))


def test_what_a_run_computed_in_is_free_when_it_has_ended(small, each, monkeypatch):
    """The noise on the input is drawn for the run's function, which holds its buffers."""
    functions: weakref.WeakSet[RewrittenFunction] = weakref.WeakSet()
    draw = RewrittenFunction.draw_input

    def drawn(self: RewrittenFunction, *args: Any) -> None:
        functions.add(self)
        draw(self, *args)

    def callback(number: int, info: oes.StepInfo) -> None:
        if info.step == 1:
            gc.collect()
            living.append(len(functions))

    living: list[int] = []
    monkeypatch.setattr(RewrittenFunction, "draw_input", drawn)
    together(small, each, input_noise=0.05, at_once=1, callback=callback)
    assert living == [1] * COUNT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noisy": None}, r"^nets: expected a list of networks, or one of masks, z, noisy or seed"),
        ({"seed": [1, 2, 3]}, r"^seed: expected 2 of them, one for each of noisy, got 3"),
        ({"noisy": []}, r"^noisy: expected one at least, got an empty list"),
        ({"noisy": [1, 0]}, r"^noisy\[0\]: expected a torch.Tensor, got int"),
        ({"masks": 3}, r"^mask: expected an oes_fast.Mask or None, got int"),
        ({"z": "first two"}, r"^z\[1\]: expected"),
        ({"at_once": 0}, r"^at_once: expected an integer >= 1, got 0"),
        ({"memory": 0}, r"^memory: expected a finite number > 0"),
        ({"resume": True}, r"^resume: expected checkpoints to go on from"),
        ({"checkpoints": ["a"]}, r"^checkpoints: expected 2 of them, one for each of noisy, got 1"),
        ({"checkpoints": "ab"}, r"^checkpoints: expected a list of files, got str"),
        ({"checkpoints": ["a", "./a"]}, r"^checkpoints\[1\]: expected a file for each run, got ./a of run 0"),
        ({"callback": 3}, r"^callback: expected a function, got int"),
        ({"steps": -1}, r"^steps: expected an integer >= 0"),
    ],
)
def test_refusals(small, changes, message):
    arguments: dict[str, Any] = {"nets": small.net, "masks": small.mask, "z": small.z, "steps": 1}
    noisy: Any = [small.noisy, small.noisy]
    if changes.get("noisy", 0) is None:
        noisy, changes = small.noisy, {}
    if changes.get("z") == "first two":
        changes = {"z": [small.z, small.z[:, :2, :-1]]}
    with pytest.raises(oes.InputError, match=message):
        oes.train_many(**(arguments | {"noisy": noisy} | changes))


def test_arguments_of_train_sparse_alone(small):
    with pytest.raises(TypeError, match="stepz"):
        oes.train_many(small.net, small.mask, small.z, [small.noisy], stepz=3)
