"""Small generators of every kind that the rewrites have to cope with, and masks over them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.models import Concat


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Scaled(nn.Module):
    """A module of the user's own, with a parameter and functions that no rule knows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale).abs() - 0.25 * x.mean(dim=1, keepdim=True)


def activation(draw: st.DrawFn) -> nn.Module:
    kinds = [nn.LeakyReLU(0.2), nn.ReLU(), nn.ELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Identity()]
    return draw(st.sampled_from(kinds))


@st.composite
def norms(draw: st.DrawFn, channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(
        channels,
        affine=draw(st.booleans()) or draw(st.booleans()),
        track_running_stats=draw(st.booleans()) or draw(st.booleans()),
        momentum=draw(st.sampled_from([0.1, 0.4])),
    )
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    return norm


@st.composite
def blocks(draw: st.DrawFn, channels: int, outputs: int) -> list[nn.Module]:
    """A few layers from ``channels`` to ``outputs`` that keep or halve or double the image."""
    kernel = draw(st.sampled_from([1, 3, 5]))
    reach = kernel // 2
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular", "layer", "none"]))
    bias = draw(st.booleans())
    layers: list[nn.Module] = []
    change = draw(
        st.sampled_from(["", "", "up", "up", "bilinear", "norm-up", "up-norm", "stride", "avg", "max"])
    )
    if change == "norm-up":
        layers.append(draw(norms(channels)))
    if change in ("up", "norm-up", "up-norm"):
        layers.append(nn.Upsample(scale_factor=draw(st.sampled_from([2, 2, 3]))))
    if change == "bilinear":
        layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    if change == "up-norm":
        layers.append(draw(norms(channels)))
    stride = 2 if change == "stride" else 1
    if mode == "layer":
        pads = [nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d, nn.CircularPad2d]
        layers.append(draw(st.sampled_from(pads))(reach))
    if mode in ("layer", "none"):
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, bias=bias))
    else:
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, reach, bias=bias, padding_mode=mode))
    if change == "avg":
        layers.append(nn.AvgPool2d(2, ceil_mode=draw(st.booleans())))
    if change == "max":
        layers.append(nn.MaxPool2d(2))
    if draw(st.integers(0, 3)):
        layers.append(draw(norms(outputs)))
    layers.append(activation(draw))
    return layers


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """(network, input in float64)."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        net, inputs = draw(skips()), 3
    else:
        net, inputs = draw(chains()), 3
    height, width = draw(st.integers(11, 21)), draw(st.integers(11, 21))
    z = torch.rand(draw(st.sampled_from([1, 1, 2])), inputs, height, width, dtype=torch.float64)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.7, 0.9)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The dense network amplifies the rounding of a constant channel by 1 / sqrt(eps) in every batch
            # norm (by 316 with the usual eps), and would not agree with itself to 1e-10.
            module.eps = 0.05
    return net.double(), z


@st.composite
def skips(draw: st.DrawFn) -> nn.Module:
    depth = draw(st.integers(1, 3))
    widths = st.lists(st.integers(1, 6), min_size=depth, max_size=depth)
    return oes.models.skip(
        3,
        draw(st.integers(1, 3)),
        num_channels_down=draw(widths),
        num_channels_up=draw(widths),
        num_channels_skip=draw(st.lists(st.integers(0, 2), min_size=depth, max_size=depth)),
        filter_size_down=draw(st.sampled_from([3, 5])),
        filter_size_up=draw(st.sampled_from([1, 3, 5])),
        need_sigmoid=draw(st.booleans()),
        need_bias=draw(st.booleans()),
        pad=draw(st.sampled_from(["reflection", "zero"])),
        upsample_mode=draw(st.sampled_from(["nearest", "nearest", "bilinear"])),
        downsample_mode=draw(st.sampled_from(["avg", "avg", "stride", "max"])),
        act_fun=draw(st.sampled_from(["LeakyReLU", "ELU", "SiLU", "none"])),
        need1x1_up=draw(st.booleans()),
    )


@st.composite
def chains(draw: st.DrawFn) -> nn.Module:
    channels = 3
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["block", "block", "block", "residual", "concat", "grouped", "own"]))
        if kind == "residual":
            conv = nn.Conv2d(
                channels, channels, 3, padding=1, padding_mode=draw(st.sampled_from(["zeros", "reflect"]))
            )
            layers.append(Residual(conv, draw(norms(channels)), activation(draw)))
        elif kind == "concat":
            left, right = draw(st.integers(1, 4)), draw(st.integers(1, 4))
            across = nn.Sequential(nn.Conv2d(channels, left, 1), draw(norms(left)), nn.LeakyReLU(0.2))
            down = nn.Sequential(
                nn.Conv2d(channels, right, 3, 2, 1),
                draw(norms(right)),
                nn.LeakyReLU(0.2),
                nn.Upsample(scale_factor=2),
            )
            layers.append(Concat(1, across, down))
            channels = left + right
            if draw(st.booleans()):
                layers.append(draw(norms(channels)))
        elif kind == "grouped":
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
        elif kind == "own":
            layers.append(Scaled(channels))
        else:
            outputs = draw(st.integers(1, 6))
            layers.extend(draw(blocks(channels, outputs)))
            channels = outputs
    return nn.Sequential(*layers)


@st.composite
def masks(draw: st.DrawFn, net: nn.Module) -> Tensor:
    """Flat bool: random, one survivor for each parameter, whole parameters dead, or no betas."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    density = draw(st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]))
    style = draw(st.sampled_from(["random", "random", "single", "dead layers", "no betas"]))
    pieces = []
    for name, shape in zip(FlatLayout.of(net).names, FlatLayout.of(net).shapes, strict=True):
        kept = torch.rand(shape, generator=generator) < density
        if style == "single":
            kept = torch.zeros(shape.numel(), dtype=torch.bool)
            kept[torch.randint(shape.numel(), (1,), generator=generator)] = True
        if style == "dead layers" and torch.rand((), generator=generator) < 0.3:
            kept = torch.zeros(shape, dtype=torch.bool)
        if style == "no betas" and name.endswith("bias"):
            kept = torch.zeros(shape, dtype=torch.bool)
        pieces.append(kept.flatten())
    return torch.cat(pieces)
