"""Shapes at once on the device "meta": those that PyTorch computes, and its own errors."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast.meta_device import QuickShapes, unfilled


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3), (2, 4, 9, 8)),
    "conv, strided": (nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), bias=False), (1, 4, 10, 13)),
    "conv, in groups": (nn.Conv2d(4, 6, 3, dilation=2, groups=2), (1, 4, 9, 8)),
    "conv, by name": (nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 9, 8)),
    "conv, too small": (nn.Conv2d(4, 6, 5), (1, 4, 4, 4)),
    "conv, other channels": (nn.Conv2d(4, 6, 3), (1, 5, 9, 8)),
    "norm": (nn.BatchNorm2d(4), (1, 4, 3, 5)),
    "norm, plain": (nn.BatchNorm2d(4, affine=False), (1, 4, 3, 5)),
    "norm, untracked": (nn.BatchNorm2d(4, track_running_stats=False), (1, 4, 3, 5)),
    "norm, other channels": (nn.BatchNorm2d(4), (1, 5, 3, 5)),
    "mirrored": (nn.ReflectionPad2d((1, 2, 0, 3)), (1, 4, 5, 6)),
    "mirrored, too far": (nn.ReflectionPad2d(5), (1, 4, 5, 6)),
    "zeros": (nn.ZeroPad2d(2), (1, 4, 5, 6)),
    "nearest": (nn.Upsample(scale_factor=2), (1, 4, 5, 6)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 4, 5, 6)),
    "to a size": (nn.Upsample(size=(7, 8)), (1, 4, 5, 6)),
    "by a half": (nn.Upsample(scale_factor=0.5), (1, 4, 5, 6)),
    "mean": (nn.AvgPool2d(2), (1, 4, 6, 4)),
    "mean, of odd sides": (nn.AvgPool2d((2, 3)), (1, 4, 7, 7)),
    "mean, overlapping": (nn.AvgPool2d(3, stride=1, padding=1), (1, 4, 6, 4)),
    "sigmoid": (nn.Sigmoid(), (1, 4, 5, 6)),
    "norm, eps below 0": (nn.BatchNorm2d(4, eps=-1e-9), (1, 4, 3, 5)),
    "norm, eps as text": (nn.BatchNorm2d(4, eps="1e-5"), (1, 4, 3, 5)),  # type: ignore[arg-type]
    "norm, momentum as text": (nn.BatchNorm2d(4, momentum="0.1"), (1, 4, 3, 5)),  # type: ignore[arg-type]
    "nearest, aligned": (nn.Upsample(scale_factor=2, align_corners=False), (1, 4, 5, 6)),
    "bilinear, aligned": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (1, 4, 5, 6)),
    "by no number": (nn.Upsample(scale_factor=float("nan")), (1, 4, 5, 6)),
    "without end": (nn.Upsample(scale_factor=float("inf")), (1, 4, 5, 6)),
    "mean, of nothing": (nn.AvgPool2d(2, divisor_override=0), (1, 4, 6, 4)),
    "mean, up": (nn.AvgPool2d(2, ceil_mode=True), (1, 4, 6, 4)),
    "leaky": (nn.LeakyReLU(0.2), (1, 4, 5, 6)),
    "leaky, as text": (nn.LeakyReLU("0.2"), (1, 4, 5, 6)),  # type: ignore[arg-type]
    "leaky, of vectors": (nn.LeakyReLU(0.2), (3,)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_layers_give_what_pytorch_gives(name: str, dtype: torch.dtype) -> None:
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).to("meta").eval()
    x = empty(*shape, dtype=dtype).requires_grad_(dtype == torch.float32)
    try:
        wanted = layer(x)
    except Exception as error:
        said = str(error)
        with QuickShapes(), pytest.raises(type(error), match=re.escape(said)):
            layer(x)
        return
    with QuickShapes():
        got = layer(x)
    assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
    assert got.requires_grad == wanted.requires_grad
    assert got.is_leaf == wanted.is_leaf


def test_in_place_gives_the_same_tensor() -> None:
    x = empty(1, 4, 5, 6).requires_grad_() * 1
    with QuickShapes():
        assert F.leaky_relu(x, 0.2, inplace=True) is x
        assert F.leaky_relu(x, 0.2, True) is x
        with pytest.raises(RuntimeError, match="leaf"):
            F.leaky_relu(empty(3).requires_grad_(), 0.2, inplace=True)


@pytest.mark.parametrize("how", [{"dim": 1}, {"dim": 2}, {"axis": 1}, {"dim": -3}], ids=str)
def test_put_together(how: dict[str, int]) -> None:
    parts = [empty(1, 4, 5, 6), empty(1, 4, 5, 6, dtype=torch.float64)]
    for tensors in (parts[:1] * 2, parts):
        with QuickShapes():
            got = torch.cat(tensors, **how)
        wanted = torch.cat(tensors, **how)
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("sides", [(4,), (6, 4, 3)], ids=str)
def test_weights_of_other_dimensions_are_pytorchs_to_refuse(sides: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, IndexError), match=r".") as wanted:
        F.conv2d(empty(1, 4, 9, 9), empty(*sides))
    with QuickShapes(), pytest.raises(wanted.type, match=re.escape(str(wanted.value))):
        F.conv2d(empty(1, 4, 9, 9), empty(*sides))


def test_gradients_of_arguments_by_name() -> None:
    with QuickShapes():
        image = F.conv2d(empty(1, 4, 9, 9), weight=empty(6, 4, 3, 3).requires_grad_())
    assert (image.requires_grad, image.is_leaf) == (True, False)


def test_the_order_in_memory_is_that_of_pytorch() -> None:
    x = empty(1, 4, 9, 9).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(4, 6, 3, device="meta")
    with QuickShapes():
        got = conv(x)
    assert got.stride() == conv(x).stride()


def test_tensors_with_values_are_left_to_pytorch() -> None:
    x, conv = torch.rand(1, 4, 9, 9), nn.Conv2d(4, 6, 3)
    with QuickShapes():
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias))


def test_unfilled() -> None:
    state = torch.get_rng_state()
    made = nn.Conv2d(4, 6, 3, dtype=torch.float64, device="meta")
    made.weight.requires_grad_(False)
    made.register_buffer("mask", torch.empty(6, 4, 3, 3, dtype=torch.bool, device="meta"))
    layer = unfilled(made, torch.device("cpu"))
    assert [(n, t.shape, t.dtype, str(t.device)) for n, t in layer.state_dict().items()] == [
        ("weight", (6, 4, 3, 3), torch.float64, "cpu"),
        ("bias", (6,), torch.float64, "cpu"),
        ("mask", (6, 4, 3, 3), torch.bool, "cpu"),
    ]
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (False, True)
    assert torch.equal(torch.get_rng_state(), state)
