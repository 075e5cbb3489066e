"""Several networks at once on the kernels of a GPU, or emulated: each as if it were alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import build_problem
from kernel_backends import INTERPRETED, device_of, require
from test_cuda_graphs import CallingRecorder
from test_many import assert_same

import oes_fast as oes
from oes_fast.pipelines import batched, batches
from oes_fast.pipelines.batched import BatchRun
from oes_fast.pipelines.cuda_graphs import GraphedRun

pytestmark = [
    pytest.mark.cuda_kernel,
    pytest.mark.device,
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

COUNT = 3


class Runs:
    """Problems of one mask on a device, trained at once and alone."""

    def __init__(self, backend: str, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        require(backend)
        self.backend, device = backend, device_of(backend)
        made = [
            build_problem(size=(12, 8), dtype=dtype, num_channels_down=(3, 4), seed=seed, **options)
            for seed in range(COUNT)
        ]
        self.mask = made[0].mask
        self.lists: dict[str, list[Any]] = {
            "nets": [p.net.to(device) for p in made],
            "z": [p.z.to(device) for p in made],
            "noisy": [p.noisy.to(device) for p in made],
            "clean": [p.clean.to(device) for p in made],
            "seed": [4, 5, 6],
        }
        self.common: dict[str, Any] = {"steps": 3, "record_every": 2, "backend": backend, "verify": False}

    def together(self, **options: Any) -> list[oes.TrainResult]:
        return oes.train_many(masks=self.mask, **self.lists, **(self.common | options))

    def alone(self, number: int, **options: Any) -> oes.TrainResult:
        net, z, noisy, clean, seed = (values[number] for values in self.lists.values())
        options = self.common | options
        return oes.train_sparse(net, self.mask, z, noisy, clean=clean, seed=seed, **options)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many networks were trained at once, each time that several were."""
    found: list[int] = []
    init = BatchRun.__init__

    def noted(self: BatchRun, function: Any, objective: Any, count: int, **options: Any) -> None:
        found.append(count)
        init(self, function, objective, count, **options)

    monkeypatch.setattr(BatchRun, "__init__", noted)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"average": 0.9, "input_noise": 0.05},
        {"weight_decay": 0.1, "schedule": "cosine", "average": 0.5},
        {"weight": torch.tensor([[[[1.0, 0.0, 2.0]]]], dtype=torch.float64).repeat(1, 1, 12, 8)[..., :8]},
    ],
    ids=["plain", "noise", "decay", "weight"],
)
def test_networks_at_once_are_those_of_single_runs(counts, options):
    runs = Runs("cuda")
    if "weight" in options:
        options = {"weight": options["weight"].to(runs.lists["z"][0].device)}
    fits = runs.together(**options)
    assert counts == [COUNT]
    for number, fit in enumerate(fits):
        assert_same(fit, runs.alone(number, **options))


@pytest.mark.parametrize("shared", ["z", "nets", "noisy"])
def test_one_input_image_or_network_for_all(counts, shared):
    runs = Runs("cuda")
    runs.lists[shared] = runs.lists[shared][:1] * COUNT
    fits = runs.together()
    assert counts == [COUNT]
    assert_same(fits[2], runs.alone(2))


def test_without_a_mask_and_in_float32(counts):
    runs = Runs("cuda", torch.float32)
    fits = oes.train_many(masks=None, **runs.lists, **runs.common)
    assert counts == [COUNT]
    full = oes.Mask.from_flat(runs.lists["nets"][0].cpu(), torch.ones_like(runs.mask.flat))
    runs.lists["nets"] = [net.to(runs.lists["z"][0].device) for net in runs.lists["nets"]]
    runs.mask = full
    assert_same(fits[1], runs.alone(1))


