"""The sums over taps of a Triton chain against convolutions of PyTorch, forward and backward, in float64."""

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
from oes_fast.kernels.chain import kinds, tap_sum, tap_sum_plan, weight_grad_plan
from oes_fast.kernels.chain.conv_taps import ConvTaps, TapSum, conv_taps
from oes_fast.kernels.chain.finalise import Loss, NormBackward, NormForward, finalise_settings, finalise_sizes
from oes_fast.kernels.chain.reader import Image, Reader, gradient_image, plain_image
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, Padding
from oes_fast.kernels.chain.tap_lists import tap_lists
from oes_fast.kernels.chain.tap_sum import Epilogue
from oes_fast.kernels.chain.tap_sum_plan import TapSumPlan, plan_tap_sum
from oes_fast.kernels.chain.weight_grad_plan import plan_weight_grad

pytestmark = pytest.mark.device

BACKEND, DTYPE, SLOPE = "triton", torch.float64, 0.2


class Conv(NamedTuple):
    """A convolution; the launch's group, tile and parts of the taps."""

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
    splits: int = 1
    block: int = 32
    program_tiles: int = 1


CONVS = (
    Conv(padding="reflect", channels=(5, 18), networks=2),
    Conv(padding="reflect", channels=(5, 18), networks=2, splits=2, block=64),
    Conv(stride=2, padding="reflect", box=True, size=(10, 12), program_tiles=2),
    Conv(stride=2, size=(10, 11), splits=4),
    Conv(kernel=1, border=0, channels=(20, 17), networks=2, block=64),
    Conv(kernel=1, border=0, stride=2),
    Conv(up=True, padding="replicate", size=(5, 6)),
    Conv(up=True, size=(5, 6), splits=2),
    Conv(kernel=5, padding="reflect", border=2, channels=(2, 3), size=(4, 4), density=0.05),
    Conv(padding="replicate", channels=(2, 3), size=(40, 4), density=0.0),
)


