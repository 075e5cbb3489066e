"""Networks of every make on the CUDA engine, held to their rewriting in plain PyTorch.

Without a GPU the kernels run emulated on CPU tensors, about a thousand blocks a second: all here is small.
"""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from chains import agree, differentiate, networks, one_conv
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import device_of, require
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_cuda import CudaChain
from oes_fast.rewrite.run.context import FusedLoss

pytestmark = [pytest.mark.cuda_kernel, pytest.mark.device]

BACKEND = "cuda"
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}
CASES = (
    ({"num_channels_down": (3, 4)}, (16, 20), 0.8),
    ({"num_channels_down": (4, 5, 3), "filter_size_down": 5}, (24, 33), 0.6),
    ({"num_channels_down": (5, 6), "pad": "zero"}, (20, 16), 0.8),
    ({"num_channels_down": (4, 4), "act_fun": "ELU", "need1x1_up": True}, (16, 24), 0.8),
    ({"num_channels_down": (4, 5), "act_fun": "SiLU", "downsample_mode": "stride"}, (13, 19), 0.8),
    ({"num_channels_down": (5, 3), "act_fun": "none", "need_bias": False}, (16, 16), 0.9),
    ({"num_channels_down": (18, 17), "need_sigmoid": False}, (8, 12), 0.3),
    ({"num_channels_down": (4,), "filter_size_down": 3}, (8, 150), 1.0),
    ({"num_channels_down": (3, 5), "num_channels_skip": 2}, (16, 16), 0.7),
    ({"num_channels_down": (5,), "outputs": 5}, (12, 12), 0.8),
    ({"num_channels_down": (6,), "outputs": 1, "filter_size_down": 1}, (40, 6), 1.0),
)


def held_to_pytorch(net, mask, z, tolerance, *, chained=None, seed=1):
    """Two steps of a network against its rewriting in plain PyTorch."""
    device = device_of(BACKEND)
    net, z = net.to(device), z.to(device)
    plain, fast = (oes.sparsify(net, mask, backend=b, verify=False).train() for b in ("torch", BACKEND))
    for _ in range(2):
        agree(differentiate(fast, z, seed), differentiate(plain, z, seed), tolerance)
    plan = fast.plan(z)
    if chained is not None:
        assert {type(node.stage).__name__ for node in plan.chained} >= chained
    return plan


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_generators(case, dtype):
    require(BACKEND)
    plain, fast, z = networks(case, torch.float64, backend=BACKEND)
    _, ours, _ = networks(case, dtype, backend=BACKEND)
    with torch.no_grad():  # the same numbers, also after they were rounded
        for net in (plain, fast):
            net.weights.copy_(ours.weights)
    z = z.to(dtype).double()
    for _ in range(2):
        found = differentiate(ours, z.to(dtype))
        agree(
            [t.double() if t.is_floating_point() else t for t in found],
            differentiate(plain, z),
            TOLERANCE[dtype],
        )


# By the group of outputs, which the model of the kernels would not choose for images so small.
KERNELS = [
    *((group, dtype, "float32") for group in (1, 4, 8) for dtype in TOLERANCE),
    *((group, torch.float32, "float32") for group in (16, 20)),
    *((group, torch.float32, setting) for group in (16, 32) for setting in ("tf32", "tf32x3")),
]


WIDE = (CASES[1], CASES[6], CASES[8])  # for groups of more outputs than most networks here have channels


