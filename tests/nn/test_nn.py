"""MaskedConv2d in place of torch.nn.Conv2d."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from conftest import unchanged
from torch import nn

import oes_fast as oes

ARGUMENTS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 1), "padding_mode": "reflect", "bias": False},
    {"padding": 1, "padding_mode": "circular", "dilation": 2, "groups": 2},
    {"padding": 1, "padding_mode": "replicate", "dtype": torch.float64},
]


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def masked(density=0.5, seed=0):
    layer = oes.MaskedConv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(draw(6, 4, 3, 3, seed=seed))
    layer.set_mask(torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) < density)
    return layer


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_unmasked_it_is_the_convolution(arguments):
    conv = nn.Conv2d(4, 6, 3, **arguments)
    layer = oes.MaskedConv2d.from_dense(conv)
    x = draw(2, 4, 9, 8, dtype=conv.weight.dtype)
    assert torch.equal(layer(x), conv(x))
    assert isinstance(layer, nn.Conv2d)
    assert layer.mask.all()
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(layer, name) == getattr(conv, name)


def test_from_dense_copies_and_leaves_everything_alone():
    conv = nn.Conv2d(4, 6, 3).requires_grad_(False).eval()
    mask = draw(6, 4, 3, 3) > 0
    with unchanged(conv, mask):  # the random state too
        layer = oes.MaskedConv2d.from_dense(conv, mask)
        with torch.no_grad():
            layer.weight.add_(1)
            layer.mask.logical_not_()
    assert not layer.weight.requires_grad
    assert not layer.training


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_output_and_gradients_are_those_of_the_masked_weight(arguments):
    conv = nn.Conv2d(4, 6, 3, **arguments)
    mask = draw(*conv.weight.shape) > 0
    layer = oes.MaskedConv2d.from_dense(conv, mask)
    with torch.no_grad():
        conv.weight.copy_(torch.where(mask, conv.weight, 0))
    x = draw(2, 4, 9, 8, dtype=conv.weight.dtype)
    torch.testing.assert_close(layer(x), conv(x))
    layer(x).square().sum().backward()
    conv(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.where(mask, conv.weight.grad, 0))


def test_the_mask_counts_even_where_the_weight_is_not_zero():
    layer = masked()
    with torch.no_grad():
        layer.weight.fill_(1)
    x = draw(1, 4, 5, 5)
    expected = F.conv2d(x, layer.mask.float(), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_state_dict():
    layer, other = masked(), masked(seed=1)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "mask"]
    other.load_state_dict(state)
    x = draw(1, 4, 5, 5)
    assert torch.equal(other(x), layer(x))
    missing, unexpected = other.load_state_dict(nn.Conv2d(4, 6, 3).state_dict(), strict=False)
    assert (missing, unexpected) == (["mask"], [])
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_state_dict_survives_a_file_that_is_not_trusted():
    file = io.BytesIO()
    layer = masked()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert torch.equal(state["mask"], layer.mask)
    assert state["mask"].dtype == torch.bool


def test_copy_pickle_and_conversion():
    layer, x = masked(), draw(1, 4, 5, 5)
    copied = copy.deepcopy(layer)
    copied.mask.zero_()
    assert layer.mask.any()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))
    double = copy.deepcopy(layer).double()
    assert double.mask.dtype == torch.bool
    torch.testing.assert_close(double(x.double()).float(), layer(x))
    assert copy.deepcopy(layer).to("meta").mask.is_meta


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, lr=0.05),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01, nesterov=True),
    ],
)
def test_dropped_weights_stay_zero_in_training(optimizer):
    net = nn.Sequential(masked(0.3), nn.BatchNorm2d(6), nn.ReLU(), oes.MaskedConv2d(6, 1, 1))
    x, y = draw(2, 4, 8, 8), draw(2, 1, 8, 8, seed=1)
    steps = optimizer(net.parameters())
    before = net[0].weight.detach().clone()
    losses = []
    for _ in range(10):
        loss = F.mse_loss(net(x), y)
        losses.append(float(loss.detach()))
        steps.zero_grad()
        loss.backward()
        steps.step()
    assert losses[-1] < losses[0]
    assert (net[0].weight[~net[0].mask] == 0).all()
    assert (net[0].weight[net[0].mask] != before[net[0].mask]).all()


def test_set_mask_zeroes_and_copies():
    layer = oes.MaskedConv2d(2, 2, 1)
    mask = torch.tensor([[True, False], [False, True]])[..., None, None]
    layer.set_mask(mask)
    mask[:] = False
    assert layer.mask.sum() == 2
    assert (layer.weight[~layer.mask] == 0).all()
    assert (layer.weight[layer.mask] != 0).all()
    assert layer.weight.requires_grad
    assert "kept=2/4" in repr(layer)


def test_bad_arguments_are_named():
    layer = masked()
    for mask in (torch.ones(6, 4, 3, 3), torch.ones(6, 4, 3, dtype=torch.bool), None):
        with unchanged(layer), pytest.raises(oes.InputError, match=r"^mask: "):
            layer.set_mask(mask)
    with pytest.raises(oes.InputError, match=r"^padding: .*same"):
        oes.MaskedConv2d(4, 6, 3, padding="same")
    with pytest.raises(oes.InputError, match=r"^padding: .*valid"):
        oes.MaskedConv2d.from_dense(nn.Conv2d(4, 6, 3, padding="valid"))
    with pytest.raises(oes.InputError, match=r"^conv: .*Linear"):
        oes.MaskedConv2d.from_dense(nn.Linear(4, 6))
    with pytest.raises(oes.InputError, match=r"^x: expected 4 channels"):
        layer(draw(1, 3, 5, 5))


def test_compiles_without_breaks():
    layer, x = masked(), draw(2, 4, 9, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    (got,) = torch.autograd.grad(compiled(x).square().sum(), layer.weight)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(got, expected)


def test_takes_the_place_of_every_convolution_of_the_generator():
    net = oes.models.skip(4, 3, num_channels_down=(4, 6), filter_size_down=3, seed=0)
    z = oes.noise_input(4, (17, 20))
    expected = net(z)
    for module in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(module, name, oes.MaskedConv2d.from_dense(child))
    assert torch.equal(net(z), expected)
    assert sum(isinstance(m, oes.MaskedConv2d) for m in net.modules()) == 7