def test_each_run_ends_by_itself_and_goes_on_from_its_checkpoint(counts, tmp_path):
    runs = Runs("cuda")
    files = [tmp_path / f"{number}" for number in range(COUNT)]
    options = {"average": 0.9, "input_noise": 0.05, "steps": 5}
    stopped = runs.together(
        **options, checkpoints=files, callback=lambda number, info: number < 2 and info.step == 1
    )
    assert [fit.steps for fit in stopped] == [2, 2, 5]
    assert_same(stopped[1], runs.alone(1, **options, callback=lambda info: info.step == 1))
    whole = [runs.alone(number, **options) for number in range(COUNT)]
    assert_same(stopped[2], whole[2])
    assert_same(runs.alone(0, **options, checkpoint=files[0], resume=True), whole[0])
    runs.alone(0, **options, checkpoint=files[0], callback=lambda info: info.step == 1)
    counts.clear()
    for fit, expected in zip(runs.together(**options, checkpoints=files, resume=True), whole, strict=True):
        assert_same(fit, expected)
    assert counts == [2]  # the third is at another step


def test_a_run_whose_loss_is_not_finite_leaves_the_others(counts):
    runs = Runs("cuda", torch.float32)
    runs.lists["noisy"][1] = runs.lists["noisy"][1] * 1e30
    with pytest.raises(oes.OESError, match=r"^run 1: train: ") as caught:
        runs.together()
    assert counts == [COUNT]
    results = caught.value.results
    assert results[1] is None
    for number in (0, 2):
        assert_same(results[number], runs.alone(number))


@pytest.mark.parametrize("average", [None, 0.9])
def test_recorded_steps_are_the_steps(monkeypatch, counts, average):
    runs = Runs("cuda")
    made = []

    def recorded(run, *_):
        made.append(GraphedRun(run, CallingRecorder()))
        return made[-1]

    monkeypatch.setattr(batched, "graphed", recorded)

    def ends(number, info):
        return number == 1 and info.step == 1

    fits = runs.together(callback=ends, average=average, input_noise=0.05)
    assert made[0].recorded
    assert counts == [COUNT]
    options = {"average": average, "input_noise": 0.05}
    assert_same(fits[0], runs.alone(0, **options))
    assert_same(fits[1], runs.alone(1, callback=lambda info: info.step == 1, **options))
    assert_same(fits[2], runs.alone(2, **options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"at_once": 2}, [2]),
        ({"at_once": 1}, []),
        ({"memory": 1.0}, []),
        ({"optimizer": lambda w: torch.optim.SGD(w, lr=0.1)}, []),
        ({"loss": torch.nn.L1Loss()}, []),
    ],
)
def test_what_is_made_at_once(counts, options, expected):
    runs = Runs("cuda", torch.float32)
    options |= {"steps": 1}
    fits = runs.together(**options)
    assert counts == expected
    options = {name: value for name, value in options.items() if name not in ("at_once", "memory")}
    assert_same(fits[2], runs.alone(2, **options))


def test_networks_that_no_row_of_convolutions_computes_run_one_by_one(counts):
    runs = Runs("cuda", torch.float32, num_channels_skip=2)
    fits = runs.together(steps=1)
    assert counts == []
    assert_same(fits[1], runs.alone(1, steps=1))


def test_other_sizes_are_batches_of_their_own(counts):
    runs = Runs("cuda", torch.float32)
    for name in ("z", "noisy", "clean"):
        runs.lists[name][1] = runs.lists[name][1][..., :-2].contiguous()
    fits = runs.together(steps=2)
    assert counts == [2]
    for number in (1, 2):
        assert_same(fits[number], runs.alone(number, steps=2))


def test_less_memory_than_there_seemed_to_be(monkeypatch, counts):
    runs = Runs("cuda", torch.float32)
    init = batched.BatchedFunction.__init__

    def made(self, function, nets, *args, **options):
        if len(nets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        init(self, function, nets, *args, **options)

    monkeypatch.setattr(batched.BatchedFunction, "__init__", made)
    monkeypatch.setattr(batches, "MOST", 5)
    fits = runs.together()
    assert counts == [2]
    assert_same(fits[0], runs.alone(0))


def test_no_memory_for_the_first_step_of_so_many(monkeypatch, counts):
    runs = Runs("cuda", torch.float32)
    call = batched.BatchedFunction.__call__

    def called(self, weights, **options):
        if self._count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, weights, **options)

    monkeypatch.setattr(batched.BatchedFunction, "__call__", called)
    fits = runs.together(input_noise=0.05)
    assert counts == [COUNT, 2]
    for number in (0, 2):
        assert_same(fits[number], runs.alone(number, input_noise=0.05))


