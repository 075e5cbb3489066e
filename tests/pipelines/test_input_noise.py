"""Noise on the input in the pipelines: whose it is, where it ends, what resumes with it."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED
from short_runs import BOTH, outcome, start

import oes_fast as oes
from oes_fast.pipelines.functions import DenseFunction
from oes_fast.reference.philox import SEARCH_INPUT_NOISE, STEP_INPUT_NOISE

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

STREAMS = {"search": SEARCH_INPUT_NOISE, "train": STEP_INPUT_NOISE}


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.6)


@BOTH
def test_search_and_training_draw_from_streams_of_their_own(monkeypatch, small, run):
    drawn = []
    draw = DenseFunction.draw_input
    monkeypatch.setattr(DenseFunction, "draw_input", lambda self, n: drawn.append(n) or draw(self, n))
    start(run, small, input_noise=0.1, seed=7, steps=2)
    assert [n and (n.std, n.seed, n.step, n.stream) for n in drawn] == [
        (0.1, 7, 0, STREAMS[run]),
        (0.1, 7, 1, STREAMS[run]),
        None,  # the image of the result is that of z itself
    ]


@BOTH
@pytest.mark.parametrize("backend", ["torch", "cpu", *EMULATED])
def test_every_backend_has_the_noise_of_the_reference(small, run, backend):
    skip_unless_available(backend)
    found, wanted = (start(run, small, backend=b, input_noise=0.1, seed=7) for b in (backend, "reference"))
    assert found.history.loss == pytest.approx(wanted.history.loss, rel=1e-9)
    assert_close(found.output, wanted.output, rtol=1e-7)
    assert start(run, small, backend=backend).history.loss[0] != found.history.loss[0]


def test_the_result_is_what_its_network_gives_for_z(small):
    fit = start("train", small, backend="cpu" if oes.backends()["cpu"] else "torch", input_noise=0.1)
    assert_close(fit.net(small.z).detach(), fit.output, rtol=1e-9)


@BOTH
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interrupted_it_goes_on_bit_for_bit(run, backend, dtype, tmp_path):
    skip_unless_available(backend)
    problem = build_problem(size=(16, 20), density=0.6, dtype=dtype)
    options = {"backend": backend, "steps": 5, "input_noise": 0.05, "seed": 2, "verify": False}
    if run == "train":
        options |= {"weight_decay": 0.1, "average": 0.9}
    whole = start(run, problem, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    assert start(run, problem, callback=lambda info: info.step == 2, **options).interrupted
    rest = start(run, problem, **options)
    assert torch.equal(outcome(run, rest), outcome(run, whole))
    assert torch.equal(rest.output, whole.output)


@BOTH
def test_a_checkpoint_of_other_noise_is_refused(small, run, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "resume": True}
    start(run, small, input_noise=0.1, seed=3, **options)
    for changes in ({"seed": 3}, {"seed": 3, "input_noise": 0.2}):
        with pytest.raises(oes.CheckpointError, match=r"with input_noise = 0\.1, this run has "):
            start(run, small, **(options | changes))
    with pytest.raises(oes.CheckpointError, match="with seed = 3, this run has 4"):
        start(run, small, input_noise=0.1, seed=4, **options)


def test_a_checkpoint_of_other_weight_decay_is_refused(small, tmp_path):
    options = {"checkpoint": tmp_path / "checkpoint", "resume": True}
    start("train", small, weight_decay=0.1, **options)
    for changes in ({}, {"weight_decay": 0.2}):
        with pytest.raises(oes.CheckpointError, match=r"with weight_decay = 0\.1, this run has "):
            start("train", small, **(options | changes))


@BOTH
@pytest.mark.parametrize(
    ("name", "value"), [("input_noise", -0.1), ("input_noise", None), ("seed", -1), ("seed", 2**64)]
)
def test_bad_numbers_are_named(small, run, name, value):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        start(run, small, **{name: value})


@pytest.mark.parametrize("value", [-1e-3, torch.inf, "1e-3"])
def test_a_bad_weight_decay_is_named(small, value):
    with pytest.raises(oes.InputError, match=r"^weight_decay: "):
        start("train", small, weight_decay=value)
