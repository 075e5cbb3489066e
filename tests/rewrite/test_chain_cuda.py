"""Networks of every make on the CUDA engine, held to their rewriting in plain PyTorch.

Without a GPU the kernels run emulated on CPU tensors, about a thousand blocks a second: all here is small.
"""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from chain_networks import (
    CASES,
    TOLERANCE,
    between_others,
    constant_channels,
    generator_held_to_pytorch,
    held_to_pytorch,
    kernels_of_two_widths,
    loss_held_to_pytorch,
    norms_in_a_row,
)
from chains import agree, differentiate, networks, one_conv
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from kernel_backends import device_of, require
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_cuda import CudaChain

pytestmark = [pytest.mark.cuda_kernel, pytest.mark.device]

BACKEND = "cuda"
DTYPES = tuple(TOLERANCE)
# Each network in one dtype on the kernels that the engine chooses, and in the other on those of a group of
# outputs that it would not choose for images so small: groups and dtypes in turn, so that each meets each.
CHOSEN = [(case, DTYPES[number % 2]) for number, case in enumerate(CASES)]
SMALL = [
    (case, (1, 4, 8)[number % 3], DTYPES[(number + 1) % 2], "float32") for number, case in enumerate(CASES)
]
# Groups of more outputs than most networks here have channels: each on a network with more, and some with
# kernels of 5 and beside a skip connection.
FILTERS_OF_FIVE, MANY_CHANNELS, SKIP = CASES[1], CASES[6], CASES[8]
LARGE = [
    *((MANY_CHANNELS, group, torch.float32, "float32") for group in (16, 20)),
    *((MANY_CHANNELS, group, torch.float32, setting) for group in (16, 32) for setting in ("tf32", "tf32x3")),
    (FILTERS_OF_FIVE, 16, torch.float32, "float32"),
    (FILTERS_OF_FIVE, 16, torch.float32, "tf32x3"),
    (SKIP, 20, torch.float32, "float32"),
    (SKIP, 32, torch.float32, "tf32x3"),
]


@pytest.mark.parametrize(("case", "dtype"), CHOSEN, ids=str)
def test_generators(case, dtype):
    require(BACKEND)
    generator_held_to_pytorch(BACKEND, case, dtype)


@pytest.mark.parametrize(("case", "group", "dtype", "setting"), [*SMALL, *LARGE], ids=str)
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
# Every kernel with every stride, with and without a box; the modes and densities in turn.
BLOCKS = [
    (kernel, stride, pooled, MODES[number % 3], (0.5, 1.0)[(number + number // 4) % 2])
    for number, (kernel, stride, pooled) in enumerate(
        itertools.product((1, 2, 3, 5, (3, 1), 15), (1, 2), (False, True))
    )
]


@pytest.mark.parametrize(("kernel", "stride", "pooled", "mode", "density"), BLOCKS)
def test_convolutions_of_every_make(kernel, stride, pooled, mode, density):
    require(BACKEND)
    net = between_others(kernel, stride, pooled, mode, nn.SiLU()).double()
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(FlatLayout.of(net).numel, generator=generator) < density
    z = torch.rand(1, 3, 17, 19, dtype=torch.float64, generator=generator)
    held_to_pytorch(BACKEND, net, oes.Mask.from_flat(net, keep), z, 1e-10, chained={"Conv", "Norm"})


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
    plan = held_to_pytorch(
        BACKEND, net, None, torch.rand(1, 2, 33, 34, dtype=torch.float64), 1e-10, chained={"Pad"}
    )
    assert [sum(node.stage.amount) for node in plan.chained if isinstance(node.stage, ir.Pad)] == [28]


@pytest.mark.memcheck
def test_padding_on_one_side_and_kernels_of_two_widths():
    require(BACKEND)
    net = kernels_of_two_widths().double()
    z = torch.rand(1, 3, 15, 14, dtype=torch.float64)
    held_to_pytorch(BACKEND, net, None, z, 1e-10, chained={"Pad", "Conv", "Norm"})


@pytest.mark.memcheck
def test_norms_in_a_row_and_an_image_that_ends_in_one():
    require(BACKEND)
    net = norms_in_a_row().double()
    z = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    plan = held_to_pytorch(BACKEND, net, None, z, 1e-10, chained={"Conv", "UpConv", "Norm"})
    assert plan.graph.output in plan.chained


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_channels_that_are_constant_or_dead(share):
    require(BACKEND)
    net, mask = constant_channels(share)
    z = oes.noise_input(3, (16, 16), dtype=torch.float64)
    held_to_pytorch(BACKEND, net, mask, z, 1e-10)


@pytest.mark.memcheck
@pytest.mark.parametrize("keeps", [False, True])
def test_masks_that_keep_nothing_or_everything(keeps):
    require(BACKEND)
    net = one_conv(nn.LeakyReLU(0.2))
    mask = oes.Mask.from_flat(net, torch.full((FlatLayout.of(net).numel,), keeps))
    held_to_pytorch(BACKEND, net, mask, torch.rand(1, 4, 12, 12, dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.3), nn.Sigmoid()], ids=str)
@pytest.mark.parametrize("outputs", [2, 6])
def test_last_layers(last, outputs):
    require(BACKEND)
    loss_held_to_pytorch(BACKEND, last, outputs)


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
        plan = held_to_pytorch(
            BACKEND, net.double(), None, torch.rand(1, 3, 13, 12, dtype=torch.float64), 1e-10
        )
        names = [
            node.name for node in plan.chained if getattr(node.stage, "mode", "") in ("circular", "zeros")
        ]
        assert not names or net is circular
        assert not any(getattr(node.stage, "mode", "") == "circular" for node in plan.chained)
        assert bool(plan.chained) == (net is not wide)
