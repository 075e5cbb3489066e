"""Where a mask search starts: a probability, a mask, logits; on every backend, resumed, refused."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED
from short_runs import start as run

import oes_fast as oes
from oes_fast.pipelines.start_logits import start_logits

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.4)


def given(kind, problem):
    """What a caller may give."""
    numel = problem.mask.flat.numel()
    logits = torch.linspace(-3, 1, numel, dtype=problem.z.dtype)
    return {"probability": 0.2, "mask": problem.mask, "logits": logits}[kind]


KINDS = pytest.mark.parametrize("kind", ["probability", "mask", "logits"])


def test_without_steps_the_logits_are_those_given(small):
    at = {"levels": 2, "density": 0.3, "steps": 0}
    assert torch.equal(run("search", small, **at).logits, torch.zeros_like(given("logits", small)))
    logit = math.log(0.2 / 0.8)
    assert_close(run("search", small, start=0.2, **at).logits, torch.full_like(given("logits", small), logit))
    assert torch.equal(
        run("search", small, start=given("logits", small), **at).logits, given("logits", small)
    )
    warm = run("search", small, start=small.mask, **at).logits.sigmoid()
    assert_close(warm, torch.where(small.mask.flat, 0.5, torch.full_like(warm, 0.3)))


def test_levels_share_the_probability(small):
    found = run("search", small, start=0.2, levels=4, steps=0)
    assert_close(found.logits.sigmoid().sum(0), torch.full_like(found.logits[0], 0.2))
    warm = run("search", small, start=small.mask, levels=3, steps=0).logits.sigmoid().sum(0)
    assert_close(warm, torch.where(small.mask.flat, 0.5, torch.full_like(warm, 0.3)))


@KINDS
@pytest.mark.parametrize("backend", ["torch", "cpu", *EMULATED])
def test_every_backend_searches_as_the_reference_from_there(small, kind, backend):
    skip_unless_available(backend)
    options = {"start": given(kind, small), "lr": 0.1, "temperature": 0.5, "kl": 1e-3}
    expected = run("search", small, **options)
    assert expected.history.loss[-1] != run("search", small, **(options | {"start": None})).history.loss[-1]
    found = run("search", small, backend=backend, **options)
    assert found.history.loss == pytest.approx(expected.history.loss, rel=1e-8)
    assert_close(found.logits, expected.logits, rtol=1e-4)


def test_one_half_is_the_default_bit_for_bit(small):
    assert torch.equal(run("search", small, start=0.5).logits, run("search", small).logits)


def test_logits_given_are_left_alone(small):
    logits = given("logits", small)
    before = logits.clone()
    run("search", small, start=logits)
    assert torch.equal(logits, before)


@KINDS
def test_interrupted_it_goes_on_bit_for_bit(small, kind, tmp_path):
    options = {"start": given(kind, small)}
    whole = run("search", small, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    assert run("search", small, callback=lambda info: info.step == 2, **options).interrupted
    rest = run("search", small, **options)
    assert torch.equal(rest.logits, whole.logits)
    assert rest.mask.settings["start"] == whole.mask.settings["start"]


@pytest.mark.parametrize(("first", "then"), [(0.2, None), (None, 0.2), (0.2, 0.3), (0.2, "mask")])
def test_a_checkpoint_of_another_start_is_refused(small, first, then, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "resume": True}
    run("search", small, start=first, **options)
    with pytest.raises(oes.CheckpointError, match=r"made with start = .*, this run has "):
        run("search", small, start=given(then, small) if isinstance(then, str) else then, **options)


def test_the_mask_says_where_it_started(small):
    assert "start" not in run("search", small).mask.settings
    assert run("search", small, start=0.2).mask.settings["start"] == 0.2
    assert run("search", small, start=small.mask).mask.settings["start"].startswith("mask ")


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (0.0, "start: expected a finite number > 0"),
        (1.0, "start: expected a finite number .* < 1"),
        (math.nan, "start: expected a finite number"),
        (True, "start: expected a number, got bool"),
        ("mask", "start: expected a probability, a mask or a tensor of logits, got str"),
        ([0.5], "start: expected a probability, a mask or a tensor of logits, got list"),
        (torch.zeros(3, dtype=torch.float64), "start: expected shape"),
    ],
)
def test_what_is_no_start_is_refused(small, start, says):
    with pytest.raises(oes.InputError, match=says):
        run("search", small, start=start)


def test_logits_that_do_not_fit_are_refused(small):
    logits = given("logits", small)
    with pytest.raises(oes.InputError, match=r"start: expected .*float64"):
        run("search", small, start=logits.float())
    with pytest.raises(oes.InputError, match="start: expected finite values"):
        run("search", small, start=logits * math.inf)
    with pytest.raises(oes.InputError, match="start: expected shape"):
        run("search", small, start=logits, levels=3)


def test_a_mask_of_another_network_is_refused(small):
    other = build_problem(size=(16, 20), num_channels_down=(4, 5))
    with pytest.raises(oes.MaskMismatchError):
        run("search", small, start=other.mask)


def test_a_probability_takes_no_memory_of_its_own(small):
    found = start_logits(0.2, small.net, shape=(7,), like=small.z, density=0.3)
    assert found.shape == ()