class Problem:
    """A convolution with random weights, an image that is read as by READ_SECOND, and its taps."""

    def __init__(self, conv: Conv) -> None:
        require(BACKEND)
        self.conv, self.device = conv, device_of(BACKEND)
        self.generator = torch.Generator().manual_seed(0)
        inputs, outputs = conv.channels
        keep = torch.rand(outputs, inputs, conv.kernel, conv.kernel, generator=self.generator) < conv.density
        kept, n = int(keep.sum()), conv.networks
        self.scale = 0.25 if conv.box else 1.0
        self.spec = ConvSpec(
            kind=ConvKind.UPSAMPLE if conv.up else ConvKind.DIRECT,
            padding=Padding[conv.padding.upper()],
            border=[conv.border] * 4,
            box=conv.box,
            stride=conv.stride,
            kernel_rows=conv.kernel,
            kernel_columns=conv.kernel,
            outputs=outputs,
            taps=keep.nonzero().flatten().tolist(),
            weights=list(range(kept)),
        )
        self.taps: ConvTaps = conv_taps(self.spec, inputs, *conv.size)
        self.weights = self.random(n, kept)
        self.dense = torch.zeros(n, *keep.shape, dtype=DTYPE, device=self.device)
        self.dense[:, keep.to(self.device)] = self.weights
        self.y = self.random(n, inputs, *conv.size)
        self.numbers = self.random(n, inputs, kinds.PROLOGUE_NUMBERS.value)
        b = self.numbers[..., None, None]
        self.normalised = b[:, :, 1] * (self.y - b[:, :, 0]) + b[:, :, 2]
        self.activated = F.leaky_relu(self.normalised, SLOPE)
        self.value = b[:, :, 4] * (self.activated - b[:, :, 3]) + b[:, :, 5]

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=DTYPE).to(self.device)

    def continued(self, x: Tensor) -> Tensor:
        """The image with its border."""
        border, mode = (self.conv.border,) * 4, self.conv.padding
        return F.pad(x, border, mode="constant" if mode == "zeros" else mode) if any(border) else x

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution of images with their borders."""
        if self.conv.up:
            x = F.interpolate(x, scale_factor=2)[:, :, 1:-1, 1:-1]
        if self.conv.box:
            x = F.avg_pool2d(x, 2, 1)
        pairs = zip(x.split(1), self.dense, strict=True)
        return torch.cat([F.conv2d(image, dense, stride=self.conv.stride) for image, dense in pairs])

    def plan(self, spec: TapSum) -> TapSumPlan:
        """The launch that the case asks for."""
        conv = self.conv
        plan = plan_tap_sum(spec, networks=1, products="float32", dtype=DTYPE, device=self.device, group=16)
        shape = replace(
            plan.shape, splits=conv.splits, block=conv.block, program_tiles=conv.program_tiles, taps=16
        )
        lists = tap_lists(spec.taps, spec.outputs, spec.side**2, 16, 16, self.device)
        return replace(plan, shape=shape, lists=lists)

    def packed(self, plan: TapSumPlan) -> Tensor:
        """The weights of the lists, behind those of another convolution."""
        index = torch.from_numpy(plan.lists.index).to(self.device)
        n = self.conv.networks
        weights = torch.cat([self.weights, torch.zeros(n, 1, dtype=DTYPE, device=self.device)], 1)
        values = self.scale * weights[:, index].sum(-1).reshape(n, -1)
        return torch.cat([torch.full((n, 32), torch.nan, dtype=DTYPE, device=self.device), values], 1)

    def run(self, plan: TapSumPlan, image: Image, **options: object) -> Tensor:
        """What is written; every ticket is 0 again."""
        n, spec = self.conv.networks, plan.spec
        out = torch.full(
            (n, spec.outputs, spec.rows, spec.columns), torch.nan, dtype=DTYPE, device=self.device
        )
        tickets = torch.zeros(n, plan.tickets + 3, dtype=torch.int32, device=self.device)
        workspace = torch.full((max(n * plan.workspace, 1),), torch.nan, dtype=DTYPE, device=self.device)
        tap_sum.tap_sum(
            plan, image, out, self.packed(plan), 32, tickets=tickets, workspace=workspace, **options
        )
        assert not tickets.any()
        return out

    def empty(self, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
        """Memory for a result."""
        return torch.full(shape, torch.nan, dtype=dtype, device=self.device)

    def ints(self, count: int, value: int) -> Tensor:
        """An int32 vector of one value."""
        return torch.full((count,), value, dtype=torch.int32, device=self.device)

    def sizes(self, plan: TapSumPlan) -> Tensor:
        """For the finalise."""
        spec = plan.spec
        return finalise_sizes(
            channels=spec.outputs,
            chunks=plan.chunks,
            pixels=spec.rows * spec.columns,
            weights=2,
            device=self.device,
            shift_outputs=spec.outputs,
        )

    def norm_forward(self, plan: TapSumPlan) -> NormForward:
        """A norm of scale 1 behind it."""
        n, c = self.conv.networks, plan.spec.outputs
        none, one = self.ints(c, -1), self.ints(1, 0)
        zero = torch.zeros(n, 2, dtype=DTYPE, device=self.device)
        return NormForward(
            partials=self.empty(n, c, plan.chunks, 3),
            sizes=self.sizes(plan),
            settings=finalise_settings(device=self.device, eps=1e-5),
            weights=zero,
            gamma=none,
            beta=none,
            prologue=self.empty(n, c, 6),
            rstd=self.empty(n, c),
            running_mean=None,
            running_var=None,
            running_stride=0,
            stats_index=one,
            tracked=one,
            tracked_stats_index=one,
            betas=one,
            constants=zero,
            constants_before=zero,
            shift_bias=none,
            shift_first=self.ints(c + 1, 0),
            shift_taps=one,
            shift_constants=zero,
        )


def close(ours: Tensor, theirs: Tensor) -> None:
    """Fail where they differ by more than rounding."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_forward(conv):
    problem = Problem(conv)
    plan = problem.plan(problem.taps.forward)
    image = Image(Reader(problem.y, None, problem.numbers, tl.constexpr(SLOPE)), kinds.READ_SECOND.value, 0)
    finish = problem.norm_forward(plan)
    out = problem.run(
        plan,
        image,
        epilogue=tap_sum.MOMENTS,
        finalise=kinds.NORM_FORWARD.value,
        finish=finish,
    )
    wanted = problem.convolved(problem.continued(problem.value))
    close(out, wanted)
    mean, variance = wanted.mean((2, 3)), wanted.var((2, 3), correction=0)
    close(finish.prologue[..., 0], mean)
    close(finish.rstd, (variance + 1e-5).rsqrt())


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_input_gradient(conv):
    problem = Problem(conv)
    taps = problem.taps
    plan = problem.plan(taps.input_grad)
    x = problem.value if not taps.folds else problem.continued(problem.value)
    x.requires_grad_()
    y = problem.convolved(x if taps.folds else problem.continued(x))
    grad, numbers = problem.random(*y.shape), problem.random(*y.shape[:2], 4)
    b = numbers[..., None, None]
    (wanted,) = torch.autograd.grad(
        y, x, b[:, :, 1] * grad + (b[:, :, 2] * (y.detach() - b[:, :, 0]) + b[:, :, 3])
    )
    image = gradient_image(y.detach(), grad, numbers)
    if taps.folds:
        close(problem.run(plan, image), wanted)
        return
    n, inputs = conv.networks, conv.channels[0]
    none = problem.ints(inputs, -1)
    mean, activated_mean = problem.numbers[..., 0, None, None], problem.numbers[..., 3, None, None]
    through = torch.where(problem.normalised > 0, wanted, SLOPE * wanted)
    for epilogue, of_pixels, off in (
        (tap_sum.ACT_GRAD, through, problem.y - mean),
        (tap_sum.SECOND_SUMS, wanted, problem.activated - activated_mean),
    ):
        finish = NormBackward(
            partials=problem.empty(n, inputs, plan.chunks, 3),
            sizes=problem.sizes(plan),
            gamma=none,
            beta=none,
            prologue=problem.numbers,
            grads=problem.empty(n, inputs, 4),
            rstd=torch.ones(n, inputs, dtype=DTYPE, device=problem.device),
            grad_weights=problem.empty(n, 2),
        )
        out = problem.run(
            plan,
            image,
            epilogue=epilogue,
            of=Epilogue(problem.y, problem.numbers, tl.constexpr(SLOPE), tl.constexpr(0), None, None),
            finalise=kinds.NORM_BACKWARD.value,
            finish=finish,
            second=epilogue is tap_sum.SECOND_SUMS,
        )
        close(out, of_pixels)
        close(finish.partials[..., 0].sum(-1), of_pixels.sum((2, 3)))
        close(finish.partials[..., 1].sum(-1), (of_pixels * off).sum((2, 3)))


