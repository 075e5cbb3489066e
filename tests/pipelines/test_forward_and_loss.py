"""Forward operators, losses, weights and total variation: what runs make small, and what they refuse."""

from __future__ import annotations

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, build_problem, skip_unless_available
from inverse_problems import trained_by_hand
from kernel_backends import EMULATED
from optional_packages import deepinv
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten
from oes_fast.functional import gumbel_mask, mask_kl, total_variation
from oes_fast.pipelines.measurement import Measurement
from oes_fast.pipelines.objective import SquaredError, make_objective
from oes_fast.rewrite.run.chain_program import NativeChain

BACKENDS = ("reference", "torch", "cpu", *EMULATED)


def half(image):
    return F.avg_pool2d(image, 2)


def fourier(image):
    return torch.fft.fft2(image, norm="ortho")[..., ::2]


def squares(difference):
    return (difference * difference.conj()).real


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.7)


def drawn(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT = (drawn(1, 1, 16, 20) > 0.4) * drawn(1, 3, 16, 20, seed=1)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", PROBLEMS)
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
    # Once more at the end; networks without chains, as of Triton in float64, have none to count.
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
# what is refused


class Elsewhere(nn.Module):
    """An operator on another device."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(16, 20, device="meta"))

    def forward(self, image):
        return self.mask * image


def stepping(image):
    image *= 2
    return image


def failing(image):
    raise RuntimeError("no such\nimage")


REFUSED = {
    "number": ({"forward": 3}, r"^forward: expected a function of the image, or an object .*, got int$"),
    "class": ({"forward": nn.Identity}, r"^forward: .*, got the class Identity, not an object of it$"),
    "fails": (
        {"forward": failing},
        r"^forward: expected a function that takes the network's image of shape \(1, 3, 16, 20\), it raises "
        r"RuntimeError: no such image$",
    ),
    "no tensor": ({"forward": lambda x: (x, x)}, r"^forward: .* one tensor, got a tuple of 2$"),
    "shape": (
        {"forward": half},
        r"^forward: .*shape \(1, 3, 16, 20\), got \(1, 3, 8, 10\) of an image \(1, 3, 16, 20\)$",
    ),
    "dtype": ({"forward": lambda x: x.float()}, r"^forward: .* torch.float64, got torch.float32$"),
    "detached": (
        {"forward": lambda x: x.detach()},
        r"^forward: .* with a gradient to the image, got one without",
    ),
    "numpy": (
        {"forward": lambda x: torch.from_numpy(x.numpy())},
        r"^forward: .*it raises RuntimeError: .*numpy",
    ),
    "NaN": (
        {"forward": lambda x: torch.where(x == x.max(), x / 0 - x / 0, x)},
        r"^forward: expected a finite measurement of a finite image, got 1 NaN or infinite of 960$",
    ),
    "in place": ({"forward": stepping}, r"^forward: (expected to leave the image as it is|.*in-?place)"),
    "device": ({"forward": Elsewhere()}, r"^forward: .*(meta)"),
    "loss, number": ({"loss": "L1"}, r"^loss: expected a function of \(measured, noisy\), got str$"),
    "loss, class": ({"loss": nn.L1Loss}, r"^loss: .*, got the class L1Loss, not an object of it$"),
    "loss, shape": (
        {"loss": nn.L1Loss(reduction="none")},
        r"^loss: expected a scalar, got a tensor of shape \(1, 3, 16, 20\); take its mean$",
    ),
    "loss, float": ({"loss": lambda m, y: 0.5}, r"^loss: expected a scalar, one tensor, got float$"),
    "loss, complex": (
        {"loss": lambda m, y: m.mean() + 0j},
        r"^loss: expected a real scalar, got .*complex128$",
    ),
    "loss, detached": ({"loss": lambda m, y: m.detach().mean()}, r"^loss: .* gradient to what is measured"),
    "loss, NaN": (
        {"loss": lambda m, y: m.mean().log() * torch.nan},
        r"^loss: expected a finite number .*, got nan$",
    ),
    "loss, fails": ({"loss": lambda m: m.mean()}, r"^loss: expected a function .*it raises TypeError"),
    "loss, in place": (
        {"loss": lambda m, y: (y.add_(0) - m).mean()},
        r"^loss: expected to leave measured and noisy",
    ),
    "both": ({"loss": nn.L1Loss(), "weight": WEIGHT}, r"^weight: expected none beside loss"),
    "weight, number": ({"weight": 2.0}, r"^weight: expected a torch.Tensor, got float$"),
    "weight, negative": ({"weight": -WEIGHT}, r"^weight: expected finite numbers >= 0, got \d+ negative"),
    "weight, NaN": ({"weight": WEIGHT / 0}, r"^weight: expected finite numbers >= 0, got 960 negative, NaN"),
    "weight, zeros": ({"weight": 0 * WEIGHT}, r"^weight: expected one above 0 at least, got zeros alone$"),
    "weight, dtype": (
        {"weight": WEIGHT.float()},
        r"^weight: expected torch.float64 as noisy, or torch.bool, got",
    ),
    "weight, complex": ({"weight": WEIGHT + 0j}, r"^weight: expected torch.float64 .* got torch.complex128$"),
    "weight, shape": (
        {"weight": WEIGHT[..., :3]},
        r"^weight: .*expands to noisy's \(1, 3, 16, 20\), got \(1, 3, 16, 3\)$",
    ),
    "weight, larger": ({"weight": WEIGHT.expand(2, -1, -1, -1)}, r"^weight: .*got \(2, 3, 16, 20\)$"),
    "weight, device": ({"weight": WEIGHT.to("meta")}, r"^weight: expected a tensor on cpu, got one on meta$"),
    "tv": ({"tv": -0.1}, r"^tv: expected a finite number >= 0.0, got -0.1$"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_said_by_name(small, kind):
    options, message = REFUSED[kind]
    noisy = small.noisy.clone()
    with pytest.raises(oes.InputError, match=message):
        oes.train_sparse(
            small.net, small.mask, small.z, noisy, **options, steps=2, backend="cpu", verify=False
        )
    assert torch.equal(noisy, small.noisy)


@pytest.mark.parametrize(
    ("noisy", "message"),
    [
        (torch.zeros(0, dtype=torch.float64), r"^noisy: expected a number at least, got shape \(0,\)$"),
        (torch.zeros(3), r"^noisy: expected dtype float64 or complex128, got float32$"),
        (
            torch.zeros(3, dtype=torch.complex64),
            r"^noisy: expected dtype float64 or complex128, got complex64$",
        ),
        (torch.full((2,), torch.nan, dtype=torch.complex128), r"^noisy: expected finite values, got 2 NaN"),
        (
            torch.zeros(3, dtype=torch.float64, device="meta"),
            r"^noisy: expected a tensor on cpu, got one on meta",
        ),
        ([1.0], r"^noisy: expected a torch.Tensor, got list$"),
    ],
    ids=["empty", "float32", "complex64", "NaN", "device", "list"],
)
def test_measurements_that_do_not_fit(small, noisy, message):
    with pytest.raises(oes.InputError, match=message):
        oes.train_sparse(small.net, small.mask, small.z, noisy, forward=lambda x: x.flatten()[:3], steps=2)


def test_the_clean_image_is_of_the_networks_shape(small):
    noisy, options = half(small.noisy), {"forward": half, "steps": 1, "backend": "reference"}
    with pytest.raises(
        oes.InputError, match=r"^clean: expected shape \(1, any, 16, 20\), got \(1, 3, 8, 10\)$"
    ):
        oes.train_sparse(small.net, small.mask, small.z, noisy, clean=noisy, **options)
    with pytest.raises(
        oes.InputError, match=r"^clean: .* network's image \(1, 3, 16, 20\), got \(1, 1, 16, 20\)$"
    ):
        oes.train_sparse(small.net, small.mask, small.z, noisy, clean=small.clean[:, :1], **options)
    own = nn.Sequential(small.net, nn.AvgPool2d(2))
    mask = oes.Mask.from_flat(own, small.mask.flat)
    with pytest.raises(
        oes.InputError, match=r"^clean: .* network's image \(1, 3, 8, 10\), got \(1, 3, 16, 20\)$"
    ):
        oes.train_sparse(own, mask, small.z, half(noisy), clean=small.clean, **options)


def test_an_output_that_is_no_image(small):
    class Pair(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net(z), z

    with pytest.raises(
        oes.InputError, match=r"^net: expected an image of torch.float64 as output, got a tuple"
    ):
        oes.baselines.dense_dip(
            Pair(small.net), small.z, half(small.noisy), forward=half, steps=1, backend="reference"
        )
    with pytest.raises(
        oes.InputError, match=r"^net: expected an output of the noisy image's shape .*; a forward"
    ):
        oes.baselines.dense_dip(
            nn.Sequential(small.net, nn.AvgPool2d(2)),
            small.z,
            small.noisy,
            tv=1.0,
            steps=1,
            backend="reference",
        )


# ---------------------------------------------------------------------------------------------------------
# collapse


@pytest.mark.parametrize(
    "forward", [half, fourier, lambda x: x.flatten()[::7], lambda x: (3 * x + 1).square()[0, 1]]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_flat_images_have_no_spread(small, forward, weighted):
    target = forward(small.noisy)
    weight = drawn(*target.shape) if weighted else None
    objective = make_objective(target, forward=forward, weight=weight)
    flat = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 16, 20)
    spread, expected = objective.spreads(flat)
    assert spread < 1e-3 * expected
    spread, expected = objective.spreads(small.noisy)
    assert_close(spread, expected)


def test_the_spread_of_known_pixels(small):
    """That of half the pixels, the others being flat or not, and nearly that by way of an operator."""
    known = (drawn(1, 1, 16, 20) > 0.5).double()
    noisy = known * small.noisy
    objective = make_objective(noisy, weight=known)
    spread, expected = objective.spreads(torch.where(known > 0, 0.5, small.noisy))
    assert spread < 1e-12
    channels = [noisy[0, c][known[0, 0] > 0].std(correction=0) for c in range(3)]
    assert_close(expected, torch.stack(channels).mean()[None])
    blind = known * torch.tensor([1.0, 0.0, 1.0]).double().view(1, 3, 1, 1)
    assert torch.isfinite(make_objective(noisy, weight=blind).spreads(noisy)[1])


def test_a_collapsed_run_says_so(small):
    net = nn.Sequential(nn.Conv2d(4, 3, 1)).double()
    with torch.no_grad():
        net[0].weight.zero_()
    with pytest.warns(
        oes.CollapsedRunWarning, match=r"flat \(standard deviation 0.0000 of its measurement, the noisy one"
    ):
        fit = oes.baselines.dense_dip(net, small.z, half(small.noisy), forward=half, steps=0)
    assert fit.collapsed

    def picky(image):
        if image.unique().numel() < 10:
            raise ValueError("flat")
        return half(image)

    fit = oes.train_sparse(small.net, small.mask, small.z, half(small.noisy), forward=picky, steps=1)
    assert not fit.collapsed


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_run_that_leaves_is_said_whatever_the_unit(small, scale):
    """Also where all losses are below those that count as equal for images in 0..1."""
    forward = lambda image: scale * half(image)  # noqa: E731
    fit = functools.partial(
        oes.baselines.dense_dip, small.net, small.z, forward(small.noisy), forward=forward, record_every=1
    )
    assert not fit(steps=20, lr=1e-2).diverged
    with pytest.warns(oes.DivergedRunWarning, match="has diverged"):
        assert fit(steps=20, lr=30.0).diverged


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_loss_that_changes_the_measurement_leaves_the_callers(small, checkpoint, tmp_path):
    noisy = small.noisy.clone()
    path = tmp_path / "run.safetensors" if checkpoint else None
    with pytest.raises(oes.InputError, match="loss: expected to leave measured and noisy as they are"):
        script(
            small,
            path,
            noisy=noisy,
            loss=lambda measured, noisy: (measured - noisy.mul_(0.5)).square().mean(),
        )
    assert torch.equal(noisy, small.noisy)


# ---------------------------------------------------------------------------------------------------------
# checkpoints


def script(small, path, *, resume=False, stop=None, noisy=None, **options):
    """What a script does that is run twice: its functions are made anew each time."""
    return oes.train_sparse(
        small.net,
        small.mask,
        small.z,
        half(small.noisy) if noisy is None else noisy,
        **options,
        steps=6,
        record_every=2,
        backend="torch",
        verify=False,
        callback=None if stop is None else lambda info: info.step >= stop,
        checkpoint=path,
        checkpoint_seconds=0.0,
        resume=resume,
    )


def by(factor):
    return lambda image: factor * half(image)


def only_above(least, image):
    """Refuses others."""
    assert image.min() >= least, "too small"
    return 1 * image


MADE = {
    "lambda": lambda: {"forward": lambda image: F.avg_pool2d(image, 2)},
    "closure": lambda: {"forward": by(torch.tensor(0.5).double())},
    "partial": lambda: {"forward": functools.partial(F.avg_pool2d, kernel_size=2)},
    "module": lambda: {"forward": nn.AvgPool2d(2)},
    "method A": lambda: {"forward": types.SimpleNamespace(A=half)},
    "refuses negative values": lambda: {"forward": lambda image: only_above(-0.5, half(image))},
    "NaN of negative values": lambda: {
        "forward": lambda image: half(image).clamp(min=-1e-3).add(1e-3).sqrt()
    },
    "loss": lambda: {"forward": half, "loss": nn.SmoothL1Loss()},
    "weight": lambda: {"forward": half, "weight": drawn(8, 10)},
    "tv": lambda: {"forward": half, "tv": 0.1},
    "draws": lambda: {"forward": lambda image: half(image) + 0 * torch.rand(8, 10).double()},
}


@pytest.mark.parametrize("kind", MADE)
def test_the_same_script_goes_on_bit_for_bit(small, kind, tmp_path):
    whole = script(small, tmp_path / "whole.safetensors", **MADE[kind]())
    script(small, tmp_path / "run.safetensors", **MADE[kind](), stop=3)
    fit = script(small, tmp_path / "run.safetensors", **MADE[kind](), resume=True)
    assert torch.equal(fit.output, whole.output)
    assert fit.history.loss == whole.history.loss


OTHERS = {
    "lambda": (
        {"forward": lambda x: F.avg_pool2d(x, 2)},
        {"forward": lambda x: F.max_pool2d(x, 2)},
        "forward",
    ),
    "closure": ({"forward": by(0.5)}, {"forward": by(0.501)}, "forward"),
    "one pixel": (
        {"forward": by(1.0)},
        {"forward": by(torch.ones(8, 10).double().index_fill(1, torch.tensor(3), 0.9))},
        "forward",
    ),
    "partial": (
        {"forward": functools.partial(F.interpolate, size=(8, 10))},
        {"forward": functools.partial(F.interpolate, size=(8, 10), mode="bilinear")},
        "forward",
    ),
    "loss": (
        {"forward": half, "loss": nn.L1Loss()},
        {"forward": half, "loss": nn.SmoothL1Loss()},
        "loss function",
    ),
    "loss, slope": (
        {"forward": half, "loss": nn.HuberLoss(delta=0.1)},
        {"forward": half, "loss": nn.HuberLoss(delta=0.101)},
        "loss function",
    ),
    "negative values": ({"forward": half}, {"forward": lambda x: half(x).abs()}, "forward"),
    "large values": (
        {"forward": lambda x: half(x).clamp(max=3)},
        {"forward": lambda x: half(x).clamp(max=6)},
        "forward",
    ),
    "none below zero": (
        {"forward": lambda x: only_above(-0.5, half(x))},
        {"forward": lambda x: 1.001 * only_above(-0.5, half(x))},
        "forward",
    ),
    "refuses negative values, or not": (
        {"forward": lambda x: only_above(-0.5, half(x))},
        {"forward": half},
        "forward",
    ),
    "loss far off": (
        {"forward": half, "loss": nn.HuberLoss(delta=2.0)},
        {"forward": half, "loss": nn.HuberLoss(delta=3.0)},
        "loss function",
    ),
    "loss close by": (
        {"forward": half, "loss": nn.SmoothL1Loss(beta=1e-3)},
        {"forward": half, "loss": nn.SmoothL1Loss(beta=2e-3)},
        "loss function",
    ),
    "weight": (
        {"forward": half, "weight": drawn(8, 10)},
        {"forward": half, "weight": drawn(8, 10, seed=1)},
        "weight",
    ),
    "no weight": ({"forward": half, "weight": drawn(8, 10)}, {"forward": half}, "weight"),
    "no loss": ({"forward": half, "loss": nn.L1Loss()}, {"forward": half}, "loss function"),
    "a loss": ({"forward": half}, {"forward": half, "loss": nn.L1Loss()}, "loss function"),
    "tv": ({"forward": half, "tv": 0.1}, {"forward": half, "tv": 0.2}, "tv"),
    "no tv": ({"forward": half, "tv": 0.1}, {"forward": half}, "tv"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_another_objective_is_refused(small, kind, tmp_path):
    before, after, said = OTHERS[kind]
    script(small, tmp_path / "run.safetensors", **before, stop=2)
    with pytest.raises(oes.CheckpointError, match=rf"the checkpoint was made .*\b{said}\b") as caught:
        script(small, tmp_path / "run.safetensors", **after, resume=True)
    assert [each.key for each in caught.value.differences] == [said.split()[0]]


def test_a_checkpoint_without_an_operator_is_refused(small, tmp_path):
    script(small, tmp_path / "run.safetensors", noisy=small.noisy, stop=2)
    with pytest.raises(oes.CheckpointError, match="without a forward operator, this run has one"):
        script(small, tmp_path / "run.safetensors", noisy=small.noisy, forward=nn.Identity(), resume=True)


def test_names_say_which_operators(small, tmp_path):
    script(small, tmp_path / "run.safetensors", forward=nn.AvgPool2d(2), stop=2)
    forward = functools.partial(twice, half)
    with pytest.raises(
        oes.CheckpointError,
        match=r"another forward operator \(torch\.nn\.\S+\.AvgPool2d, this run partial of \w+\.twice\)",
    ):
        script(small, tmp_path / "run.safetensors", forward=forward, resume=True)


def twice(function, image):
    return 2 * function(image)


def test_an_operator_that_is_another_each_time_is_known_by_its_name(small, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def noisily(image):
        return half(image) + 0.01 * torch.rand(1, 3, 8, 10, generator=generator, dtype=torch.float64)

    script(small, tmp_path / "run.safetensors", forward=noisily, stop=2)
    assert script(small, tmp_path / "run.safetensors", forward=noisily, resume=True).steps == 6
    with pytest.raises(oes.CheckpointError, match="forward operator"):
        script(small, tmp_path / "run.safetensors", forward=half, resume=True)


def test_fingerprints_leave_random_numbers_alone(small, tmp_path):
    torch.manual_seed(3)
    script(
        small,
        tmp_path / "run.safetensors",
        forward=lambda x: half(F.dropout(x, 0.0)),
        loss=nn.L1Loss(),
        stop=0,
    )
    after = torch.rand(1)
    torch.manual_seed(3)
    script(small, None, forward=lambda x: half(F.dropout(x, 0.0)), loss=nn.L1Loss(), stop=0)
    assert torch.equal(after, torch.rand(1))


def test_iterative_pruning_keeps_the_operator(small, tmp_path):
    options = {"densities": [0.5, 0.3], "steps": 2, "checkpoint": tmp_path / "imp", "backend": "reference"}
    noisy = half(small.noisy)
    run = functools.partial(oes.pruning.imp_rounds, small.net, small.z, noisy, **options)
    found = run(forward=half, callback=lambda info: info.phase.startswith("imp round 2"))
    assert len(found.rounds) == 1
    with pytest.raises(oes.CheckpointError, match="forward operator"):
        run(forward=lambda image: F.max_pool2d(image, 2), resume=True)
    assert len(run(forward=lambda image: F.avg_pool2d(image, 2), resume=True).rounds) == 2


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
