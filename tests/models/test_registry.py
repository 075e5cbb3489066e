"""Models by name: networks and inputs for any image, options as values and as text, what they train to."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from conftest import assert_close, unchanged
from tiny_models import SHAPES, TINY, tiny

import oes_fast as oes
from oes_fast.models import MODELS, generator
from oes_fast.models.registry import network, parsed_options
from oes_fast.recipe import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")


def test_every_model_has_a_tiny_one():
    assert {name for name, _ in TINY.values()} == set(MODELS)
    assert next(iter(MODELS)) == "skip"
    assert all(model.name == name for name, model in MODELS.items())


@pytest.mark.parametrize("case", TINY)
def test_weights_and_input_are_those_of_the_seed_in_every_dtype(case):
    with unchanged():
        net, z, noisy = tiny(case)
        single, same_z, _ = tiny(case, dtype=torch.float32)
    assert net(z).shape == noisy.shape
    assert torch.equal(z.float(), same_z)
    for a, b in zip(net.parameters(), single.parameters(), strict=True):
        assert torch.equal(a.float(), b)
    assert net.recipe == Recipe(TINY[case][0], json.loads(json.dumps(TINY[case][1])))


@pytest.mark.parametrize("case", TINY)
@pytest.mark.parametrize("side", [1, 2, 7, 33])
def test_any_size(case, side):
    name, options = TINY[case]
    dims = MODELS[name].dims
    if dims == 3 and side == 33:
        side = 17
    shape = (2, *([side] if dims == 1 else [side, side + 3] if dims == 2 else [side, 5, side + 1]))
    net, z = generator(name, shape, seed=0, **options)
    image = net(z)
    assert image.shape == (1, *shape)
    assert torch.isfinite(image).all()
    image.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("case", TINY)
def test_it_trains_and_is_searched_the_same_on_the_reference(case):
    net, z, noisy = tiny(case)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "rewriting needs a z", oes.OESWarning)
        with unchanged(net, z):
            common = {"steps": 3, "record_every": 1, "clean": noisy}
            slow = oes.search_mask(net, z, noisy, density=0.6, lr=0.3, backend="reference", **common)
            fast = oes.search_mask(net, z, noisy, density=0.6, lr=0.3, **common)
            exact = oes.train_sparse(net, slow.mask, z, noisy, backend="reference", **common)
            fit = oes.train_sparse(net, slow.mask, z, noisy, verify=False, **common)
    assert fast.history.loss == pytest.approx(slow.history.loss, rel=1e-9)
    assert_close(fast.output, slow.output, rtol=1e-8)
    assert fit.history.loss == pytest.approx(exact.history.loss, rel=1e-9)
    assert fit.history.psnr == pytest.approx(exact.history.psnr, rel=1e-9)
    assert_close(fit.output, exact.output, rtol=1e-7)
    assert exact.output.shape == noisy.shape
    name, options = TINY[case]
    assert fast.mask.recipe == Recipe(name, json.loads(json.dumps(options)))


def test_the_default_is_the_published_network():
    noisy = torch.rand(1, 1, 20, 24)
    net, z = oes.fresh_generator(noisy, seed=4)
    published = oes.models.skip(32, 1, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), published.parameters(), strict=True))
    assert torch.equal(z, oes.noise_input(32, (20, 24), seed=4))
    assert repr(net) == repr(published)
    assert oes.Mask.from_flat(net, torch.ones(3_008_833, dtype=torch.bool)).settings == {}


def test_a_shape_stands_for_the_image_where_something_else_was_measured():
    measured = torch.zeros(1, 2, 5, dtype=torch.complex128)
    options = {"num_channels_down": (4,), "filter_size_down": 3}
    net, z = oes.fresh_generator(measured, shape=(2, 10, 12), options=options)
    assert net(z).shape == (1, 2, 10, 12)
    assert z.dtype == torch.float64
    net, z = oes.fresh_generator(torch.zeros(1, 2, 30), model="skip_1d", options=options)
    assert net(z).shape == (1, 2, 30)


def test_a_mask_is_carried_to_another_image_with_its_network():
    for case in ("unet", "skip_1d", "conv_decoder"):
        net, _, noisy = tiny(case, dtype=torch.float32)
        kept = torch.rand(sum(p.numel() for p in net.parameters())) < 0.8
        mask = oes.Mask.from_flat(net, kept)
        other = torch.rand(*noisy.shape[:-1], noisy.shape[-1] + 5)
        fit = oes.transfer_mask(mask, other, steps=1, seed=3, backend="reference")
        assert fit.output.shape == other.shape
        name, options = TINY[case]
        same, _ = generator(name, other.shape[1:], seed=3, **options)
        assert fit.mask.fingerprint == oes.fingerprint(same)


def test_masks_keep_what_they_are_for(tmp_path):
    net, z, noisy = tiny("unet")
    count = sum(p.numel() for p in net.parameters())
    mask = oes.Mask.from_logits(net, torch.linspace(0, 1, count, dtype=torch.float64), 0.5, lr=1)
    masks = [
        mask,
        mask.shuffled(net, seed=1),
        oes.Mask.from_dict(net, mask.to_dict(net)),
        oes.pruning.magnitude(net, z, noisy, density=0.5),
        oes.pruning.random(net, z, noisy, density=0.5),
        oes.pruning.snip(net, z, noisy, density=0.5, small="score", published=True, backend="reference"),
    ]
    mask.save(tmp_path / "mask.safetensors")
    for each in [*masks, oes.Mask.load(tmp_path / "mask.safetensors")]:
        assert each.recipe == net.recipe
        assert each.settings["model"] == "unet"
    with pytest.raises(oes.InputError, match="mask: expected settings with a name as model, got 3"):
        oes.Mask.from_flat(torch.nn.Conv2d(1, 1, 1), [True, True], model=3).recipe  # noqa: B018


def test_what_no_file_can_say_is_not_recorded():
    net, _ = generator("skip", (3, 16, 16), act_fun=torch.nn.PReLU, num_channels_down=(4,))
    assert net.recipe is None
    assert oes.Mask.from_flat(net, torch.ones(oes.flat.FlatLayout.of(net).numel).bool()).settings == {}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("skip", "num_channels_down=16,32", [16, 32]),
        ("skip", "num-channels-skip=4", 4),
        ("skip", "num_channels_skip=4, 0", [4, 0]),
        ("skip", "num_channels_down=16", [16]),
        ("skip", "num_channels_up=none", None),
        ("skip", "need1x1_up=True", True),
        ("skip", "need_bias=off", False),
        ("skip", "downsample_mode=avg,max", ["avg", "max"]),
        ("skip", "downsample_mode=lanczos2", "lanczos2"),
        ("skip", "act_fun=none", "none"),
        ("unet", "norm_layer=none", "none"),
        ("deep_decoder", "num_channels=8", 8),
        ("conv_decoder", "intermeds=true,false", [True, False]),
        ("conv_decoder", "in_size=8,4", [8, 4]),
    ],
)
def test_options_as_text(name, text, value):
    key, parsed = MODELS[name].parse(text)
    assert parsed == value
    assert type(parsed) is type(value)
    assert parsed_options(name, [text]) == {key: value}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generator("vgg", (3, 8, 8)), "model: expected one of skip, unet, .*, got 'vgg'"),
        (lambda: generator(["skip"], (3, 8, 8)), "model: expected one of"),
        (lambda: generator("unet", (3, 8, 8), act_fun="ReLU"), "options: .* of unet: num_input.*'act_fun'"),
        (
            lambda: generator("unet", (3, 8)),
            r"shape: expected \(C, H, W\) of an image for unet, got \(3, 8\)",
        ),
        (lambda: generator("skip_1d", (3, 8, 8)), r"shape: expected \(C, L\)"),
        (lambda: generator("skip_3d", (3, 8, 8)), r"shape: expected \(C, D, H, W\)"),
        (lambda: generator("unet", torch.tensor(3.0)), r"shape: expected \(C, H, W\)"),
        (lambda: generator("unet", (3, 0, 8)), "shape: expected an integer >= 1, got 0"),
        (lambda: generator("unet", (3, 8, 8), seed=-1), "seed"),
        (lambda: generator("unet", (3, 8, 8), dtype=torch.float16), "dtype"),
        (lambda: parsed_options("skip", ["need_bias"]), "options: expected KEY=VALUE, got 'need_bias'"),
        (lambda: parsed_options("skip", ["size=3"]), "options: expected options of skip: .*; got 'size'"),
        (
            lambda: parsed_options("skip", ["need_bias=maybe"]),
            "need_bias: expected true or false, got 'maybe'",
        ),
        (lambda: parsed_options("unet", ["feature_scale=a"]), "feature_scale: expected a whole number"),
        (
            lambda: parsed_options("unet", ["pad=zero", "pad=zero"]),
            "options: expected each once, got pad twice",
        ),
        (lambda: oes.fresh_generator(torch.rand(1, 3, 8)), "noisy: expected 4 dimensions"),
        (lambda: oes.fresh_generator(torch.rand(1, 3, 8, 8), options=3), "options: expected a dict"),
        (
            lambda: oes.fresh_generator(torch.rand(1, 3, 8, 8), options={"seed": 3}),
            "options: expected options of skip: .*; got 'seed'",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(oes.InputError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"feature_scale": 0}),
        ("unet", {"feature_scale": 65}),
        ("unet", {"more_layers": -1}),
        ("unet", {"concat_x": True}),
        ("unet", {"concat_x": 1}),
        ("unet", {"upsample_mode": "avg"}),
        ("unet", {"pad": "replication"}),
        ("unet", {"norm_layer": "LayerNorm"}),
        ("resnet", {"num_blocks": -1}),
        ("resnet", {"num_channels": 0}),
        ("resnet", {"norm_layer": "none"}),
        ("resnet", {"act_fun": "relu"}),
        ("resnet", {"need_residual": None}),
        ("dcgan", {"ndf": 0}),
        ("dcgan", {"num_ups": 2}),
        ("dcgan", {"need_convT": "no"}),
        ("dcgan", {"upsample_mode": "cubic"}),
        ("conv_decoder", {"num_layers": 1}),
        ("conv_decoder", {"in_size": 0}),
        ("conv_decoder", {"in_size": (4, 4, 4)}),
        ("conv_decoder", {"kernel_size": 4}),
        ("conv_decoder", {"intermeds": [True]}),
        ("conv_decoder", {"skips": 1}),
        ("skip_1d", {"upsample_mode": "bilinear"}),
        ("skip_3d", {"upsample_mode": "linear"}),
    ],
    ids=str,
)
def test_bad_options_are_named(name, options):
    (key,) = options
    shape = (1, *[16] * MODELS[name].dims)
    with pytest.raises(oes.InputError, match=f"^{key}: "):
        network(name, shape, **options)


def test_norms_and_activations_of_the_caller():
    net, z = generator(
        "unet", (3, 32, 32), seed=0, feature_scale=16, norm_layer=lambda n: torch.nn.GroupNorm(2, n)
    )
    assert any(isinstance(m, torch.nn.GroupNorm) for m in net.modules())
    assert net(z).shape == (1, 3, 32, 32)
    net, z = generator("resnet", (3, 9, 9), seed=0, act_fun=torch.nn.Tanh, dtype=torch.float64)
    assert net(z).dtype == torch.float64


def test_more_layers_than_the_published_loop_takes():
    net, z = generator("unet", (1, 128, 120), seed=0, feature_scale=32, num_input_channels=1, more_layers=3)
    assert net.inner_size(120) == 256
    with torch.no_grad():
        assert net(z).shape == (1, 1, 128, 120)


def test_shapes_are_those_of_the_dimensions():
    assert {model.dims for model in MODELS.values()} == set(SHAPES)
