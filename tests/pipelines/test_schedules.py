"""Learning-rate schedules: against torch.optim.lr_scheduler in float64, resumed, in recorded steps."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED, device_of
from short_runs import BOTH, outcome, start

import oes_fast as oes
from oes_fast.ops._clock import Clock
from oes_fast.pipelines import setup
from oes_fast.pipelines.cuda_graphs import GraphedRun
from oes_fast.pipelines.schedule import Schedule

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

STEPS = 6


def warm_up(step):
    """From 0, and of another type than float."""
    return torch.tensor(min(step, 3) / 3, dtype=torch.float64)


SCHEDULERS = {
    "cosine": lambda adam: torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=STEPS),
    "linear": lambda adam: torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=STEPS),
    warm_up: lambda adam: torch.optim.lr_scheduler.LambdaLR(adam, lambda step: float(warm_up(step))),
}


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20))


@pytest.mark.parametrize(
    ("backend", "schedule"),
    [*((b, s) for b in ("reference", "cpu") for s in SCHEDULERS), *((b, "cosine") for b in EMULATED)],
)
def test_it_is_that_of_torch(small, backend, schedule):
    skip_unless_available(backend)
    net = copy.deepcopy(small.net).train()
    adam = torch.optim.Adam(net.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = SCHEDULERS[schedule](adam)
    losses = []
    for _ in range(STEPS):
        loss = (net(small.z) - small.noisy).square().mean()
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()
        scheduler.step()
    options = {"steps": STEPS, "lr": 1e-2, "schedule": schedule, "weight_decay": 0.1, "record_every": 1}
    fit = oes.baselines.dense_dip(small.net, small.z, small.noisy, backend=backend, **options)
    assert fit.history.loss[:-1] == pytest.approx(losses, rel=1e-9)
    assert_close(fit.output, net(small.z).detach(), rtol=1e-8)


@pytest.mark.parametrize("backend", ["cpu", *EMULATED])
def test_a_search_has_it_on_every_backend(small, backend):
    skip_unless_available(backend)
    losses = start("search", small, schedule="cosine", steps=STEPS).history.loss
    assert start("search", small, steps=STEPS).history.loss != losses
    found = start("search", small, schedule="cosine", steps=STEPS, backend=backend).history.loss
    assert found == pytest.approx(losses, rel=1e-8)


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_interrupted_it_goes_on_bit_for_bit(small, run, schedule, tmp_path):
    options = {"schedule": schedule, "steps": STEPS, "input_noise": 0.05, "seed": 3}
    whole = start(run, small, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    assert start(run, small, callback=lambda info: info.step == 2, **options).interrupted
    rest = start(run, small, **options)
    assert torch.equal(outcome(run, rest), outcome(run, whole))
    assert torch.equal(rest.output, whole.output)


@BOTH
@pytest.mark.parametrize(
    ("of", "changes"),
    [
        ({}, {"schedule": "cosine"}),
        ({"schedule": "cosine"}, {}),
        ({"schedule": "cosine"}, {"schedule": "linear"}),
        ({"schedule": "cosine"}, {"steps": 5, "schedule": "cosine"}),
        ({"schedule": warm_up}, {"schedule": lambda step: 1.0}),
    ],
)
def test_a_checkpoint_of_another_schedule_is_refused(small, run, of, changes, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "resume": True}
    start(run, small, **(options | of))
    with pytest.raises(oes.CheckpointError, match=r"made with schedule = .*, this run has "):
        start(run, small, **(options | changes))
    assert start(run, small, **(options | of)).steps == 4  # the same goes on


@BOTH
@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("exponential", "schedule: expected .*cosine.*linear.* got 'exponential'"),
        (0.5, "schedule: expected "),
        (lambda step: -1.0, r"schedule\(\d\): expected a finite number >= 0.0, got -1.0"),
        (lambda step: math.nan, r"schedule\(\d\): expected a finite number"),
        (lambda step: "fast", r"schedule\(\d\): expected a number, got str"),
        (lambda step: 1 / 0, r"schedule\(0\): expected a number from .* it raises ZeroDivisionError: divis"),
        (lambda: 1.0, r"schedule\(0\): expected a number from a function of the step, it raises TypeError"),
    ],
)
def test_what_is_no_schedule_is_refused(small, run, schedule, says):
    with pytest.raises(oes.InputError, match=says):
        start(run, small, schedule=schedule)


def test_a_function_that_differs_at_one_step_is_another():
    for steps, place in ((4_000, 1), (100_000, 77_777)):
        plain = Schedule(0.1, lambda step: 1.0, steps).settings()
        assert Schedule(0.1, lambda step: 1.0, steps).settings() == plain
        other = Schedule(0.1, lambda step, place=place: 0.5 if step == place else 1.0, steps).settings()
        assert other != plain


def test_a_function_is_looked_at_once_and_not_at_all_steps_of_a_long_run():
    asked = []
    schedule = Schedule(0.1, lambda step: asked.append(step) or 1.0, 400_000)
    assert schedule.settings() == schedule.settings()
    assert asked == list(range(0, 400_000, 4))


def test_names_end_at_zero():
    for name in ("cosine", "linear"):
        rate = Schedule(0.1, name, 40_000)
        assert rate(0) == 0.1
        assert rate(20_000) == pytest.approx(0.05)
        assert 0 < rate(39_999) < 1e-5
        assert rate(50_000) == rate(39_999)


def test_a_clock_asks_for_each_step_of_the_run_and_no_other():
    asked = []
    schedule = Schedule(0.1, lambda step: asked.append(step) or 1 / (step + 1), 5)
    clock = schedule.clock(torch.zeros(1, dtype=torch.float64))
    clock.show(2)
    assert sorted(set(asked)) == [0, 1, 2, 3, 4]
    rates = clock.corrections[:, 0] * (1 - 0.9 ** torch.arange(1, 6, dtype=torch.float64))
    assert_close(rates, 0.1 / torch.arange(1, 6, dtype=torch.float64), rtol=1e-12)
    pages = Clock("cpu", lr=Schedule(0.1, "linear", 10), rows=4, dtype=torch.float64)
    pages.show(9)
    assert float(pages.corrections[1, 0]) == pytest.approx(0.01 / (1 - 0.9**10))


@pytest.mark.device
@pytest.mark.cuda_graph
@BOTH
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_recorded_steps_have_the_rates_of_plain_ones(monkeypatch, run, backend):
    skip_unless_available(backend)
    problem = build_problem(size=(16, 16), dtype=torch.float32)
    problem = problem._replace(
        net=problem.net.to(device_of(backend)),
        **{name: getattr(problem, name).to(device_of(backend)) for name in ("z", "noisy", "clean")},
    )
    options = {"backend": backend, "schedule": "cosine", "verify": False}
    whole = start(run, problem, **options)
    monkeypatch.setattr(setup, "graphed", lambda steps, *_: GraphedRun(steps, Repeating()))
    assert torch.equal(outcome(run, start(run, problem, **options)), outcome(run, whole))


class Repeating:
    """A recorder that calls again."""

    def warm_up(self, call):
        call()

    rehearse = warm_up

    def __call__(self, call):
        return call
