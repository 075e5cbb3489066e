"""Each rule alone: what it matches, what it leaves alone, and that the graph computes the same after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from oes_fast.flat import flatten
from oes_fast.models import Concat
from oes_fast.rewrite import ir
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.rules import (
    conv_before_upsample,
    fuse_activation,
    norm_before_upsample,
    pool_before_conv,
    split_concat,
)
from oes_fast.rewrite.tracing.trace import trace

Rule = Callable[[ir.Graph], int]


def rewrite(net: nn.Module, rule: Rule, *, size: tuple[int, int] = (9, 7)) -> tuple[int, ir.Graph]:
    """Number of matches and the graph, after checking that outputs and gradients stay what they were."""
    torch.manual_seed(0)
    net = net.double().train()
    z = torch.rand(1, 3, *size, dtype=torch.float64)
    graph = trace(net, z)
    before = [(node.stage, list(node.inputs)) for node in graph.nodes]
    count = rule(graph)
    graph.sweep()
    if count == 0:
        assert [(node.stage, node.inputs) for node in graph.nodes] == before
    plan = Plan(graph, net, None, device=z.device)
    weights = flatten(net).requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    got = plan.run(weights, buffers, z, plan.prepare(z), update_stats=True)
    wanted = net(z)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    direction = torch.rand_like(wanted)
    (grad,) = torch.autograd.grad((got * direction).sum(), weights)
    (wanted * direction).sum().backward()
    torch.testing.assert_close(
        grad, torch.cat([p.grad.flatten() for p in net.parameters()]), rtol=1e-10, atol=1e-10
    )
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=1e-12)
    return count, graph


def kinds(graph: ir.Graph) -> list[type]:
    return [type(node.stage) for node in graph.nodes]


def up(factor: int = 2, mode: str = "nearest") -> nn.Upsample:
    return nn.Upsample(scale_factor=factor, mode=mode)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("kernel", "dilation", "size"), [(5, 1, 2), (3, 2, 2), (3, 1, 3), (1, 1, 2)])
def test_pool_before_conv(padding_mode: str, kernel: int, dilation: int, size: int) -> None:
    conv = nn.Conv2d(3, 4, kernel, padding=kernel // 2, dilation=dilation, padding_mode=padding_mode)
    count, graph = rewrite(nn.Sequential(conv, nn.AvgPool2d(size)), pool_before_conv.apply, size=(11, 10))
    assert count == 1
    assert kinds(graph)[-2:] == [ir.Box, ir.Conv]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, stride=1)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2, ceil_mode=True)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d((2, 1))),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AvgPool2d(2)),
    ],
)
def test_pool_before_conv_leaves_alone(net: nn.Module) -> None:
    assert rewrite(net, pool_before_conv.apply)[0] == 0


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("kernel", "padding", "factor"), [(3, 1, 2), (5, 2, 3), (3, 0, 2), (3, 1, 4), (4, 1, 2)]
)
def test_conv_before_upsample(padding_mode: str, kernel: int, padding: int, factor: int) -> None:
    conv = nn.Conv2d(3, 4, kernel, padding=padding, padding_mode=padding_mode)
    count, graph = rewrite(nn.Sequential(up(factor), conv), conv_before_upsample.apply)
    assert count == 1
    assert kinds(graph)[-1] is ir.UpConv


def test_zero_padding_wider_than_the_kernel() -> None:
    net = nn.Sequential(up(), nn.Conv2d(3, 4, 3, padding=4))
    assert rewrite(net, conv_before_upsample.apply)[0] == 1


def test_conv_before_upsample_commutes_with_one_by_one() -> None:
    count, graph = rewrite(nn.Sequential(up(3), nn.Conv2d(3, 4, 1)), conv_before_upsample.apply)
    assert count == 1
    assert kinds(graph)[-2:] == [ir.Conv, ir.Upsample]


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(up(), nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect")),  # reaches past the copies
        nn.Sequential(up(mode="bilinear"), nn.Conv2d(3, 4, 3)),
        nn.Sequential(up(), nn.Conv2d(3, 4, 3, stride=2)),
        nn.Sequential(up(), nn.Conv2d(3, 4, 3, dilation=2)),
        nn.Sequential(up(), nn.ReflectionPad2d((1, 0, 1, 1)), nn.Conv2d(3, 4, 3)),
    ],
)
def test_conv_before_upsample_leaves_alone(net: nn.Module) -> None:
    assert rewrite(net, conv_before_upsample.apply)[0] == 0


def test_norm_before_upsample() -> None:
    """Running variance included: it sees the number of pixels after up-sampling."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), up(), nn.BatchNorm2d(4), nn.LeakyReLU(0.2))
    count, graph = rewrite(net, norm_before_upsample.apply)
    assert count == 2  # the batch norm, then the activation behind it
    assert kinds(graph)[-1] is ir.Upsample


def test_norm_before_upsample_leaves_bilinear_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), up(mode="bilinear"), nn.BatchNorm2d(4))
    assert rewrite(net, norm_before_upsample.apply)[0] == 0


def test_fuse_activation() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ELU(), nn.Tanh())
    count, graph = rewrite(net, fuse_activation.apply)
    assert count == 1  # tanh has no batch norm of its own
    assert kinds(graph)[-2:] == [ir.Norm, ir.Act]


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.tanh(y) * y


def test_fuse_activation_leaves_a_result_with_two_readers_alone() -> None:
    assert rewrite(TwoReaders(), fuse_activation.apply)[0] == 0


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
def test_split_concat(norm: bool, padding: int) -> None:
    deep = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), up())
    layers: list[nn.Module] = [Concat(1, nn.Conv2d(3, 2, 1), deep)]
    if norm:
        layers.append(nn.BatchNorm2d(7))
    layers.append(nn.Conv2d(7, 4, 3, padding=padding, padding_mode="reflect"))
    count, graph = rewrite(nn.Sequential(*layers), split_concat.apply, size=(8, 6))
    assert count == 1 + norm
    assert ir.Cat not in kinds(graph)
    assert kinds(graph)[-1] is ir.Add


def test_split_concat_leaves_a_concatenation_without_upsampling_alone() -> None:
    net = nn.Sequential(Concat(1, nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)), nn.Conv2d(5, 4, 3))
    assert rewrite(net, split_concat.apply)[0] == 0
