"""Signals [1, C, L] and volumes [1, C, D, H, W] in both pipelines and what belongs to them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.pipelines.differences import describe_image
from oes_fast.pipelines.schedule import Schedule
from oes_fast.pipelines.weight_noise import WeightNoise

pytestmark = [
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
    pytest.mark.filterwarnings("ignore::oes_fast.EmptyLayerWarning"),
    pytest.mark.parametrize("case", ["skip_1d", "skip_3d"]),
]
COMMON = {"backend": "reference", "record_every": 1}
SAMPLED = COMMON | {"sample_every": 1}


def mask_of(net):
    count = sum(p.numel() for p in net.parameters())
    return oes.Mask.from_flat(net, torch.rand(count, generator=torch.Generator().manual_seed(0)) < 0.8)


def test_psnr_and_history_are_those_of_the_image(case):
    net, z, noisy = tiny(case)
    clean = noisy.flip(-1)
    images = []
    fit = oes.train_sparse(
        net,
        mask_of(net),
        z,
        noisy,
        steps=4,
        clean=clean,
        average=0.5,
        callback=lambda info: images.append(info.output.clone()),
        **COMMON,
    )
    assert fit.history.step == [0, 1, 2, 3, 4]
    losses = [float((image - noisy).square().mean()) for image in images]
    assert fit.history.loss[: len(losses)] == pytest.approx(losses)
    assert fit.history.psnr[-1] == pytest.approx(oes.psnr(fit.output, clean))
    assert fit.average.shape == noisy.shape
    assert fit.history.psnr_average[-1] == pytest.approx(oes.psnr(fit.average, clean))
    found = oes.search_mask(net, z, noisy, density=0.5, steps=3, lr=0.3, clean=clean, **COMMON)
    assert found.output.shape == noisy.shape
    assert found.mask.density == pytest.approx(0.5, abs=0.01)


def test_a_run_that_was_stopped_ends_where_it_would_have(case, tmp_path):
    net, z, noisy = tiny(case)
    mask, path = mask_of(net), tmp_path / "run.ckpt"
    run = {**COMMON, "checkpoint": path, "checkpoint_seconds": 0.0}
    whole = oes.train_sparse(net, mask, z, noisy, steps=5, **COMMON)
    oes.train_sparse(net, mask, z, noisy, steps=5, callback=lambda info: info.step == 2, **run)
    resumed = oes.train_sparse(net, mask, z, noisy, steps=5, resume=True, **run)
    assert torch.equal(resumed.output, whole.output)
    assert resumed.history.loss == whole.history.loss
    with pytest.raises(oes.CheckpointError, match=f"another noisy image .both: {describe_image(noisy)}"):
        oes.train_sparse(net, mask, z, noisy.flip(-1), steps=5, resume=True, **run)


def test_images_are_described_by_their_dimensions(case):
    _, _, noisy = tiny(case)
    assert (
        describe_image(noisy)
        == {
            "skip_1d": "37 samples of 2 channels",
            "skip_3d": "10 x 8 x 9 voxels of 1 channel",
        }[case]
    )


def test_what_does_not_fit_is_named(case):
    net, z, noisy = tiny(case)
    mask = mask_of(net)
    run = {"steps": 1, "backend": "reference"}
    with pytest.raises(oes.InputError, match=f"^z: expected {z.ndim} dimensions"):
        oes.train_sparse(net, mask, z[..., 0], noisy, **run)
    with pytest.raises(oes.InputError, match=f"^z: expected {z.shape[1]} channels as the network takes"):
        oes.train_sparse(net, mask, z[:, :1], noisy, **run)
    with pytest.raises(oes.InputError, match=r"^noisy: expected shape"):
        oes.train_sparse(net, mask, z, noisy[..., :-1], **run)
    with pytest.raises(oes.InputError, match=r"^clean: expected shape"):
        oes.train_sparse(net, mask, z, noisy, clean=noisy[..., :-1], **run)


@pytest.mark.filterwarnings("default::oes_fast.CollapsedRunWarning")
def test_a_flat_output_is_told_from_one_whose_channels_differ(case):
    net, z, noisy = tiny(case)
    count = sum(p.numel() for p in net.parameters())
    flat = torch.zeros(count, dtype=torch.bool)
    flat[-noisy.shape[1] :] = True  # the last layer's bias alone: a constant for each channel
    with torch.no_grad():
        list(net.parameters())[-1].copy_(torch.linspace(-2, 2, noisy.shape[1]))
    with pytest.warns(oes.CollapsedRunWarning, match="the output is flat"):
        fit = oes.train_sparse(net, oes.Mask.from_flat(net, flat), z, noisy, steps=1, **COMMON)
    assert fit.collapsed


def test_the_baselines_take_them(case):
    net, z, noisy = tiny(case)
    fit = oes.baselines.dense_dip(net, z, noisy, steps=2, input_noise=0.05, **COMMON)
    assert fit.output.shape == noisy.shape
    sampled = oes.baselines.sgld(net, z, noisy, steps=3, lr=1e-2, burn_in=1, param_noise=0.5, **SAMPLED)
    still = oes.baselines.sgld(net, z, noisy, steps=3, lr=1e-2, burn_in=1, param_noise=0.0, **SAMPLED)
    assert not torch.equal(sampled.output, still.output)
    assert sampled.posterior_mean.shape == noisy.shape


def test_noise_on_the_weights_is_that_of_convolutions(case):
    net, _, _ = tiny(case)
    layout = FlatLayout.of(net)
    weights = torch.zeros(layout.numel, dtype=torch.float64)
    WeightNoise(net, 1.0, Schedule.of(0.01), seed=0).finish(0, weights)
    convs = {f"{name}.weight" for name, module in net.named_modules() if hasattr(module, "kernel_size")}
    for name, view in layout.views(weights).items():
        assert bool(view.any()) == (name in convs)


def test_every_way_to_a_mask_takes_them(case):
    net, z, noisy = tiny(case)
    masks = {
        "random": oes.pruning.random(net, z, noisy, density=0.6),
        "magnitude": oes.pruning.magnitude(net, z, noisy, density=0.6, scope="erdos_renyi_kernel"),
        "snip": oes.pruning.snip(net, z, noisy, density=0.6, backend="reference"),
        "grasp": oes.pruning.grasp(net, z, noisy, density=0.6, backend="reference"),
        "synflow": oes.pruning.synflow(net, z, noisy, density=0.6, backend="reference"),
        "oes": oes.pruning.oes(net, z, noisy, density=0.6, steps=2, backend="reference"),
        "imp": oes.pruning.imp(net, z, noisy, density=0.6, steps=2, rounds=1, backend="reference"),
    }
    for mask in masks.values():
        assert mask.density == pytest.approx(0.6, abs=0.01)
        assert mask.recipe == net.recipe
