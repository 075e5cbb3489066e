"""Several inputs and images of one network: search, training and dense DIP against plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import assert_close, build_problem, skip_unless_available, unchanged
from kernel_backends import EMULATED
from short_runs import BOTH, outcome, start

import oes_fast as oes
from oes_fast import reference
from oes_fast.flat import flatten, unflatten_
from oes_fast.pipelines.inputs import detect_collapse
from oes_fast.pipelines.objective import SquaredError
from oes_fast.reference.philox import STEP_INPUT_NOISE

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")


def pair(**options):
    """A problem of two inputs and images."""
    problem = build_problem(size=(16, 20), density=0.5, **options)
    z = torch.cat([problem.z, oes.noise_input(4, (16, 20), seed=9, dtype=problem.z.dtype)])
    noisy = torch.cat([problem.noisy, problem.noisy.flip(-1)])
    return problem._replace(z=z, noisy=noisy, clean=torch.cat([problem.clean, problem.clean.flip(-1)]))


@pytest.fixture(scope="module")
def two():
    return pair()


@pytest.mark.parametrize("backend", ["reference", "cpu", "torch", *EMULATED])
def test_a_training_is_that_of_torch(two, backend):
    skip_unless_available(backend)
    net = copy.deepcopy(two.net).train()
    unflatten_(net, flatten(net) * two.mask.flat)
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses, psnrs, average = [], [], None
    for step in range(4):
        bits = reference.random_bits(3, step, two.z.numel(), stream=STEP_INPUT_NOISE)
        output = net(two.z + 0.05 * reference.normal_from_bits(bits, two.z.dtype).view_as(two.z))
        loss = (output - two.noisy).square().mean()
        losses.append(float(loss.detach()))
        psnrs.append(float(-10 * torch.log10((output.detach() - two.clean).square().mean())))
        average = output.detach() if average is None else average.lerp(output.detach(), 0.1)
        adam.zero_grad()
        loss.backward()
        for parameter, keep in zip(
            net.parameters(), two.mask.flat.split([p.numel() for p in net.parameters()]), strict=True
        ):
            parameter.grad.mul_(keep.view_as(parameter))
        adam.step()
    options = {"steps": 4, "backend": backend, "average": 0.9, "input_noise": 0.05, "seed": 3}
    with unchanged(two.net, two.z, two.noisy):
        fit = start("train", two, **options)
    assert fit.history.loss[:-1] == pytest.approx(losses, rel=1e-9)
    assert fit.history.psnr[:-1] == pytest.approx(psnrs, rel=1e-9)
    assert fit.output.shape == two.noisy.shape
    assert_close(fit.output, net(two.z).detach(), rtol=1e-7)
    assert_close(fit.average, average.lerp(fit.output, 0.1), rtol=1e-7)
    assert_close(fit.net(two.z).detach(), fit.output, rtol=1e-7)


@pytest.mark.parametrize("backend", ["cpu", "torch", *EMULATED])
def test_a_search_is_that_of_the_reference(two, backend):
    skip_unless_available(backend)
    options = {"input_noise": 0.05, "seed": 3, "kl": 1e-4}
    found, wanted = (start("search", two, backend=name, **options) for name in (backend, "reference"))
    assert found.history.loss == pytest.approx(wanted.history.loss, rel=1e-9)
    assert_close(found.logits, wanted.logits, rtol=1e-7)
    assert found.output.shape == two.noisy.shape
    assert_close(found.output, wanted.output, rtol=1e-7)


def test_the_same_input_twice_is_one(two):
    once = two._replace(z=two.z[:1], noisy=two.noisy[:1], clean=two.clean[:1])
    twice = once._replace(**{n: getattr(once, n).repeat(2, 1, 1, 1) for n in ("z", "noisy", "clean")})
    fits = [start("train", p) for p in (once, twice)]
    assert fits[1].history.loss == pytest.approx(fits[0].history.loss, rel=1e-9)
    assert fits[1].history.psnr == pytest.approx(fits[0].history.psnr, rel=1e-9)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_dense_dip_takes_them(two, backend):
    skip_unless_available(backend)
    fit = oes.baselines.dense_dip(two.net, two.z, two.noisy, steps=2, backend=backend, clean=two.clean)
    assert fit.output.shape == two.noisy.shape
    assert fit.history.psnr[0] > 0


@BOTH
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_interrupted_it_goes_on_bit_for_bit(run, backend, tmp_path):
    skip_unless_available(backend)
    problem = pair(dtype=torch.float32)
    options = {"backend": backend, "steps": 5, "input_noise": 0.05, "verify": False}
    whole = start(run, problem, **options)
    options |= {"checkpoint": tmp_path / "checkpoint", "resume": True}
    assert start(run, problem, callback=lambda info: info.step == 2, **options).interrupted
    rest = start(run, problem, **options)
    assert torch.equal(outcome(run, rest), outcome(run, whole))
    assert torch.equal(rest.output, whole.output)
    with pytest.raises(
        oes.CheckpointError, match=r"another noisy image \(both: 2 of 20 x 16 pixels of 3 channels"
    ):
        start(run, problem._replace(noisy=problem.noisy.flip(0)), **options)


def test_a_flat_image_among_others_is_said(two):
    measured = torch.cat([two.noisy[:1], torch.full_like(two.noisy[1:], 0.5)])
    with pytest.warns(oes.CollapsedRunWarning, match="train: the output 1 of 2 is flat"):
        assert detect_collapse(*SquaredError(two.noisy).spreads(measured), "train")
    assert not detect_collapse(*SquaredError(two.noisy).spreads(two.noisy), "train")


@BOTH
def test_inputs_and_images_are_as_many(two, run):
    for changes in ({"z": two.z[:1]}, {"noisy": two.noisy[:1], "clean": two.clean[:1]}):
        with pytest.raises(oes.InputError, match=r"z: expected an input for each of \d images, got \d"):
            start(run, two, **changes)
    with pytest.raises(oes.InputError, match=r"z: expected inputs, shape \(N, C, \.\.\.\), got"):
        start(run, two, z=two.z[:0], noisy=two.noisy[:0], clean=None)


def test_pruning_takes_one(two):
    with pytest.raises(oes.InputError, match="z: expected one input"):
        oes.pruning.snip(two.net, two.z, two.noisy, density=0.5)
