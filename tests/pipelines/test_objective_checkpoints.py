"""Checkpoints know forward operators, losses and weights: by what they do, as scripts make them anew."""

from __future__ import annotations

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from objectives import drawn, half, script
from torch import nn

import oes_fast as oes

pytestmark = pytest.mark.usefixtures("unverified")

pytest_plugins = ("objectives",)


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