def test_memory_that_goes_later_loses_no_steps_twice(monkeypatch, counts):
    runs = Runs("cuda", torch.float32)
    begin = BatchRun.begin

    def begun(self, step, **options):
        if step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        begin(self, step, **options)

    monkeypatch.setattr(BatchRun, "begin", begun)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        runs.together()
    assert counts == [COUNT]
    assert caught.value.errors == [caught.value] * COUNT


def test_a_checkpoint_that_is_refused_when_it_is_bound_ends_the_others(counts, tmp_path):
    runs = Runs("cuda", torch.float32)
    files = [tmp_path / f"{number}" for number in range(COUNT)]
    for number in range(COUNT):
        backend = "torch" if number == 1 else "cuda"
        runs.alone(number, checkpoint=files[number], backend=backend, callback=lambda info: info.step == 0)
    with pytest.raises(oes.CheckpointError, match=r"^run 1: .*with backend = torch, this run has ") as caught:
        runs.together(checkpoints=files, resume=True, steps=1000)
    assert counts == [COUNT]
    results = caught.value.results
    assert [fit if fit is None else (fit.steps, fit.interrupted) for fit in results] == [
        (1, True),
        None,
        (1, True),
    ]


def test_warnings_name_the_run():
    runs = Runs("cuda", torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = runs.together(steps=1)
    told = [str(w.message)[:6] for w in caught if issubclass(w.category, oes.CollapsedRunWarning)]
    assert told == [f"run {number}:"[:6] for number, fit in enumerate(fits) if fit.collapsed]


@pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="Triton's kernels run on a GPU or interpreted"
)
def test_triton_takes_one_after_the_other(counts):
    runs = Runs("triton", torch.float32)
    for name in runs.lists:
        runs.lists[name] = runs.lists[name][:2]
    fits = runs.together(steps=1, at_once=2)
    assert counts == []
    for number, fit in enumerate(fits):
        assert fit.backend == "triton"
        torch.testing.assert_close(fit.output, runs.alone(number, steps=1).output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "recorded"), [("variance", True), ("holdout", False)])
def test_each_run_stops_by_its_rule(monkeypatch, counts, tmp_path, kind, recorded):
    runs = Runs("cuda")
    rule = oes.VarianceStop(window=2, patience=1, every=1)
    if kind == "holdout":
        rule = oes.HoldoutStop(share=0.3, smooth=1, patience=1, every=1)
    options = {"stop": rule, "steps": 8, "lr": 0.3, "average": 0.2, "record_every": 1}
    expected = [runs.alone(number, **options) for number in range(COUNT)]
    assert len({(fit.steps, fit.stop.step) for fit in expected}) > 1
    if recorded:
        monkeypatch.setattr(batched, "graphed", lambda run, *_: GraphedRun(run, CallingRecorder()))
    files = [tmp_path / f"{number}" for number in range(COUNT)]
    runs.together(**options, checkpoints=files, callback=lambda _, info: info.step == 1)
    fits = runs.together(**options, checkpoints=files, resume=True)
    assert counts == [COUNT] * 2
    for fit, alone in zip(fits, expected, strict=True):
        assert_same(fit, alone)
        assert fit.stop.step == alone.stop.step
        assert fit.stop.curve == alone.stop.curve
        assert not fit.interrupted


def test_what_a_rule_has_found_outlives_a_loss_that_is_no_longer_finite(counts):
    runs = Runs("cuda")
    rule = oes.VarianceStop(window=2, patience=1000, every=1)
    options = {"stop": rule, "lr": 0.3, "average": 0.2, "record_every": 1}
    sound = runs.together(**options, steps=5)
    with pytest.warns(oes.DivergedRunWarning, match="the result is that of step"):
        fits = runs.together(**options, steps=8, schedule=lambda step: 1.0 if step < 4 else 1e300)
    assert counts == [COUNT] * 2
    for fit, alone in zip(fits, sound, strict=True):
        assert fit.diverged
        assert fit.stop.step == alone.stop.step
        assert torch.equal(fit.output, alone.output)
        weights, expected = (torch.cat([p.flatten() for p in each.net.parameters()]) for each in (fit, alone))
        assert torch.equal(weights, expected)
