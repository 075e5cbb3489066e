"""The Deep Decoder against its layers written out, its sizes, its masks, and both pipelines on it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, skip_unless_available, unchanged
from kernel_backends import EMULATED

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten
from oes_fast.models import deep_decoder, deep_decoder_input

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")

BACKENDS = ["reference", "torch", "cpu", *EMULATED]


def small(**options):
    return deep_decoder(**({"k": 3, "num_channels": 6, "seed": 0, "dtype": torch.float64} | options))


def image(height=32, width=24, channels=3):
    rows, columns = torch.linspace(0, 1, height).double(), torch.linspace(0, 1, width).double()
    clean = torch.stack([rows[:, None] * columns.pow(c) for c in range(channels)])[None]
    return oes.add_noise(clean, 0.1, seed=0)


def kept(net, density=0.8, seed=0):
    """A random mask that keeps batch norm whole, so that channels stay alive."""
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=generator) < density for n, p in net.named_parameters()}
    return oes.Mask.from_dict(net, {n: m if m.ndim == 4 else torch.ones_like(m) for n, m in masks.items()})


def test_it_has_as_many_parameters_as_published():
    net = deep_decoder(seed=0)
    assert sum(p.numel() for p in net.parameters()) == 100_224
    convs = [(name, tuple(p.shape)) for name, p in net.named_parameters() if p.ndim == 4]
    # Under the names of the published code: padding first in each pair, and up-sampling between.
    assert [name for name, _ in convs] == [f"{i}.1.weight" for i in (1, 5, 9, 13, 17, 21, 24)]
    assert [shape[:2] for _, shape in convs] == [(128, 128)] * 6 + [(3, 128)]
    assert not any(name.endswith(".1.bias") for name, _ in net.named_parameters())


def test_it_is_its_layers_written_out():
    net = small(num_channels=(5, 4, 3)).train()
    z = deep_decoder_input(net, (32, 24), seed=1)
    assert z.shape == (1, 5, 4, 3)
    weights = [p for p in net.parameters() if p.ndim == 4]
    x = z
    for layer, weight in enumerate(weights[:-1]):
        x = F.conv2d(x, weight)
        if layer < 3:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.relu(x)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()
    assert_close(net(z), torch.sigmoid(F.conv2d(x, weights[-1])))


@pytest.mark.parametrize(
    "options",
    [
        {"upsample_first": False},
        {"upsample_mode": "nearest"},
        {"act_fun": "LeakyReLU", "bn_before_act": True},
        {"bn_affine": False, "need_sigmoid": False},
        {"filter_size": 3},
        {"filter_size": (1, 3, 1, 3), "pad": "zero"},
    ],
    ids=str,
)
def test_every_option_trains_the_same_on_the_kernels(options):
    net, noisy = small(**options), image()
    z = deep_decoder_input(net, (32, 24), seed=0)
    runs = [
        oes.train_sparse(net, kept(net), z, noisy, steps=4, record_every=1, backend=backend)
        for backend in ("reference", "torch", "auto")
    ]
    for fast in runs[1:]:
        assert fast.history.loss == pytest.approx(runs[0].history.loss, rel=1e-9)
        assert_close(fast.output, runs[0].output, rtol=1e-7)
        assert fast.output.shape == noisy.shape


@pytest.mark.parametrize(
    ("backend", "size"),
    [*((name, (29, 21)) for name in BACKENDS), *((n, (32, 24)) for n in ("torch", "cpu"))],
)
def test_both_pipelines_take_it(backend, size):
    skip_unless_available(backend)
    net, noisy = small(size=size), image(*size)
    z = deep_decoder_input(net, seed=0)
    assert z.shape == (1, 6, 4, 3)
    with unchanged(net, z):
        found = oes.search_mask(net, z, noisy, density=0.9, steps=4, lr=0.3, record_every=1, backend=backend)
        fit = oes.train_sparse(
            net, found.mask, z, noisy, steps=4, clean=noisy, record_every=1, backend=backend
        )
    assert found.output.shape == fit.output.shape == noisy.shape
    reference = oes.search_mask(
        net, z, noisy, density=0.9, steps=4, lr=0.3, record_every=1, backend="reference"
    )
    assert found.history.loss == pytest.approx(reference.history.loss, rel=1e-9)
    assert_close(fit.output, fit.net.train()(z).detach(), rtol=1e-9)


@pytest.mark.parametrize("kernels", BACKENDS[1:])
def test_masked_and_rewritten_it_is_exact(kernels):
    skip_unless_available(kernels)
    net = small().train()
    for parameter in net.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(
                parameter.shape, dtype=parameter.dtype, generator=torch.Generator().manual_seed(2)
            )
    mask = oes.Mask.from_flat(
        net, torch.rand(flatten(net).numel(), generator=torch.Generator().manual_seed(1)) < 0.7
    )
    z, noisy = deep_decoder_input(net, (32, 24), seed=0), image()
    masked = copy.deepcopy(net)
    for parameter, bits in zip(
        masked.parameters(), FlatLayout.of(net).views(mask.flat).values(), strict=True
    ):
        parameter.data *= bits
    fast = oes.sparsify(net, mask, backend=kernels)
    ours, theirs = fast(z), masked(z)
    assert_close(ours, theirs, rtol=1e-10)
    (ours - noisy).square().mean().backward()
    (theirs - noisy).square().mean().backward()
    grads = torch.cat([p.grad.flatten() for p in masked.parameters()])[mask.flat]
    assert_close(fast.weights.grad, grads, rtol=1e-8)
    for name, buffer in fast.to_dense().named_buffers():
        moved = buffer != net.get_buffer(name)  # those of channels that reach no output stay
        assert moved.any()
        if buffer.is_floating_point():
            assert_close(buffer[moved], masked.get_buffer(name)[moved], rtol=1e-10)


def test_baselines_take_it():
    noisy = image(40, 33, channels=1).float()
    net, z = oes.baselines.fresh_deep_decoder(noisy, 3, seed=0)
    assert (z.shape, z.dtype, net.size) == ((1, 128, 5, 5), torch.float32, (40, 33))
    fit = oes.baselines.dense_dip(net, z, noisy, steps=3, lr=1e-2, input_noise=0.05, record_every=1)
    same = oes.baselines.dense_dip(
        net, z, noisy, steps=3, lr=1e-2, input_noise=0.05, record_every=1, backend="reference"
    )
    assert fit.history.loss == pytest.approx(same.history.loss, rel=1e-3)
    assert fit.output.shape == noisy.shape
    assert oes.baselines.fresh_deep_decoder(noisy[..., :32], 3)[0].size is None


def test_sizes():
    net = small()
    assert net.image_size((2, 3)) == (16, 24)
    assert net.input_size((16, 24)) == (2, 3)
    cropping = small(size=(15, 24))
    assert cropping.input_size() == cropping.input_size((15, 24)) == (2, 3)
    assert cropping.image_size((2, 3)) == (15, 24)
    assert cropping(deep_decoder_input(cropping)).shape == (1, 3, 15, 24)
    z = deep_decoder_input(cropping, seed=4)
    assert torch.equal(z, oes.noise_input(6, (2, 3), seed=4, dtype=torch.float64))
    assert "size=(15, 24)" in repr(cropping)
    assert len(net[:4]) == 4
    assert torch.equal(copy.deepcopy(cropping)(z), cropping(z))


def test_seed_and_dtype():
    first, second = small(dtype=torch.float32), small()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a.double(), b)
    assert not torch.equal(flatten(second), flatten(small(seed=1)))


BAD = [
    {"k": 0},
    {"k": 2.5},
    {"k": None},
    {"num_output_channels": 0},
    {"num_channels": 0},
    {"num_channels": (4, 4)},
    {"num_channels": "444"},
    {"size": 32},
    {"size": (32,)},
    {"size": (32, 0)},
    {"size": "32"},
    {"filter_size": 2},
    {"filter_size": (1, 1, 1)},
    {"upsample_mode": "bicubic"},
    {"act_fun": "GELU"},
    {"pad": "circular"},
    {"upsample_first": 1},
    {"bn_affine": None},
    {"bn_before_act": "no"},
    {"need_sigmoid": 0},
    {"seed": -1},
    {"dtype": torch.float16},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_bad_options_are_named(options):
    (name,) = options
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        small(**options)


def test_bad_sizes_are_named():
    with pytest.raises(
        oes.InputError, match=r"^size: expected multiples of 8, got 30 x 24; .*size=\(30, 24\)"
    ):
        deep_decoder_input(small(), (30, 24))
    with pytest.raises(
        oes.InputError, match=r"^size: expected 30 x 24, which the network crops to, got 32 x 24"
    ):
        deep_decoder_input(small(size=(30, 24)), (32, 24))
    with pytest.raises(oes.InputError, match=r"^size: expected .height, width., got None"):
        deep_decoder_input(small())
    with pytest.raises(oes.InputError, match=r"^net: expected an oes_fast.models.DeepDecoder, got Generator"):
        deep_decoder_input(oes.models.skip(4, 3, num_channels_down=(4,)), (32, 32))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("z", {"z": torch.zeros(1, 6, 4, dtype=torch.float64)}),
        ("z", {"z": torch.zeros(1, 5, 4, 3, dtype=torch.float64)}),
        ("noisy", {"z": torch.zeros(1, 6, 32, 24, dtype=torch.float64)}),
        ("noisy", {"noisy": torch.zeros(1, 3, 32, 25, dtype=torch.float64)}),
        ("net", {"noisy": torch.zeros(1, 1, 32, 24, dtype=torch.float64)}),
    ],
)
def test_inputs_that_do_not_fit_are_named(name, changes):
    net = small()
    arguments = {"net": net, "z": deep_decoder_input(net, (32, 24)), "noisy": image(), "steps": 1}
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        oes.baselines.dense_dip(**(arguments | changes))
