"""Runs that go wrong: a loss that left is said, what is to blame is named, what was computed is kept."""

from __future__ import annotations

import copy
import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from cli_runs import result_of
from cli_runs import run as run_command
from torch import nn

import oes_fast as oes
from oes_fast.pipelines.checkpoint import Checkpoint
from oes_fast.pipelines.divergence import finite_logits, has_diverged

pytestmark = pytest.mark.usefixtures("unverified")

pytest_plugins = ("cli_fixtures",)


def curve(shape, count=101, start=0.1, seed=0, noise=0.0):
    """Losses of a made-up run."""
    t = np.linspace(0, 1, count)
    scatter = 1 + noise * np.random.default_rng(seed).standard_normal(count)
    losses = start * np.array([shape(x) for x in t]) * scatter
    return [start, *losses[1:].tolist()]


FALLING = {
    "falls": lambda t: math.exp(-5 * t),
    "falls slowly": lambda t: 1 - 0.1 * t,
    "stands still": lambda t: 1.0,
    "rises, then falls": lambda t: 1 + 3 * t if t < 0.3 else 0.5,
    "oscillates": lambda t: math.exp(-5 * t) * (1 + 0.5 * math.sin(60 * t)),
    "one spike at the end": lambda t: 3.0 if t > 0.99 else 0.1,
    "a spike on the way": lambda t: 3.0 if 0.5 < t < 0.6 else 0.1,
    "rises a little at the end": lambda t: 0.1 if t < 0.7 else 0.15,
    "is zero": lambda t: 0.0,
}
LEAVING = {
    "leaves at once": lambda t: 1 if t == 0 else 3.2,
    "leaves slowly": lambda t: 1 + 3 * t,
    "leaves after a fall": lambda t: 0.1 if t < 0.5 else 4.0,
    "loses most of what it had reached": lambda t: 0.05 if t < 0.7 else 0.8,
}


@pytest.mark.parametrize("phase", ["train", "search"])
@pytest.mark.parametrize("count", [4, 11, 101, 4001])
@pytest.mark.parametrize("shape", FALLING)
def test_no_false_alarm(shape, count, phase):
    assert not has_diverged(curve(FALLING[shape], count), 10 * count, phase)


@pytest.mark.parametrize("seed", range(20))
def test_the_scatter_of_a_search_is_no_alarm(seed):
    for shape in (FALLING["stands still"], FALLING["falls slowly"]):
        for count in (4, 11, 31):
            assert not has_diverged(curve(shape, count, seed=seed, noise=0.15), 10 * count, "search")


@pytest.mark.parametrize("phase", ["train", "search"])
@pytest.mark.parametrize("count", [11, 101, 4001])
@pytest.mark.parametrize("shape", LEAVING)
def test_what_leaves_has_diverged(shape, count, phase):
    assert has_diverged(curve(LEAVING[shape], count), 10 * count, phase)


def test_a_few_steps_are_not_judged():
    assert not has_diverged([0.1, 0.3, 0.4, 0.5], 3, "train")
    assert not has_diverged([0.1, 0.5], 100, "train")
    assert not has_diverged([0.1], 0, "train")
    assert not has_diverged([1e-12, 1e-9, 1e-8, 1e-8, 1e-8], 100, "train")


def train(problem, **options):
    return oes.train_sparse(problem.net, problem.mask, problem.z, problem.noisy, **({"steps": 30} | options))


def search(problem, **options):
    settings = {"steps": 30, "density": 0.5} | options
    return oes.search_mask(problem.net, problem.z, problem.noisy, **settings)


@pytest.mark.parametrize("lr", [10.0, 1e5])
def test_a_training_that_leaves_is_said(make_problem, lr):
    with pytest.warns(
        oes.DivergedRunWarning, match=r"^train: the run has diverged: .* learning rate"
    ) as seen:
        fit = train(make_problem(dtype=torch.float32), lr=lr, record_every=1)
    assert fit.diverged
    assert any(warning.filename == __file__ for warning in seen)


@pytest.mark.parametrize("lr", [1e-3, 1e-2, 1e-1, 1.0])
def test_trainings_of_any_sensible_rate_are_no_alarm(make_problem, lr):
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.DivergedRunWarning)
        for record_every in (1, 10):
            assert not train(make_problem(dtype=torch.float32), lr=lr, record_every=record_every).diverged


