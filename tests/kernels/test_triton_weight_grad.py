"""Gradients of the weights of a Triton chain against those of PyTorch, in float64, in the flat vector."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from kernel_backends import device_of, require
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl
from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.conv_taps import conv_taps
from oes_fast.kernels.chain.flat_weights import FlatWeights
from oes_fast.kernels.chain.reader import Image, Reader, gradient_image, plain_image
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, Padding
from oes_fast.kernels.chain.tap_lists import tap_lists
from oes_fast.kernels.chain.weight_grad import weight_grad
from oes_fast.kernels.chain.weight_grad_plan import MOST_PARTIALS, Shape, WeightGradPlan, plan_weight_grad

BACKEND, SLOPE, SCALE = "triton", 0.2, 0.5
ACTIVATIONS = (
    lambda x: F.leaky_relu(x, SLOPE),
    lambda x: F.elu(x, SLOPE),
    F.silu,
)
device = pytest.mark.device


class Conv(NamedTuple):
    """A convolution, how its image and the gradient of its result are read, and the launch."""

    kernel: int = 3
    stride: int = 1
    padding: str = "zeros"
    border: int = 1
    box: bool = False
    up: bool = False
    channels: tuple[int, int] = (3, 4)
    size: tuple[int, int] = (7, 9)
    density: float = 0.6
    networks: int = 1
    read: int = kinds.READ_PLAIN.value
    act: int = kinds.ACT_LEAKY.value
    shared: bool = False
    norm: bool = True
    group: int = 16
    shape: Shape | None = None
    program_tiles: int | None = None


VALUE, SECOND = kinds.READ_VALUE.value, kinds.READ_SECOND.value
# Tiles with cells behind the image's, several of them in a chunk and beside each other.
SMALL = Shape(16, 2, 8, 4, 4, 4, 1, 1, 1)  # products along 16 cells, the fewest that Triton 3.6 takes
CONVS = (
    Conv(padding="reflect", channels=(5, 18), networks=2, read=SECOND),
    Conv(
        padding="reflect", channels=(5, 18), group=32, size=(5, 4), shape=SMALL, program_tiles=2, read=VALUE
    ),
    Conv(stride=2, padding="reflect", box=True, size=(10, 12), read=VALUE, act=kinds.ACT_ELU.value),
    Conv(stride=2, size=(10, 11), read=VALUE, act=kinds.ACT_SILU.value, networks=2),
    Conv(stride=2, box=True, size=(8, 8), shared=True, networks=2, program_tiles=1),
    Conv(kernel=1, border=0, channels=(20, 17), networks=2, shared=True, norm=False),
    Conv(kernel=1, border=0, stride=2, read=VALUE),
    Conv(up=True, padding="replicate", size=(5, 6), read=VALUE, channels=(3, 17)),
    Conv(up=True, size=(4, 8), shape=SMALL._replace(places=4), read=SECOND, norm=False),
    Conv(kernel=5, padding="reflect", border=2, channels=(2, 3), size=(4, 4), density=0.05),
    Conv(padding="replicate", size=(15, 4), shape=SMALL._replace(places=1, rows=4), program_tiles=3),
    Conv(padding="replicate", channels=(2, 3), size=(4, 4), density=0.0),
)


class Problem:
    """A convolution with random weights, and where it begins in the flat vector."""

    first = 3

    def __init__(self, conv: Conv, dtype: torch.dtype = torch.float64) -> None:
        require(BACKEND)
        self.conv, self.dtype, self.device = conv, dtype, device_of(BACKEND)
        self.generator = torch.Generator().manual_seed(1)
        inputs, outputs = conv.channels
        shape = (outputs, inputs, conv.kernel, conv.kernel)
        self.keep = torch.rand(shape, generator=self.generator) < conv.density
        self.kept = int(self.keep.sum())
        spec = ConvSpec(
            kind=ConvKind.UPSAMPLE if conv.up else ConvKind.DIRECT,
            padding=Padding[conv.padding.upper()],
            border=[conv.border] * 4,
            box=conv.box,
            stride=conv.stride,
            kernel_rows=conv.kernel,
            kernel_columns=conv.kernel,
            outputs=outputs,
            taps=self.keep.nonzero().flatten().tolist(),
            weights=list(range(self.first, self.first + self.kept)),
        )
        self.taps = conv_taps(spec, inputs, *conv.size)
        result = (conv.networks, outputs, self.taps.out_rows, self.taps.out_columns)
        self.y = self.random(1 if conv.shared else conv.networks, inputs, *conv.size)
        self.numbers = self.random(conv.networks, inputs, kinds.PROLOGUE_NUMBERS.value)
        self.result, self.grad = self.random(*result), self.random(*result)
        self.grad_numbers = self.random(*result[:2], kinds.GRAD_NUMBERS.value)

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype).to(self.device)

    def images(self) -> tuple[Image, Image]:
        """The image and the gradient, as kernels read them."""
        conv, numbers = self.conv, self.grad_numbers if self.conv.norm else None
        image = plain_image(self.y, shared=conv.shared)
        if conv.read != kinds.READ_PLAIN.value:
            image = Image(
                Reader(self.y, None, self.numbers, tl.constexpr(SLOPE)), conv.read, conv.act, conv.shared
            )
        return image, gradient_image(self.result, self.grad, numbers)

    def read_grad(self) -> Tensor:
        """The gradient of the result."""
        grad, c = self.grad, self.grad_numbers[..., None, None]
        if not self.conv.norm:
            return grad
        return c[:, :, 1] * grad + c[:, :, 2] * (self.result - c[:, :, 0]) + c[:, :, 3]

    def expected(self) -> Tensor:
        """Gradients of the kept weights, [networks, kept]."""
        conv, x = self.conv, self.y.expand(self.conv.networks, -1, -1, -1)
        b = self.numbers[..., None, None]
        if conv.read != kinds.READ_PLAIN.value:
            x = ACTIVATIONS[conv.act](b[:, :, 1] * (x - b[:, :, 0]) + b[:, :, 2])
        if conv.read == SECOND:
            x = b[:, :, 4] * (x - b[:, :, 3]) + b[:, :, 5]
        x = F.interpolate(x, scale_factor=2) if conv.up else x
        border, mode = (conv.border,) * 4, conv.padding
        if any(border):
            x = F.pad(x, border, mode="constant" if mode == "zeros" else mode)
        if conv.box:
            x = 4 * F.avg_pool2d(x, 2, 1)
        found = []
        for image, of_result in zip(x.split(1), self.read_grad().split(1), strict=True):
            dense = torch.zeros(self.keep.shape, dtype=self.dtype, device=self.device, requires_grad=True)
            F.conv2d(image, dense, stride=conv.stride).backward(of_result)
            found.append(SCALE * dense.grad[self.keep.to(self.device)])
        return torch.stack(found)

    def plan(self) -> WeightGradPlan:
        """The launch that the case asks for."""
        conv, spec = self.conv, self.taps.forward
        lists = tap_lists(spec.taps, spec.outputs, spec.side**2, conv.group, 4, self.device)
        plan = plan_weight_grad(
            spec, lists, networks=conv.networks, products="float32", dtype=self.dtype, shape=conv.shape
        )
        return plan if conv.program_tiles is None else replace(plan, program_tiles=conv.program_tiles)

    def gradients(self, plan: WeightGradPlan) -> Tensor:
        """What is added to the flat vector, [networks, kept]."""
        flat = FlatWeights(self.first + self.kept + 2, self.conv.networks, self.device, self.dtype)
        other = flat.add_grads(plan.lists.index[:1, :1] * 0, 1.0, 2)  # of another convolution: nothing
        begin = flat.add_grads(plan.lists.index, SCALE, plan.chunks)
        flat.finish()
        flat.partials.fill_(torch.nan)
        flat.partials[:, other : other + 2] = 0
        self.written = torch.full_like(self.grad, torch.nan) if self.conv.norm else None
        weight_grad(plan, *self.images(), flat.partials, begin, self.written)
        before = self.random(self.conv.networks, self.first + self.kept + 2)
        after = before.clone()
        flat.unpack(after)
        added = after - before
        assert not added[:, : self.first].any()
        assert not added[:, self.first + self.kept :].any()
        return added[:, self.first : self.first + self.kept]


@device
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_triton_weight_grads(conv):
    problem = Problem(conv)
    plan = problem.plan()
    torch.testing.assert_close(problem.gradients(plan), problem.expected(), rtol=1e-10, atol=1e-10)
    if problem.written is not None and problem.kept > 0:
        torch.testing.assert_close(problem.written, problem.read_grad(), rtol=1e-12, atol=1e-12)


@device
def test_triton_weight_grads_in_float32():
    problem = Problem(CONVS[0]._replace(networks=1), torch.float32)
    torch.testing.assert_close(problem.gradients(problem.plan()), problem.expected(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("channels", "size"), [((16, 16), 256), ((64, 64), 16), ((3, 4), 8)])
@pytest.mark.parametrize("networks", [1, 8])
@pytest.mark.parametrize("products", ["float32", "tf32"])
def test_plans_fill_the_device_with_few_partials(channels, size, networks, products):
    inputs, outputs = channels
    spec = ConvSpec(
        padding=Padding.REFLECT,
        border=[1] * 4,
        kernel_rows=3,
        kernel_columns=3,
        outputs=outputs,
        first_weight=0,
        dense=True,
    )
    forward = conv_taps(spec, inputs, size, size).forward
    lists = tap_lists(forward.taps, outputs, 1, 16, 16, "cpu")
    plan = plan_weight_grad(
        forward, lists, networks=networks, products=products, dtype=torch.float32, processors=132
    )
    assert plan.chunks * lists.count * lists.group <= max(MOST_PARTIALS, lists.count * lists.group)
    assert plan.chunks <= plan.tiles
    if size == 256:
        assert len(plan.blocks) * plan.chunks * networks >= 2 * 132
    assert str(plan.chunks) in plan.describe()
    # Each kept tap is in one block of its outputs.
    taps = torch.zeros(lists.count, lists.groups, dtype=torch.int64)
    for first, _, _, *places in plan.blocks.tolist():
        for begin, end, row, column in zip(*(places[i::4] for i in range(4)), strict=True):
            taps[begin:end, first // 16] += 1
            assert {place for _, place in lists.taps[begin:end].tolist()} <= {256 * row + column}
    expected = (torch.from_numpy(lists.index) >= 0).any(2).reshape(lists.count, -1).any(1)
    assert (taps.sum(1) == expected).all()
