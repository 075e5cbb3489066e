"""The generator: the published layout, its options, any image size, seeds."""

from __future__ import annotations

import copy

import pytest
import torch
import transcription
from conftest import unchanged
from hypothesis import given, settings
from hypothesis import strategies as st

import oes_fast as oes
from oes_fast.models.base import Concat, Generator, center_crop, extend

SMALL = {"num_channels_down": (3, 4), "filter_size_down": 3}
OPTIONS = {
    "published": {},
    "skips": {"num_channels_skip": (2, 0)},
    "skips of kernel 3": {"num_channels_skip": 2, "filter_skip_size": 3},
    "other channels up": {"num_channels_up": (5, 2)},
    "stride": {"downsample_mode": "stride"},
    "max": {"downsample_mode": ("max", "avg")},
    "bilinear": {"upsample_mode": ("bilinear", "nearest")},
    "zero padding": {"pad": "zero"},
    "zero padding, strides": {"pad": "zero", "downsample_mode": "stride", "num_channels_skip": 1},
    "lanczos": {"downsample_mode": ("lanczos2", "lanczos3")},
    "lanczos, zero padding": {"downsample_mode": "lanczos3", "pad": "zero"},
    "ReLU": {"act_fun": "ReLU"},
    "callable": {"act_fun": torch.nn.PReLU},
    "ELU": {"act_fun": "ELU"},
    "SiLU": {"act_fun": "SiLU"},
    "Swish": {"act_fun": "Swish"},
    "linear": {"act_fun": "none"},
    "1 x 1 up": {"need1x1_up": True},
    "no sigmoid": {"need_sigmoid": False},
    "no bias": {"need_bias": False},
    "kernels by scale": {"filter_size_down": (5, 3), "filter_size_up": (1, 5)},
    "large kernels up": {"filter_size_down": 1, "filter_size_up": 9},
    "large kernels across": {"num_channels_skip": 2, "filter_skip_size": 11},
    "one scale": {"num_channels_down": (3,)},
    "three scales": {"num_channels_down": (2, 3, 4)},
}


def small(**options):
    return oes.models.skip(2, 3, **({"seed": 0} | SMALL | options))


def published_names(depth=6, prefix=""):
    """Parameter names of the published nesting, outermost scale first."""
    conv = [f"{prefix}{{}}.1.weight", f"{prefix}{{}}.1.bias"]
    norm = [f"{prefix}{{}}.weight", f"{prefix}{{}}.bias"]
    names = [n.format(i) for n, i in [*((n, "1.1") for n in conv), *((n, "1.2") for n in norm)]]
    names += [n.format(i) for n, i in [*((n, "1.4") for n in conv), *((n, "1.5") for n in norm)]]
    if depth > 1:
        names += published_names(depth - 1, f"{prefix}1.7.")
    names += [n.format(i) for n, i in [*((n, "2") for n in norm), *((n, "3") for n in conv)]]
    return names + [n.format("4") for n in norm]


def published_shapes():
    """Parameter shapes of the published network in order."""
    channels = [16, 32, 64, 128, 128, 128]

    def scale(i, inputs):
        c = channels[i]
        shapes = [(c, inputs, 5, 5), (c,), (c,), (c,), (c, c, 5, 5), (c,), (c,), (c,)]
        below = c
        if i < 5:
            shapes += scale(i + 1, c)
            below = channels[i + 1]
        return [*shapes, (below,), (below,), (c, below, 3, 3), (c,), (c,), (c,)]

    return [*scale(0, 32), (3, 16, 1, 1), (3,)]


@pytest.fixture(scope="module")
def net():
    return oes.models.skip(seed=0)


def test_published_count_names_and_shapes(net):
    names = [name for name, _ in net.named_parameters()]
    assert sum(p.numel() for p in net.parameters()) == 3_008_867
    assert names == [*published_names(), "6.1.weight", "6.1.bias"]
    assert names[:6] == ["1.1.1.weight", "1.1.1.bias", "1.2.weight", "1.2.bias", "1.4.1.weight", "1.4.1.bias"]
    assert [tuple(p.shape) for p in net.parameters()] == published_shapes()


def test_published_formula(net):
    z = oes.noise_input(32, (192, 256), seed=1)
    with torch.no_grad():
        output = copy.deepcopy(net).double()(z.double())
        expected = transcription.generator((p.double() for p in net.parameters()), z.double(), depth=6)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


def test_state_dict_names_with_skips():
    names = list(small(num_channels_skip=(2, 0)).state_dict())
    assert names[:3] == ["1.0.1.1.weight", "1.0.1.1.bias", "1.0.2.weight"]  # Concat: 0 across, 1 down and up
    assert "1.1.1.1.weight" in names
    assert "1.1.7.1.1.1.weight" in names


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (5, 32), (16, 16), (33, 20)])
def test_options_at_any_size(options, size):
    net = small(**options)
    z = oes.noise_input(2, size, seed=0).requires_grad_()
    output = net(z)
    assert output.shape == (1, 3, *size)
    assert torch.isfinite(output).all()
    output.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert isinstance(net[-1], torch.nn.Sigmoid) == options.get("need_sigmoid", True)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    options=st.sampled_from([*OPTIONS.values()]),
    grey=st.booleans(),
)
def test_every_size(height, width, options, grey):
    net = oes.models.skip(2, 1 if grey else 3, **({"seed": 0} | SMALL | options))
    output = net(oes.noise_input(2, (height, width), seed=0))
    assert output.shape == (1, 1 if grey else 3, height, width)
    assert torch.isfinite(output).all()
    assert output.requires_grad
    assert net.training


