"""Search and training as a caller sees them: results, callbacks, what they leave alone."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
import transcription
from conftest import assert_close, unchanged
from short_runs import BOTH, outcome, start
from torch import nn

import oes_fast as oes
from oes_fast import reference
from oes_fast.flat import flatten
from oes_fast.io.files import load_tensors

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

# results


def test_search_result(problem):
    result = start("search", problem, record_every=3, steps=7)
    numel = problem.mask.flat.numel()
    assert isinstance(result, oes.SearchResult)
    assert result.mask.kept == int(0.3 * numel)
    assert result.mask.settings == {
        "density": 0.3, "seed": 0, "steps": 7, "lr": 1e-2, "kl": 1e-9, "temperature": 0.2,
        "backend": "reference",
    }  # fmt: skip
    assert result.logits.shape == (numel,)
    assert result.logits[result.mask.flat].min() >= result.logits[~result.mask.flat].max()
    assert result.output.shape == problem.noisy.shape
    assert not result.output.requires_grad
    assert not result.logits.requires_grad
    assert (result.steps, result.interrupted, result.backend) == (7, False, "reference")
    assert result.seconds > 0
    assert result.history.step == [0, 3, 6, 7]


def test_train_result(problem):
    result = start("train", problem, record_every=3, steps=7, average=0.5)
    assert isinstance(result, oes.TrainResult)
    assert (result.steps, result.interrupted, result.backend) == (7, False, "reference")
    assert not result.collapsed
    assert result.history.step == [0, 3, 6, 7]
    assert result.mask is problem.mask
    assert not result.output.requires_grad
    weights = flatten(result.net)
    assert (weights[~problem.mask.flat] == 0).all()
    assert (weights[problem.mask.flat] != flatten(problem.net)[problem.mask.flat]).any()
    with torch.no_grad():
        assert torch.equal(result.net.train()(problem.z), result.output)
    psnr = oes.psnr(result.output, problem.clean)
    assert result.history[-1].psnr == pytest.approx(psnr)
    assert result.history[-1].psnr_average == pytest.approx(oes.psnr(result.average, problem.clean))


@BOTH
def test_history_columns(problem, run):
    history = start(run, problem, steps=5).history
    assert len(history) == 6
    assert history[0].step == 0
    assert history[-1][:3] == list(history)[-1][:3]
    assert [r.step for r in history[1:3]] == [1, 2]
    for name in ("step", "loss", "psnr", "psnr_average"):
        np.testing.assert_equal(history[name], [getattr(r, name) for r in history])
        np.testing.assert_equal(history[name], getattr(history, name))
    assert np.isfinite([history.loss, history.psnr]).all()
    assert np.isnan(history.psnr_average).all()
    assert history.best().psnr == max(history.psnr)
    assert not history.rows.requires_grad
    assert start(run, problem, clean=None).history.best() is None
    assert np.isnan(start(run, problem, clean=None).history.psnr).all()


@BOTH
def test_every_run_of_the_same_settings_is_the_same(problem, run):
    first, again = start(run, problem), start(run, problem)
    assert torch.equal(outcome(run, first), outcome(run, again))
    assert torch.equal(first.history.rows[:, :3], again.history.rows[:, :3])


def test_search_depends_on_the_seed(problem):
    first, other = start("search", problem), start("search", problem, seed=2**64 - 1)
    assert not torch.equal(first.logits, other.logits)


def test_clean_enters_nothing(problem):
    for run in ("search", "train"):
        with_clean, without = start(run, problem), start(run, problem, clean=None)
        assert torch.equal(outcome(run, with_clean), outcome(run, without))


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_average_is_the_recursion(problem, decay):
    outputs = []
    fit = start("train", problem, steps=9, average=decay, callback=lambda i: outputs.append(i.output.clone()))
    average = outputs[0]
    for output in outputs[1:]:
        average = decay * average + (1 - decay) * output
    assert len(outputs) == 10
    assert_close(fit.average, average)
    assert torch.equal(fit.output, outputs[-1])
    assert start("train", problem).average is None


@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("option", ["topk", "drawn", "mean"])
def test_mask_options_cut_the_same_search(problem, option, levels):
    net, _, z, noisy, _ = problem
    plain = start("search", problem, levels=levels)
    found = start("search", problem, levels=levels, mask_option=option, draws=3, seed=0)
    assert torch.equal(found.logits, plain.logits)
    assert torch.equal(found.level > 0, found.mask.flat)
    assert found.mask.settings.get("mask_option", "topk") == option
    assert found.mask.settings["density"] == 0.3

    def image(level):
        _, output, _ = next(transcription.train(net, level, z, noisy, steps=0, lr=1e-2))
        return output

    levels_drawn = [reference.drawn_mask(plain.logits, seed=0, draw=draw) for draw in range(3)]
    if option == "topk":
        assert torch.equal(found.mask.flat, plain.mask.flat)
        assert torch.equal(found.output, plain.output)
        assert_close(found.output, image(found.level))
    elif option == "drawn":
        assert torch.equal(found.mask.flat, oes.Mask.drawn(net, plain.logits).flat)
        assert torch.equal(found.level, levels_drawn[0])
        assert_close(found.output, image(found.level))
    else:
        assert torch.equal(found.mask.flat, oes.Mask.from_draws(net, plain.logits, 0.3, draws=3).flat)
        assert_close(found.output, sum(image(level) for level in levels_drawn) / 3)


def test_a_resumed_search_may_have_another_mask_option(problem, tmp_path):
    files = {"checkpoint": tmp_path / "a.ckpt", "checkpoint_seconds": 0.0}
    first = start("search", problem, **files)
    resumed = start("search", problem, mask_option="drawn", resume=True, **files)
    assert torch.equal(resumed.logits, first.logits)
    assert torch.equal(resumed.mask.flat, oes.Mask.drawn(problem.net, first.logits).flat)


@BOTH
def test_no_steps(problem, run):
    result = start(run, problem, steps=0)
    assert result.steps == 0
    assert not result.interrupted
    assert result.history.step == [0]
    if run == "search":
        assert (result.logits == 0).all()
    else:
        assert torch.equal(flatten(result.net), flatten(problem.net) * problem.mask.flat)


def test_the_network_of_a_fit_carries_the_running_statistics(problem):
    fit = start("train", problem, steps=3)
    norm = fit.net[1]
    assert int(norm.num_batches_tracked) == 3
    assert (norm.running_mean != 0).any()
    assert torch.isfinite(fit.net.eval()(problem.z)).all()


# callbacks


@BOTH
def test_callback_sees_every_step(problem, run):
    seen = []

    def watch(info):
        assert isinstance(info, oes.StepInfo)
        assert not info.output.requires_grad
        seen.append((info.phase, info.step, info.steps, info.loss, info.psnr))

    history = start(run, problem, callback=watch).history
    assert seen == [(run, r.step, 4, r.loss, r.psnr) for r in history]
    start(run, problem, clean=None, callback=lambda info: seen.append(info.psnr))
    assert seen[-1] is None


@BOTH
def test_callback_stops(problem, run):
    result = start(run, problem, steps=100, callback=lambda info: info.step == 3)
    assert result.interrupted
    assert result.steps == 4
    assert torch.equal(outcome(run, result), outcome(run, start(run, problem, steps=4)))
    assert not start(run, problem, callback=lambda info: info.step == 3).interrupted  # was done anyway
    assert start(run, problem, callback=lambda info: "yes").steps == 1  # anything true stops


@BOTH
def test_an_error_in_the_callback_comes_through(problem, run):
    with pytest.raises(ZeroDivisionError):
        start(run, problem, callback=lambda info: 1 / 0)


# what goes wrong


def flat_problem(problem):
    return problem._replace(mask=oes.Mask.from_flat(problem.net, torch.zeros_like(problem.mask.flat)))


def test_collapse_is_reported(problem):
    with pytest.warns(oes.CollapsedRunWarning, match="train: the output is flat") as caught:
        result = start("train", flat_problem(problem))
    assert result.collapsed
    assert caught[0].filename == start.__code__.co_filename  # which calls the library
    assert torch.isfinite(result.output).all()
    with pytest.warns(oes.CollapsedRunWarning, match="search: "):
        assert start("search", problem, density=0.01).collapsed


def test_no_false_alarm(make_problem):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = start("train", make_problem(), steps=30)
        assert not fit.collapsed
        one = make_problem(size=(1, 1))
        start("train", one)
        flat = make_problem(size=(8, 8))
        start("train", flat._replace(noisy=torch.full_like(flat.noisy, 0.5)))


@BOTH
def test_a_loss_that_is_not_finite_ends_the_run(make_problem, run):
    problem = make_problem(dtype=torch.float32)
    bad = problem.net if run == "train" else make_problem(dtype=torch.float32).net
    if run == "search":
        nn.init.constant_(bad[0][0][1].weight, 1e38)
    with pytest.raises(oes.OESError, match=f"^{run}: the loss is (nan|inf) at step"):
        start(run, problem, net=bad, lr=1e30, steps=10)


def test_a_checkpoint_never_holds_a_state_that_is_not_finite(make_problem, tmp_path):
    path = tmp_path / "checkpoint"
    files = {"checkpoint": path, "checkpoint_seconds": 0.0}
    with pytest.raises(oes.OESError, match=r"^train: "):
        start("train", make_problem(dtype=torch.float32), lr=1e30, steps=10, record_every=100, **files)
    tensors, _ = load_tensors(path)
    assert all(t.isfinite().all() for name, t in tensors.items() if name != "history")


def test_a_density_that_keeps_nothing_is_refused_before_the_work(problem):
    def refuse(info):
        raise AssertionError("the search began")

    with pytest.raises(oes.InputError, match=r"^density: "):
        start("search", problem, density=1e-6, callback=refuse)


# what a run leaves alone, and what it does not depend on


@BOTH
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_caller_changes(make_problem, run, training):
    net, mask, z, noisy, clean = problem = make_problem()
    net.train(training)
    net.requires_grad_(False)
    grad_mode = torch.is_grad_enabled()
    with unchanged(net, mask.flat, z, noisy, clean):
        result = start(run, problem, average=0.9) if run == "train" else start(run, problem)
    assert torch.is_grad_enabled() == grad_mode
    assert torch.equal(outcome(run, result), outcome(run, start(run, make_problem())))
    if run == "train":
        with unchanged(net):
            for parameter in result.net.parameters():
                parameter.data.zero_()


def frozen(problem):
    problem.net.requires_grad_(False)
    return problem


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "default device": lambda: torch.device("meta"),
}


@BOTH
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_inside_of_the_callers_context(make_problem, run, context):
    expected = start(run, make_problem())
    problem = frozen(make_problem())
    with context():
        result = start(run, problem)
    assert torch.equal(outcome(run, result), outcome(run, expected))
    assert torch.equal(result.output, expected.output)


@BOTH
def test_everything_made_under_inference_mode(make_problem, run):
    with torch.inference_mode():
        problem = make_problem()
        inside = start(run, problem)
    outside = start(run, problem)  # inference tensors, outside of the mode
    expected = outcome(run, start(run, make_problem()))
    assert torch.equal(outcome(run, inside), expected)
    assert torch.equal(outcome(run, outside), expected)


@BOTH
def test_inputs_that_require_gradients_or_have_strides(make_problem, run):
    problem = make_problem()
    strided = {
        "z": problem.z.clone().requires_grad_(),
        "noisy": problem.noisy.to(memory_format=torch.channels_last).requires_grad_(),
        "clean": problem.clean.flip(3).flip(3).requires_grad_(),
    }
    result = start(run, problem, **strided)
    assert_close(outcome(run, result), outcome(run, start(run, problem)))
    assert not result.history.rows.requires_grad
    assert not result.output.requires_grad
    assert all(value.grad is None for value in strided.values())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "channels"), [((1, 1), 3), ((9, 31), 1), ((32, 32), 1), ((7, 40), 4)])
def test_sizes_channels_and_dtypes(make_problem, run, dtype, size, channels):
    problem = make_problem(size=size, channels=channels, dtype=dtype)
    result = start(run, problem, backend="reference")
    assert result.output.shape == (1, channels, *size)
    assert result.output.dtype == outcome(run, result).dtype == dtype
    assert torch.isfinite(result.output).all()


@BOTH
def test_from_another_thread(problem, run):
    results = []
    thread = threading.Thread(target=lambda: results.append(start(run, problem)))
    thread.start()
    thread.join()
    assert torch.equal(outcome(run, results[0]), outcome(run, start(run, problem)))


def test_networks_that_are_no_generator(problem):
    net = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Sigmoid()).double()
    found = start("search", problem._replace(net=net))
    assert oes.fingerprint(net) == found.mask.fingerprint
    fit = start("train", problem._replace(net=net, mask=found.mask))
    assert fit.history.loss[-1] < fit.history.loss[0]


@BOTH
def test_networks_that_cannot_be_rewritten_run_on_the_reference(problem, run):
    class Branching(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            return torch.sigmoid(y) if y.sum() > 0 else torch.sigmoid(y) * 1.5

    net = Branching(4, 3, 3, padding=1).double()
    odd = problem._replace(net=net, mask=oes.Mask.from_flat(net, torch.ones(111)))
    with pytest.warns(UserWarning, match="Branching cannot be traced"):
        result = start(run, odd, backend="auto")
    assert result.backend == "reference"
    assert torch.equal(outcome(run, result), outcome(run, start(run, odd)))
    with pytest.raises(oes.OESError, match="Branching"):
        start(run, odd, backend="torch")


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("size", [(2, 3), (9, 31), (32, 32)])
def test_rewritten_networks_give_the_same_first_output(make_problem, density, size):
    problem = make_problem(size=size, density=density)
    expected = start("train", problem, steps=0)
    result = start("train", problem, steps=0, backend="torch")
    assert result.backend == "torch"
    torch.testing.assert_close(result.output, expected.output, rtol=0, atol=1e-9)
    assert torch.equal(flatten(result.net), flatten(expected.net))


def test_a_mask_may_be_trained_on_other_weights_and_images(make_problem):
    found = start("search", make_problem())
    other = make_problem(seed=5, size=(20, 24))
    assert start("train", other._replace(mask=found.mask)).mask is found.mask


def test_transfer_to_another_image(make_problem):
    problem = make_problem(size=(16, 20), dtype=torch.float32)
    net, z = oes.fresh_generator(problem.noisy, seed=3)
    assert z.shape == (1, 32, 16, 20)
    mask = oes.Mask.from_logits(net, torch.arange(float(sum(p.numel() for p in net.parameters()))), 0.9)
    moved = oes.transfer_mask(mask, problem.noisy, seed=3, steps=1, backend="reference")
    direct = oes.train_sparse(net, mask, z, problem.noisy, steps=1, backend="reference")
    assert torch.equal(moved.output, direct.output)
    with pytest.raises(oes.MaskMismatchError) as caught:
        oes.transfer_mask(mask, problem.noisy[:, :1], steps=1)
    assert mask.fingerprint in str(caught.value)
    with pytest.raises(oes.InputError, match=r"^noisy: "):
        oes.transfer_mask(mask, problem.noisy[0], steps=1)