@pytest.mark.parametrize(
    ("case", "group", "dtype", "setting"),
    [(case, *kernel) for kernel in KERNELS for case in (CASES if kernel[0] < 16 else WIDE)],
    ids=str,
)
def test_every_kernel(case, group, dtype, setting, monkeypatch):
    require(BACKEND)
    plain, _, z = networks(case, torch.float64, backend="torch")
    plain, z = plain.to(device_of(BACKEND)), z.to(device_of(BACKEND))
    _, fast, _ = networks(case, dtype, backend=BACKEND)
    with torch.no_grad():
        plain.weights.copy_(fast.weights)
    monkeypatch.setattr(CudaChain, "groups", (group,))
    with oes.precision(setting, device=z.device):
        found = differentiate(fast, z.to(dtype))
        text = fast.explain(case[1], file=io.StringIO())
    assert ("forward: multiply-adds" in text) == (setting == "float32")
    assert ("TF32" in text) == (setting != "float32")
    found = [t.double() if t.is_floating_point() else t for t in found]
    wanted = differentiate(plain, z.to(dtype).double())
    if setting != "tf32":
        agree(found, wanted, TOLERANCE[dtype])
        return
    # Of the gradient a rounding may change the sign of an activation's input.
    agree(found[:1], wanted[:1], 5e-3)
    assert torch.isfinite(found[1]).all()


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_networks(data):
    require(BACKEND)
    depth = data.draw(st.integers(1, 2))
    channels = st.lists(st.integers(1, 5), min_size=depth, max_size=depth)
    options = {
        "num_channels_down": data.draw(channels),
        "num_channels_up": data.draw(channels),
        "outputs": data.draw(st.integers(1, 5)),
        "filter_size_down": data.draw(st.sampled_from((1, 3, 5))),
        "pad": data.draw(st.sampled_from(("reflection", "zero"))),
        "act_fun": data.draw(st.sampled_from(("LeakyReLU", "ELU", "SiLU", "none"))),
        "need1x1_up": data.draw(st.booleans()),
        "need_bias": data.draw(st.booleans()),
        "need_sigmoid": data.draw(st.booleans()),
        "downsample_mode": data.draw(st.sampled_from(("avg", "stride"))),
    }
    size = data.draw(st.integers(16, 30)), data.draw(st.integers(8, 36))
    assume(min(size) // 2**depth >= 4)
    case = options, size, data.draw(st.sampled_from((0.3, 0.7, 1.0)))
    plain, fast, z = networks(case, torch.float64, data.draw(st.integers(0, 1000)), BACKEND)
    agree(differentiate(fast, z), differentiate(plain, z), 1e-9)


MODES = ("zeros", "reflect", "replicate")
# Every kernel with every stride, with and without a box; the modes in turn.
BLOCKS = [
    (kernel, stride, pooled, MODES[number % 3])
    for number, (kernel, stride, pooled) in enumerate(
        itertools.product((1, 2, 3, 5, (3, 1), 15), (1, 2), (False, True))
    )
]


def block(kernel, stride, pooled, mode):
    """A convolution of every make between others, so that it reads what a norm gives."""
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    padding = (rows // 2, columns // 2)
    conv = nn.Conv2d(3, 4, (rows, columns), stride, padding, padding_mode=mode)
    return nn.Sequential(
        nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.1),
        conv,
        *([nn.AvgPool2d(2)] if pooled else []),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 2, 1),
    )


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize(("kernel", "stride", "pooled", "mode"), BLOCKS)
def test_convolutions_of_every_make(kernel, stride, pooled, mode, density):
    require(BACKEND)
    torch.manual_seed(0)
    net = block(kernel, stride, pooled, mode).double()
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(FlatLayout.of(net).numel, generator=generator) < density
    z = torch.rand(1, 3, 17, 19, dtype=torch.float64, generator=generator)
    held_to_pytorch(net, oes.Mask.from_flat(net, keep), z, 1e-10, chained={"Conv", "Norm"})


@pytest.mark.memcheck
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_the_widest_copied_border_beside_more_than_one_tile(mode):
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 1, 1),
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 2, 15, padding=7, padding_mode=mode),
        nn.BatchNorm2d(2),
        nn.ReflectionPad2d(8),  # one more runs on PyTorch
        nn.Conv2d(2, 1, 3),
    ).double()
    plan = held_to_pytorch(net, None, torch.rand(1, 2, 33, 34, dtype=torch.float64), 1e-10, chained={"Pad"})
    assert [sum(node.stage.amount) for node in plan.chained if isinstance(node.stage, ir.Pad)] == [28]