def test_options_change_the_function():
    z = oes.noise_input(2, (32, 32), seed=0)
    same_weights = ["max", "bilinear", "zero padding", "ELU", "SiLU", "linear", "no sigmoid"]
    outputs = [small(**OPTIONS[name])(z) for name in ["published", *same_weights]]
    for i, output in enumerate(outputs):
        assert all((output - other).abs().max() > 1e-4 for other in outputs[:i])
    assert torch.equal(small(act_fun="Swish")(z), small(act_fun="SiLU")(z))


@pytest.mark.parametrize(
    ("options", "smallest"),
    [
        ({"filter_size_down": 5}, 12),  # 2 pixels mirrored need 3 at a quarter of the size
        ({"filter_size_down": 3}, 8),
        ({"pad": "zero", "filter_size_down": 7}, 8),  # batch statistics need more than one pixel
        ({"filter_size_down": (9, 3)}, 12),  # 4 mirrored at half the size need 5, so 10, and a multiple of 4
        ({"filter_size_down": 1, "filter_size_up": 9}, 12),
    ],
)
def test_sizes_that_fit_are_not_extended(options, smallest, monkeypatch):
    net = small(**options)

    def refuse(*_):
        raise AssertionError("extended an image that fits")

    before = net.inner_size(smallest - 1)
    monkeypatch.setattr("oes_fast.models.base.extend", refuse)
    for size in (smallest, smallest + 4, smallest + 8):
        assert net(oes.noise_input(2, (size, size + 4))).shape[-2:] == (size, size + 4)
    assert before == smallest
    with pytest.raises(AssertionError):
        net(oes.noise_input(2, (smallest - 1, smallest)))


def test_published_network_takes_192_pixels_as_they_are(net):
    sizes = {1: 192, 64: 192, 191: 192, 192: 192, 193: 256, 256: 256, 512: 512}
    assert {size: net.inner_size(size) for size in sizes} == sizes


def test_extend_mirrors():
    x = torch.arange(1.0, 7).view(1, 1, 2, 3)
    rows = [[1, 2, 3, 3, 2, 1, 1], [4, 5, 6, 6, 5, 4, 4]]
    expected = torch.tensor([rows[i] for i in (0, 1, 1, 0, 0, 1)], dtype=torch.float32)
    assert torch.equal(extend(x, (6, 7))[0, 0], expected)
    assert torch.equal(extend(x, (2, 3)), x)
    assert torch.equal(extend(x[..., :1, :1], (3, 2)), torch.ones(1, 1, 3, 2))


def test_outside_of_the_image_mirrors_the_input():
    net, z = small(), oes.noise_input(2, (9, 13), seed=0)
    whole = net(extend(z, (12, 16)))
    assert torch.equal(net(z), whole[..., :9, :13])


def test_center_crop_and_concat():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(center_crop(x, 3, 2), x[..., 1:4, 1:3])
    pool, identity = torch.nn.AvgPool2d(2, 1), torch.nn.Identity()
    assert torch.equal(Concat(1, identity, pool)(x), torch.cat([x[..., :4, :4], pool(x)], 1))


def test_seed():
    with unchanged():
        a, b, c = small(seed=1), small(seed=1), small(seed=2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(next(a.parameters()), next(c.parameters()))
    assert small(seed=2**64 - 1)(oes.noise_input(2, (8, 8))).isfinite().all()  # the largest seed


def test_seed_leaves_the_state_of_gpus_alone(monkeypatch):
    def refuse(*_):
        raise AssertionError("reseeded every GPU")

    monkeypatch.setattr("torch.cuda.manual_seed_all", refuse)
    small(seed=1)


def test_without_seed_the_global_state_is_drawn_from():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        first, second = small(seed=None), small(seed=None)
        torch.default_generator.manual_seed(5)
        again = small(seed=None)
    assert torch.equal(next(first.parameters()), next(again.parameters()))
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    assert torch.equal(next(small(seed=5).parameters()), next(first.parameters()))


BAD = [
    {"num_channels_down": ()},
    {"num_channels_down": 16},
    {"num_channels_down": (16, 0)},
    {"num_channels_down": (16, 4.5)},
    {"num_channels_up": (1, 2, 3)},
    {"num_channels_skip": -1},
    {"num_channels_skip": (1,)},
    {"num_channels_skip": None},
    {"filter_size_down": 4},
    {"filter_size_down": (3, 3, 3)},
    {"filter_size_up": 0},
    {"filter_skip_size": 2},
    {"pad": "circular"},
    {"upsample_mode": "cubic"},
    {"upsample_mode": ("nearest",)},
    {"downsample_mode": "lanczos4"},
    {"downsample_mode": None},
    {"act_fun": "relu"},
    {"act_fun": 3},
    {"act_fun": dict},
    {"seed": -1},
    {"seed": 2**64},
    {"seed": 1.0},
    {"num_input_channels": 0},
    {"num_output_channels": "3"},
]


@pytest.mark.parametrize("options", BAD, ids=[f"{k}={v}" for o in BAD for k, v in o.items()])
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        oes.models.skip(**({"num_channels_down": (3, 4)} | options))


def test_generator_is_a_sequential():
    net = small()
    z = oes.noise_input(2, (9, 9))
    assert isinstance(net, Generator)
    assert torch.equal(copy.deepcopy(net)(z), net(z))
    assert len(net[:3]) == 3