@pytest.mark.parametrize("lr", [1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("kl", [1e-9, 3e-7, 1e-3])
def test_searches_of_any_sensible_rate_are_no_alarm(make_problem, lr, kl):
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.DivergedRunWarning)
        for record_every in (1, 10):
            found = search(make_problem(dtype=torch.float32), lr=lr, kl=kl, record_every=record_every)
            assert not found.diverged


def test_a_search_that_leaves_is_said(make_problem, monkeypatch):
    problem = make_problem(dtype=torch.float32)
    add = oes.History.add  # the loss of the records is made up
    monkeypatch.setattr(
        oes.History, "add", lambda self, step, loss, *rest: add(self, step, loss * (1 + step), *rest)
    )
    with pytest.warns(oes.DivergedRunWarning, match=r"^search: the run has diverged"):
        assert search(problem, record_every=1).diverged


@pytest.mark.parametrize("run", [train, search])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["1.1.1.weight", "1.2.bias", "1.2.running_var", "1.2.running_mean"])
def test_a_network_that_is_not_finite_is_named(make_problem, run, name, value):
    problem = make_problem()
    with torch.no_grad():
        dict([*problem.net.named_parameters(), *problem.net.named_buffers()])[name].view(-1)[1] = value
    with pytest.raises(oes.InputError, match=rf"^net: .*got 1 NaN .* in the (parameter|buffer) {name}$"):
        run(problem)


class Shifted(nn.Module):
    """A network with infinity in a buffer that means something, and integers in another."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("limit", torch.tensor(math.inf, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        return torch.minimum(self.net(z), self.limit)


def test_a_buffer_that_means_infinity_is_no_fault(make_problem, tmp_path):
    problem = make_problem()
    net = Shifted(problem.net)
    mask = oes.Mask.from_flat(net, problem.mask.flat)
    path = tmp_path / "run.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.CheckpointWarning)
        fit = oes.train_sparse(
            net,
            mask,
            problem.z,
            problem.noisy,
            steps=3,
            checkpoint=path,
            checkpoint_seconds=0.0,
            backend="reference",
        )
    assert fit.steps == 3
    assert path.exists()


def test_the_first_step_blames_the_network_and_not_the_learning_rate(make_problem):
    problem = make_problem(dtype=torch.float32, need_sigmoid=False)
    with torch.no_grad():
        list(problem.net.parameters())[-2].fill_(1e38)
    full = problem._replace(mask=oes.Mask.from_flat(problem.net, torch.ones_like(problem.mask.flat)))
    with pytest.raises(
        oes.OESError, match=r"^train: the loss is (nan|inf) at step 0, before any update, so the "
    ):
        train(full)


class Root(nn.Module):
    """A network with a finite output and no derivative."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        output = self.net(z)
        return output + torch.sqrt(output - output.detach())


@pytest.mark.parametrize("run", [train, search])
def test_a_first_gradient_that_is_not_finite_is_said(make_problem, run):
    problem = make_problem()
    net = Root(problem.net)
    broken = problem._replace(net=net, mask=oes.Mask.from_flat(net, problem.mask.flat))
    with pytest.raises(oes.OESError, match=r"gradient of the first step is NaN or infinite .* not to blame"):
        run(broken, backend="reference")


@pytest.mark.parametrize("kl", [1e36, 1e38])
def test_a_large_kl_is_blamed(make_problem, kl):
    with pytest.raises(
        oes.OESError, match=r"^search: the loss is (nan|inf) at step .*kl = 1e\+3\d is too large"
    ):
        search(make_problem(dtype=torch.float32), kl=kl, density=0.01)


def test_a_large_rate_is_blamed_with_the_steps_between_which_it_happened(make_problem):
    with pytest.raises(
        oes.OESError,
        match=r"^train: the loss is (nan|inf) at step \d, after 0\.\d+ at step \d; a lower learning rate",
    ):
        train(make_problem(dtype=torch.float32), lr=1e30, record_every=1)


@pytest.mark.parametrize("run", [train, search])
@pytest.mark.parametrize(
    "error", [oes.OESError("no"), RuntimeError("out of\nmemory"), oes.OutputError("full")]
)
def test_what_was_computed_is_returned_whatever_the_last_save_raises(
    make_problem, tmp_path, monkeypatch, run, error
):
    problem = make_problem()
    expected = run(problem, backend="reference")

    def fail(self, step, state, **options):
        raise error

    monkeypatch.setattr(Checkpoint, "save", fail)
    with pytest.warns(oes.CheckpointWarning, match=r"goes on without a checkpoint of step 30$"):
        result = run(problem, backend="reference", checkpoint=tmp_path / "run.ckpt")
    assert torch.equal(result.output, expected.output)
    assert torch.equal(result.mask.flat, expected.mask.flat)