@pytest.mark.memcheck
def test_padding_on_one_side_and_kernels_of_two_widths():
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ZeroPad2d((2, 0, 1, 3)),
        nn.Conv2d(4, 3, (2, 4), 2),
        nn.BatchNorm2d(3),
        nn.ReflectionPad2d((0, 1, 2, 0)),
        nn.Conv2d(3, 4, (4, 2)),
    ).double()
    z = torch.rand(1, 3, 15, 14, dtype=torch.float64)
    held_to_pytorch(net, None, z, 1e-10, chained={"Pad", "Conv", "Norm"})


@pytest.mark.memcheck
def test_norms_in_a_row_and_an_image_that_ends_in_one():
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ELU(0.7),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5),
    ).double()
    z = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    plan = held_to_pytorch(net, None, z, 1e-10, chained={"Conv", "UpConv", "Norm"})
    assert plan.graph.output in plan.chained


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_channels_that_are_constant_or_dead(share):
    """Gammas dropped, betas kept: the channels are numbers, whose statistics the dense network moves."""
    require(BACKEND)
    torch.manual_seed(0)
    net = oes.models.skip(3, 2, num_channels_down=(4, 5), filter_size_down=3, seed=0).double()
    layout = FlatLayout.of(net)
    keep = torch.rand(layout.numel, generator=torch.Generator().manual_seed(2)) < 0.9
    generator = torch.Generator().manual_seed(3)
    for (name, parameter), view in zip(net.named_parameters(), layout.views(keep).values(), strict=True):
        if parameter.ndim == 1 and name.endswith("weight"):
            view[:] = torch.rand(view.shape, generator=generator) < share
        parameter.data += 0.1
    z = oes.noise_input(3, (16, 16), dtype=torch.float64)
    held_to_pytorch(net, oes.Mask.from_flat(net, keep), z, 1e-10)


@pytest.mark.memcheck
@pytest.mark.parametrize("keeps", [False, True])
def test_masks_that_keep_nothing_or_everything(keeps):
    require(BACKEND)
    net = one_conv(nn.LeakyReLU(0.2))
    mask = oes.Mask.from_flat(net, torch.full((FlatLayout.of(net).numel,), keeps))
    held_to_pytorch(net, mask, torch.rand(1, 4, 12, 12, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.3), nn.Sigmoid()], ids=str)
@pytest.mark.parametrize("outputs", [2, 6])
def test_last_layers(last, outputs):
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, outputs, 3), last)
    z, device = torch.rand(1, 3, 10, 12, dtype=torch.float64), device_of(BACKEND)
    held_to_pytorch(net.double(), None, z, 1e-10, chained={"Conv", "Norm"})
    target = torch.rand(1, outputs, 8, 10, dtype=torch.float64).to(device)
    found = []
    for backend in ("torch", BACKEND):
        fast = oes.sparsify(net, backend=backend, verify=False).train()
        loss = FusedLoss(target)
        image = fast.evaluate(
            fast.weights, z.to(device), dict(fast.dense_buffers()), update_stats=False, fused_loss=loss
        )
        error = ((image - target) ** 2).mean() if loss.loss is None else loss.loss
        assert (loss.loss is None) == (backend == "torch")
        found.append([image.detach(), error.detach(), *torch.autograd.grad(3 * error, fast.weights)])
    agree(found[1], found[0], 1e-10)


def test_what_the_engine_does_not_take_runs_on_pytorch():
    require(BACKEND)
    torch.manual_seed(0)
    circular = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"),
    )
    wide = nn.Sequential(nn.Conv2d(3, 2, 16, padding=4), nn.BatchNorm2d(2))
    far = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ZeroPad2d(20), nn.Conv2d(2, 2, 3))
    for net in (circular, wide, far):
        plan = held_to_pytorch(net.double(), None, torch.rand(1, 3, 13, 12, dtype=torch.float64), 1e-10)
        names = [
            node.name for node in plan.chained if getattr(node.stage, "mode", "") in ("circular", "zeros")
        ]
        assert not names or net is circular
        assert not any(getattr(node.stage, "mode", "") == "circular" for node in plan.chained)
        assert bool(plan.chained) == (net is not wide)