@pytest.mark.parametrize(
    ("target", "weighted", "outputs"),
    [(False, False, 3), (True, False, 3), (True, True, 3), (False, False, 18), (True, True, 18)],
)
def test_the_image_and_its_error(target, weighted, outputs):
    problem = Problem(Conv(kernel=1, border=0, channels=(5, outputs), networks=2))
    plan = problem.plan(problem.taps.forward)
    n, shape = 2, (2, outputs, *problem.conv.size)
    bias, wanted_target = problem.random(n, outputs), problem.random(*shape)
    image = problem.empty(*shape)
    weight = problem.random(*shape).square() if weighted else None
    finish = Loss(
        partials=problem.empty(n, outputs, plan.chunks, 3),
        sizes=finalise_sizes(
            channels=outputs,
            chunks=plan.chunks,
            pixels=shape[2] * shape[3],
            weights=outputs,
            device=problem.device,
            shift_outputs=outputs,
        ),
        settings=finalise_settings(device=problem.device),
        weights=bias,
        loss=problem.empty(n),
        shift_bias=torch.arange(outputs, dtype=torch.int32, device=problem.device),
        shift_first=problem.ints(outputs + 1, 0),
        shift_taps=problem.ints(2, 0),
        shift_constants=problem.empty(n, 1),
    )
    out = problem.run(
        plan,
        plain_image(problem.y),
        epilogue=tap_sum.IMAGE,
        of=Epilogue(
            None,
            None,
            tl.constexpr(1.0),
            tl.constexpr(kinds.OUT_SIGMOID.value),
            image,
            wanted_target if target else None,
            weight,
        ),
        finalise=(kinds.LOSS if target else kinds.FINALISE_NONE).value,
        finish=finish,
    )
    wanted = problem.convolved(problem.y) + bias[..., None, None]
    close(out, wanted)
    close(image, wanted.sigmoid())
    if target:
        squares = (wanted.sigmoid() - wanted_target).square()
        close(finish.loss, (squares if weight is None else weight * squares).mean((1, 2, 3)))


def test_one_image_for_all_networks_is_read_as_it_is():
    problem = Problem(Conv(padding="reflect", networks=2))
    plan = problem.plan(problem.taps.forward)
    shared = problem.y[:1].contiguous()
    out = problem.run(plan, plain_image(shared, shared=True))
    close(out, problem.convolved(problem.continued(shared).expand(2, -1, -1, -1)))


def test_the_layout_follows_the_size_of_the_work():
    """Few pixels: their taps are shared among programs; many: one program adds up few parts of an output."""
    taps = {
        size: conv_taps(
            ConvSpec(border=[1] * 4, kernel_rows=3, kernel_columns=3, outputs=128, first_weight=0),
            128,
            size,
            size,
        ).forward
        for size in (8, 512)
    }
    small, large = (
        plan_tap_sum(spec, networks=1, products="tf32", dtype=torch.float32, device="cpu")
        for spec in taps.values()
    )
    assert small.shape.splits > 1
    assert small.workspace > 0
    assert large.shape.splits == 1
    assert (large.shape.group, large.workspace) == (128, 0)
    assert 128 <= large.chunks <= 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_are_smaller_where_products_pass_through_registers(dtype, monkeypatch):
    for module in (tap_sum_plan, weight_grad_plan):
        monkeypatch.setattr(module, "multiplies_shared_memory", lambda device: False)
    monkeypatch.setattr(weight_grad_plan, "interpreted", lambda: False)
    spec = ConvSpec(border=[1] * 4, kernel_rows=3, kernel_columns=3, outputs=128, first_weight=0)
    forward = conv_taps(spec, 128, 128, 128).forward
    options = {"networks": 1, "products": "float32", "dtype": dtype}
    plan = plan_tap_sum(forward, device="cpu", **options)
    assert plan.shape.group * plan.shape.block <= 128 * 64
    assert plan_weight_grad(forward, plan.lists, **options).shape.outputs <= 32