def test_a_search_whose_moments_overflow_returns_its_mask(make_problem, tmp_path):
    """Squares of gradients overflow, the logits are whole: the case of a large kl."""
    path = tmp_path / "search.ckpt"
    with pytest.warns(
        oes.CheckpointWarning, match=r"exp_avg_sq.* no longer finite at step 30: gradients are too"
    ):
        found = search(make_problem(dtype=torch.float32), kl=1e25, checkpoint=path)
    assert found.mask.density == pytest.approx(0.5, abs=0.01)
    assert not path.exists()


def test_a_state_that_cannot_be_saved_is_said_once_an_interval(make_problem, tmp_path):
    path = tmp_path / "search.ckpt"
    with pytest.warns(oes.CheckpointWarning) as seen:
        search(make_problem(dtype=torch.float32), kl=1e25, checkpoint=path, checkpoint_seconds=1000.0)
    assert len([w for w in seen if issubclass(w.category, oes.CheckpointWarning)]) == 1


@pytest.mark.parametrize("record_every", [4, 100])
def test_a_search_that_is_not_finite_at_its_end_returns_the_mask_of_its_last_record(
    make_problem, tmp_path, record_every
):
    problem, path = make_problem(dtype=torch.float32), tmp_path / "search.ckpt"
    last = 8 if record_every == 4 else 0
    broken = copy.deepcopy(problem)
    calls = []

    def break_later(module, inputs, output):
        calls.append(1)
        return output if len(calls) <= 9 else output * math.inf

    broken.net[-1].register_forward_hook(break_later)
    options = {"backend": "reference", "record_every": record_every}
    with (
        pytest.warns(
            oes.DivergedRunWarning, match=rf"^search: .* at step 10, .*the result is that of step {last}$"
        ),
        pytest.warns(oes.CheckpointWarning, match="logits"),
    ):
        found = search(broken, steps=10, checkpoint=path, **options)
    assert found.diverged
    expected = search(problem, steps=last, **options)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.mask.flat, expected.mask.flat)
    assert found.history.step[-1] == last


def test_a_mask_is_cut_from_the_logits_that_are_numbers():
    logits = torch.tensor([0.5, math.nan, math.inf, -math.inf, -2.0])
    with pytest.warns(oes.DivergedRunWarning, match=r"^search: 3 of 5 logits"):
        found = finite_logits(logits)
    assert torch.isfinite(found).all()
    assert found.argsort(descending=True)[:3].tolist() == [2, 0, 4]
    assert finite_logits(found) is found
    with pytest.raises(oes.OESError, match=r"^search: none of the logits"):
        finite_logits(torch.full((3,), math.nan))


def test_the_command_line_says_and_writes(cli_images, tmp_path, capsys, monkeypatch):
    image, mask, out = cli_images / "rgb.png", tmp_path / "mask.safetensors", tmp_path / "out.png"
    common = ["--quiet", "--no-plots", "--threads", "1"]

    def fail(self, step, state, **options):
        raise RuntimeError("no save")

    def small(noisy, *, seed, **model):
        net = oes.models.skip(4, noisy.shape[1], num_channels_down=(4, 6), filter_size_down=3, seed=seed)
        return net, oes.noise_input(4, noisy.shape[-2:], seed=seed)

    for module in ("search", "restore"):
        monkeypatch.setattr(importlib.import_module(f"oes_fast.cli.{module}"), "fresh_generator", small)
    monkeypatch.setattr(Checkpoint, "save", fail)
    assert run_command("search", image, "-o", mask, "--steps", "1", "--density", "0.5", *common) == 0
    assert "no save; the run goes on without a checkpoint of step 1" in capsys.readouterr().err
    assert result_of(mask)["diverged"] is False
    assert run_command("train", image, mask, "-o", out, "--steps", "20", "--lr", "1e5", *common) == 0
    assert "oes-fast: warning: train: the run has diverged: the loss was" in capsys.readouterr().err
    assert result_of(out)["diverged"] is True
    assert out.exists()
