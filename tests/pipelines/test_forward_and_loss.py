"""Forward operators, losses, weights and total variation: what runs make small."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, build_problem, skip_unless_available
from inverse_problems import trained_by_hand
from kernel_backends import EMULATED
from objectives import WEIGHT, drawn, fourier, half
from optional_packages import deepinv
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten
from oes_fast.functional import gumbel_mask, mask_kl, total_variation
from oes_fast.pipelines.measurement import Measurement
from oes_fast.pipelines.objective import SquaredError, make_objective
from oes_fast.rewrite.run.chain_program import NativeChain

pytest_plugins = ("objectives",)

BACKENDS = ("reference", "torch", "cpu", *EMULATED)


def squares(difference):
    return (difference * difference.conj()).real


# Arguments beside the image, the measurement of an image, and the loss of an image given the measurement.
PROBLEMS = {
    "operator": ({"forward": half}, half, lambda x, y: F.mse_loss(half(x), y)),
    "complex": ({"forward": fourier}, fourier, lambda x, y: squares(fourier(x) - y).mean()),
    "loss": ({"loss": nn.L1Loss()}, lambda x: x, lambda x, y: (x - y).abs().mean()),
    "weight": ({"weight": WEIGHT}, lambda x: x, lambda x, y: (WEIGHT * (x - y) ** 2).mean()),
    "pixels": (
        {"weight": WEIGHT[:, :1] > 0},
        lambda x: x,
        lambda x, y: ((WEIGHT[:, :1] > 0) * (x - y) ** 2).mean(),
    ),
    "complex, weight": (
        {"forward": fourier, "weight": WEIGHT[:, :, :, :10]},
        fourier,
        lambda x, y: (WEIGHT[:, :, :, :10] * squares(fourier(x) - y)).mean(),
    ),
    "all": (
        {"forward": half, "loss": lambda m, y: (m - y).abs().mean(), "tv": 0.3},
        half,
        lambda x, y: (half(x) - y).abs().mean() + 0.3 * total_variation(x),
    ),
    "tv": ({"tv": 0.1}, lambda x: x, lambda x, y: F.mse_loss(x, y) + 0.1 * total_variation(x)),
}


# On every backend those that a kernel has a part in; the others are PyTorch's own operations behind it.
@pytest.mark.parametrize(
    ("kind", "backend"),
    [(k, b) for k in PROBLEMS for b in BACKENDS if b in ("reference", "cpu") or k in ("weight", "all", "tv")],
)
def test_a_training_is_that_of_plain_pytorch(small, kind, backend):
    skip_unless_available(backend)
    options, measure, value = PROBLEMS[kind]
    noisy = measure(small.noisy)
    fit = oes.train_sparse(
        small.net,
        small.mask,
        small.z,
        noisy,
        **options,
        steps=3,
        record_every=1,
        clean=small.clean,
        backend=backend,
        verify=False,
    )
    losses, net = trained_by_hand(small, lambda image: value(image, noisy), steps=3)
    assert fit.history.loss == pytest.approx(losses, rel=1e-9)
    assert_close(flatten(fit.net), flatten(net), rtol=1e-7)
    assert_close(fit.output, net(small.z).detach(), rtol=1e-7)
    assert fit.history.psnr[-1] == pytest.approx(oes.psnr(fit.output, small.clean))
    assert fit.backend == backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["complex, weight", "weight", "all"])
def test_a_search_is_that_of_plain_pytorch(small, kind, backend):
    skip_unless_available(backend)
    options, measure, value = PROBLEMS[kind]
    noisy = measure(small.noisy)
    found = oes.search_mask(
        small.net,
        small.z,
        noisy,
        **options,
        density=0.3,
        lr=0.1,
        kl=1e-4,
        steps=2,
        seed=5,
        record_every=1,
        backend=backend,
        verify=False,
    )
    w0 = flatten(small.net)
    logits = torch.zeros_like(w0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for step in range(3):
        weights = gumbel_mask(w0, logits, seed=5, step=step, temperature=0.2, backend="reference")
        image = torch.func.functional_call(
            small.net.train(), FlatLayout.of(small.net).views(weights), small.z
        )
        loss = value(image, noisy) + 1e-4 * mask_kl(logits, density=0.3)
        assert found.history.loss[step] == pytest.approx(float(loss.detach()), rel=1e-9)
        if step < 2:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_close(found.logits, logits.detach(), rtol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.parametrize("kind", ["operator", "complex, weight", "weight", "all"])
def test_the_network_is_evaluated_once_a_step(small, kind, backend, monkeypatch):
    """The gradient of the image goes into the backward pass of the evaluation that made it."""
    skip_unless_available(backend)
    options, measure, _ = PROBLEMS[kind]
    calls = {"_evaluate": 0, "_differentiate": 0}
    for cls in [NativeChain, *_subclasses(NativeChain)]:
        for name in calls:
            if name in vars(cls):
                monkeypatch.setattr(cls, name, counted(calls, name, vars(cls)[name]))
    oes.train_sparse(
        small.net,
        small.mask,
        small.z,
        measure(small.noisy),
        **options,
        steps=4,
        backend=backend,
        verify=False,
    )
    # Once more at the end; networks without chains have none to count.
    assert calls in ({"_evaluate": 5, "_differentiate": 4}, {"_evaluate": 0, "_differentiate": 0})
    assert backend != "cpu" or calls["_evaluate"] == 5


def _subclasses(cls):
    return [found for each in cls.__subclasses__() for found in (each, *_subclasses(each))]


def counted(calls, name, function):
    @functools.wraps(function)
    def count(*arguments, **options):
        calls[name] += 1
        return function(*arguments, **options)

    return count


@pytest.mark.parametrize("method", ["dense_dip", "sgld"])
def test_the_baselines_take_them(small, method):
    noisy = fourier(small.noisy)
    run = getattr(oes.baselines, method)
    options = {"forward": fourier, "weight": WEIGHT[..., :10], "tv": 0.05, "steps": 2, "input_noise": 0.0}
    fit = run(small.net, small.z, noisy, **options, record_every=1, lr=1e-3, weight_decay=0.0)
    whole = small._replace(mask=oes.Mask.from_flat(small.net, torch.ones_like(small.mask.flat)))

    def value(image):
        squared = WEIGHT[..., :10] * squares(fourier(image) - noisy)
        return squared.mean() + 0.05 * total_variation(image)

    losses, _ = trained_by_hand(whole, value, steps=1, lr=1e-3)
    assert fit.history.loss[:2] == pytest.approx(losses, rel=1e-9) or method == "sgld"
    assert fit.history.loss[0] == pytest.approx(losses[0], rel=1e-9)


def test_the_scores_of_pruning_are_of_that_loss(small):
    noisy, options = half(small.noisy), {"forward": half, "tv": 0.1, "weight": drawn(8, 10)}
    weights = flatten(small.net).requires_grad_()
    image = torch.func.functional_call(small.net.train(), FlatLayout.of(small.net).views(weights), small.z)
    loss = (options["weight"] * (half(image) - noisy) ** 2).mean() + 0.1 * total_variation(image)
    (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
    (product,) = torch.autograd.grad(gradient, weights, gradient.detach())
    scores = oes.pruning.snip_scores(small.net, small.z, noisy, **options)
    assert_close(scores, (weights * gradient).abs().detach(), rtol=1e-7)
    scores = oes.pruning.grasp_scores(small.net, small.z, noisy, **options)
    assert_close(scores, -(weights * product).detach(), rtol=1e-6)


@pytest.mark.parametrize("method", oes.pruning.METHODS)
def test_ways_to_a_mask_with_an_operator(small, method, tmp_path):
    looks = method in ("snip", "grasp", "imp", "oes")
    steps = {"steps": 2} if method in ("imp", "oes") else {}
    options = {"forward": half, "loss": nn.L1Loss()} if looks else {}
    mask = oes.pruning.METHODS[method](
        small.net,
        small.z,
        half(small.noisy),
        density=0.3,
        **options,
        **steps,
        **({"rounds": 1} if method == "imp" else {}),
    )
    assert mask.density == pytest.approx(0.3, abs=1e-2)


# ---------------------------------------------------------------------------------------------------------
# deepinv's operators


def test_inpainting_of_deepinv_becomes_weights(small):
    physics = deepinv().physics
    mask = (drawn(1, 16, 20) > 0.5).double().expand(3, -1, -1)
    operator = physics.Inpainting(img_size=(3, 16, 20), mask=mask)
    noisy = operator.A(small.noisy)
    for forward in (operator, operator.A):
        objective = make_objective(noisy, forward=forward)
        assert isinstance(objective, SquaredError)
        assert torch.equal(objective.weight, mask[None])
    assert torch.equal(make_objective(noisy, forward=operator, weight=WEIGHT).weight, mask[None] * WEIGHT)
    half_open = physics.Inpainting(img_size=(3, 16, 20), mask=0.5 * mask)
    for options in (
        {"forward": half_open},
        {"forward": operator, "tv": 0.1},
        {"forward": operator, "loss": nn.L1Loss()},
    ):
        assert isinstance(make_objective(noisy, **options), Measurement)
    assert isinstance(make_objective(noisy, forward=lambda x: operator(x)), Measurement)
    bayer = physics.Demosaicing(img_size=(3, 16, 20)).to(torch.float64)
    assert isinstance(make_objective(bayer.A(small.noisy), forward=bayer), SquaredError)
    assert isinstance(make_objective(noisy[..., 1:], forward=operator), Measurement)  # the run says it


@pytest.mark.parametrize("kind", ["Blur", "Downsampling", "MRI", "Inpainting"])
def test_operators_of_deepinv(kind):
    physics = deepinv().physics
    channels = 2 if kind == "MRI" else 3
    problem = build_problem(size=(16, 20), density=0.7, channels=channels, dtype=torch.float32)
    kernel = torch.ones(1, 1, 3, 3) / 9
    size = (channels, 16, 20)
    operator = {
        "Blur": lambda: physics.Blur(filter=kernel, padding="circular"),
        "Downsampling": lambda: physics.Downsampling(img_size=size, factor=2, filter="gaussian"),
        "MRI": lambda: physics.MRI(mask=(drawn(1, 20) > 0.4).float().expand(16, 20), img_size=size),
        "Inpainting": lambda: physics.Inpainting(img_size=size, mask=(drawn(*size) > 0.5).float()),
    }[kind]()
    noisy = operator.A(problem.noisy)
    options = {"steps": 4, "record_every": 1, "verify": False, "clean": problem.clean}
    results = [
        oes.train_sparse(problem.net, problem.mask, problem.z, noisy, forward=forward, **options)
        for forward in (operator, lambda image: operator.A(image))
    ]
    losses, _ = trained_by_hand(problem, lambda image: F.mse_loss(operator.A(image), noisy), steps=4)
    for fit in results:
        assert fit.history.loss == pytest.approx(losses, rel=1e-3)
        assert fit.output.shape == problem.clean.shape
