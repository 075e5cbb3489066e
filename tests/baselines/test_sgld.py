"""SGLD against a transcription of its update, in float64; its posterior against the mean of the images."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available, unchanged
from kernel_backends import EMULATED
from test_dense_dip import noisy_input

import oes_fast as oes
from oes_fast import reference
from oes_fast.flat import FlatLayout, flatten
from oes_fast.reference.philox import STEP_WEIGHT_NOISE

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "input_noise": 0.05, "param_noise": 0.3, "seed": 5}


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20))


def sample(problem, **options):
    settings = SETTINGS | {"clean": problem.clean, "record_every": 1, "burn_in": 2, "sample_every": 2}
    return oes.baselines.sgld(problem.net, problem.z, problem.noisy, **(settings | options))


def transcribed(problem, steps, factor=lambda step: 1.0):
    """Images of the steps before each update, and the image of z after the last."""
    net = copy.deepcopy(problem.net).train()
    lr, seed = SETTINGS["lr"], SETTINGS["seed"]
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=SETTINGS["weight_decay"])
    layout = FlatLayout.of(net)
    images = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * factor(step)
        output = net(noisy_input(problem.z, SETTINGS["input_noise"], seed, step))
        images.append(output.detach())
        optimizer.zero_grad()
        (output - problem.noisy).square().mean().backward()
        optimizer.step()
        bits = reference.random_bits(seed, step, layout.numel, stream=STEP_WEIGHT_NOISE)
        noise = layout.views(reference.normal_from_bits(bits, torch.float64))
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if parameter.ndim == 4:
                    parameter += SETTINGS["param_noise"] * lr * factor(step) * noise[name]
    return images, net(problem.z).detach()


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu", *EMULATED])
def test_it_is_the_published_update_and_the_mean_of_its_samples(small, backend):
    skip_unless_available(backend)
    seen = []
    with unchanged(small.net, small.z, small.noisy):
        fit = sample(small, steps=8, backend=backend, callback=lambda info: seen.append(info.output.clone()))
    images, output = transcribed(small, 8)
    for ours, theirs in zip(seen[:-1], images, strict=True):
        assert_close(ours, theirs, rtol=1e-7)
    assert_close(fit.output, output, rtol=1e-7)
    samples = torch.stack([seen[4], seen[6]])  # after step 2, multiples of 2, but for the last evaluation
    assert fit.samples == 2
    assert_close(fit.posterior_mean, samples.mean(0))
    assert_close(fit.posterior_std, samples.std(0), rtol=1e-9)
    mean_square = float((fit.posterior_mean - small.clean).square().mean())
    assert 10 ** (-fit.posterior_psnr / 10) == pytest.approx(mean_square)
    assert fit.report()["posterior"] == fit.posterior_psnr
    assert fit.mask.flat.all()
    assert isinstance(fit, oes.TrainResult)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_schedule_is_of_both_steps_and_noise(small, backend):
    skip_unless_available(backend)
    seen = []
    watch = {"callback": lambda info: seen.append(info.output.clone())}
    fit = sample(small, steps=5, backend=backend, schedule="linear", verify=False, **watch)
    images, output = transcribed(small, 5, lambda step: 1 - step / 5)
    for ours, theirs in zip(seen[:-1], images, strict=True):
        assert_close(ours, theirs, rtol=1e-7)
    assert_close(fit.output, output, rtol=1e-7)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_interrupted_it_goes_on_bit_for_bit(small, backend, tmp_path):
    skip_unless_available(backend)
    options = {"steps": 10, "backend": backend, "average": 0.9}
    whole = sample(small, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    for stop in (1, 4, 7):  # before the burn-in, at a sample, and between two
        assert sample(small, callback=lambda info, stop=stop: info.step == stop, **options).interrupted
    rest = sample(small, **options)
    assert (rest.samples, whole.samples) == (3, 3)
    for name in ("output", "average", "posterior_mean", "posterior_std"):
        assert torch.equal(getattr(rest, name), getattr(whole, name)), name
    assert torch.equal(flatten(rest.net), flatten(whole.net))
    assert rest.posterior_psnr == whole.posterior_psnr


def test_without_noise_it_is_dense_dip(small):
    options = {"steps": 4, "lr": 1e-2, "weight_decay": 0.1, "backend": "reference"}
    quiet = sample(small, input_noise=0.0, param_noise=0.0, **options)
    dense = oes.baselines.dense_dip(small.net, small.z, small.noisy, **options)
    assert torch.equal(quiet.output, dense.output)


def test_noise_of_biases_and_norms_is_none(small):
    def after_one(param_noise):
        net = sample(small, steps=1, param_noise=param_noise, backend="reference").net
        return dict(net.named_parameters())

    quiet, moved = after_one(0.0), after_one(1.0)
    for name, parameter in quiet.items():
        assert torch.equal(parameter, moved[name]) == (parameter.ndim != 4), name


@pytest.mark.parametrize(("steps", "samples"), [(0, 0), (3, 0), (5, 1)])
def test_fewer_samples_than_a_posterior_takes(small, steps, samples):
    fit = sample(small, steps=steps, backend="reference")
    assert fit.samples == samples
    assert (fit.posterior_mean is None) == (samples == 0)
    assert fit.posterior_std is None
    assert (fit.report()["posterior"] is None) == (samples == 0)


def test_without_a_clean_image_there_is_a_mean_all_the_same(small):
    fit = sample(small, steps=7, clean=None, backend="reference")
    assert fit.samples == 2
    assert fit.posterior_mean.shape == small.noisy.shape
    assert fit.posterior_psnr is None


@pytest.mark.parametrize("name", ["param_noise", "burn_in", "sample_every"])
def test_a_checkpoint_of_other_settings_is_refused(small, name, tmp_path):
    options = {"steps": 2, "backend": "reference", "checkpoint": tmp_path / "checkpoint", "resume": True}
    sample(small, **options)
    with pytest.raises(oes.CheckpointError, match=f"with {name} = "):
        sample(small, **(options | {name: 4}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("param_noise", -1.0),
        ("param_noise", torch.nan),
        ("burn_in", -1),
        ("burn_in", 1.5),
        ("sample_every", 0),
        ("sample_every", True),
    ],
)
def test_bad_arguments_are_named(small, name, value):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        sample(small, steps=1, **{name: value})
