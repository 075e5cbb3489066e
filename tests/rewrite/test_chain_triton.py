"""Networks of every make on the Triton engine, held to their rewriting in plain PyTorch.

Without a GPU the kernels run under Triton's interpreter, a few thousand operations of a program a second: all
here is small, and each test has something that no other has.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from chain_networks import (
    CASES,
    between_others,
    chain_of,
    constant_channels,
    generator_held_to_pytorch,
    held_to_pytorch,
    kernels_of_two_widths,
    loss_held_to_pytorch,
    networks_are_each_alone,
    norms_in_a_row,
    torch_operations_of_a_step,
)
from chains import agree, differentiate, kept, networks, one_conv
from kernel_backends import INTERPRETED, device_of, require
from torch import nn

import oes_fast as oes
from oes_fast.flat import FlatLayout
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_triton import TritonChain

pytestmark = pytest.mark.device

BACKEND = "triton"
SMALL = ({"num_channels_down": (3,), "filter_size_down": 3}, (6, 8), 1.0)  # for what any network shows
DOUBLE = torch.float64


def some(cases, *numbers):
    """All of the cases on a device, those of the given numbers under the interpreter."""
    return [case for number, case in enumerate(cases) if not INTERPRETED or number in numbers]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, DOUBLE) for case in some(CASES, 3, 4, 9)),
        *((case, torch.float32) for case in some(CASES, 0)),
    ],
    ids=str,
)
def test_generators(case, dtype):
    require(BACKEND)
    generator_held_to_pytorch(BACKEND, case, dtype, steps=1 if INTERPRETED else 2)


@pytest.mark.parametrize("group", some((32, 64, 128), 1))
def test_groups_of_outputs(group, monkeypatch):
    """Which the model would not choose for images so small; 16 is the usual one."""
    require(BACKEND)
    monkeypatch.setattr(TritonChain, "group", group)
    case = SMALL if INTERPRETED else CASES[6]
    generator_held_to_pytorch(BACKEND, case, DOUBLE, steps=1)


def test_more_outputs_than_a_group():
    """Two groups forward, backward and at the end, where the loss is that of both."""
    require(BACKEND)
    loss_held_to_pytorch(BACKEND, nn.Sigmoid(), 18, inner=17)


# Kernel, stride, whether pooled, border: with every mode, kernel and stride.
BLOCKS = (
    (3, 1, False, "reflect"),
    (5, 2, False, "replicate"),
    (3, 2, True, "zeros"),
    (1, 2, False, "zeros"),
    (2, 1, True, "reflect"),
    ((3, 1), 2, True, "replicate"),
    (15, 1, False, "reflect"),
    (1, 1, True, "zeros"),
)


@pytest.mark.parametrize(("kernel", "stride", "pooled", "mode"), some(BLOCKS, 1, 2, 4))
def test_convolutions_of_every_make(kernel, stride, pooled, mode):
    require(BACKEND)
    net = between_others(kernel, stride, pooled, mode, nn.SiLU()).double()
    generator = torch.Generator().manual_seed(1)
    keep = torch.rand(FlatLayout.of(net).numel, generator=generator) < 0.5
    size = (9, 8) if INTERPRETED else (17, 19)
    z = torch.rand(1, 3, *size, dtype=DOUBLE, generator=generator)
    held_to_pytorch(BACKEND, net, oes.Mask.from_flat(net, keep), z, 1e-10, chained={"Conv", "Norm"}, steps=1)


def test_padding_on_one_side_and_kernels_of_two_widths():
    require(BACKEND)
    z = torch.rand(1, 3, 9, 8, dtype=DOUBLE)
    net = kernels_of_two_widths().double()
    held_to_pytorch(BACKEND, net, None, z, 1e-10, chained={"Pad", "Conv", "Norm"}, steps=1)


def test_norms_in_a_row_and_an_image_that_ends_in_one():
    require(BACKEND)
    z = torch.rand(1, 3, 5, 6, dtype=DOUBLE)
    plan = held_to_pytorch(
        BACKEND, norms_in_a_row().double(), None, z, 1e-10, chained={"Conv", "UpConv", "Norm"}
    )
    assert plan.graph.output in plan.chained


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_border_behind_two_norms_that_is_folded(mode):
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 2, 1),
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode=mode),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 1, 1),
    ).double()
    z = torch.rand(1, 2, 5, 6, dtype=DOUBLE)
    held_to_pytorch(BACKEND, net, None, z, 1e-10, chained={"Pad", "Conv", "Norm"}, steps=1)


@pytest.mark.parametrize("share", [0.3] if INTERPRETED else [0.0, 0.3, 0.9])
def test_channels_that_are_constant_or_dead(share):
    require(BACKEND)
    net, mask = constant_channels(share)
    z = oes.noise_input(3, (8, 8) if INTERPRETED else (16, 16), dtype=DOUBLE)
    held_to_pytorch(BACKEND, net, mask, z, 1e-10)


@pytest.mark.parametrize("keeps", [False, True])
def test_masks_that_keep_nothing_or_everything(keeps):
    require(BACKEND)
    net = one_conv(nn.LeakyReLU(0.2))
    mask = oes.Mask.from_flat(net, torch.full((FlatLayout.of(net).numel,), keeps))
    held_to_pytorch(BACKEND, net, mask, torch.rand(1, 4, 7, 6, dtype=DOUBLE), 1e-10, steps=1)


@pytest.mark.parametrize("last", [nn.Identity(), nn.LeakyReLU(0.3), nn.Sigmoid()], ids=str)
def test_last_layers(last):
    require(BACKEND)
    loss_held_to_pytorch(BACKEND, last, 2)


@pytest.mark.parametrize("fixed", [True, False])
def test_sources_that_are_fixed_or_not(fixed):
    """With borders and a box in front of the first convolution, and the gradient of what it reads."""
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1)
    ).double()
    found = []
    z = torch.rand(1, 2, 6, 7, dtype=DOUBLE).to(device_of(BACKEND)).requires_grad_()
    for backend in ("torch", BACKEND):
        fast = oes.sparsify(net.to(z.device), backend=backend, verify=False).train()
        fast.fixed_input = fixed
        output = fast(z)
        found.append([output.detach(), *torch.autograd.grad(output.square().sum(), (z, fast.weights))])
    agree(found[1], found[0], 1e-10)
    pads = [node for node in fast.plan(z).chained if isinstance(node.stage, ir.Pad)]
    assert bool(pads) != fixed


@pytest.mark.parametrize(("shared", "with_loss"), [(True, True), (False, False)])
def test_two_networks_are_each_alone(shared, with_loss):
    require(BACKEND)
    networks_are_each_alone(
        BACKEND, TritonChain, SMALL, count=2, shared=shared, with_loss=with_loss, rounding=1e-12
    )


@pytest.mark.parametrize(("setting", "bound"), [("tf32x3", 1e-5), ("tf32", 2e-2)])
def test_products_are_those_of_the_setting(setting, bound):
    """The interpreter does not round; a device does."""
    require(BACKEND)
    case = SMALL if INTERPRETED else ({"num_channels_down": (16, 16)}, (16, 16), 1.0)
    _, exact, z = networks(case, DOUBLE, backend=BACKEND)
    _, fast, _ = networks(case, torch.float32, backend=BACKEND)
    with torch.no_grad():
        exact.weights.copy_(fast.weights)
        wanted = exact(z.float().double())
        with oes.precision(setting, device=z.device):
            image = fast(z.float())
            lines = "\n".join(
                line
                for chain in fast.plan(z.float())._chains
                for line in chain.explain(torch.float32, z.device).values()
            )
    assert f"{setting} products" in lines
    assert float((image.double() - wanted).abs().max()) < bound


def test_every_run_gives_the_same_bits():
    require(BACKEND)
    found = []
    for _ in range(2):
        _, fast, z = networks(SMALL if INTERPRETED else CASES[1], torch.float32, backend=BACKEND)
        found.append(differentiate(fast, z))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_step_asks_torch_for_next_to_nothing(monkeypatch):
    require(BACKEND)
    _, fast, z = networks(SMALL, torch.float32, backend=BACKEND)
    if INTERPRETED:  # the interpreter asks torch for much
        interpreter = importlib.import_module("triton.runtime.interpreter")
        monkeypatch.setattr(interpreter.InterpretedFunction, "run", lambda *arguments, **options: None)
    # Zeros for the gradients to be added to, and the batch counts.
    assert torch_operations_of_a_step(fast, z) == ["_foreach_add_", "zero_"]


def test_wrong_tensors_are_refused():
    require(BACKEND)
    _, fast, z = networks(SMALL, torch.float32, backend=BACKEND)
    function, source = chain_of(fast, z, TritonChain, 1)
    weights, buffers = fast.weights.detach(), dict(fast.dense_buffers())
    for changes, name in (
        ({"weights": weights[1:]}, "weights"),
        ({"source": source[..., 1:]}, "source"),
        ({"target": torch.zeros(1, 1, 1, 1, device=z.device)}, "target"),
    ):
        given = {"weights": weights, "source": source, "target": None} | changes
        with pytest.raises(oes.InputError, match=f"{name}: expected"):
            function(
                given["weights"],
                [given["source"]],
                buffers,
                update_stats=True,
                counted=[],
                target=given["target"],
            )
    with pytest.raises(oes.InputError, match="networks: expected 1 to 65535, got 0"):
        chain_of(fast, z, TritonChain, 0)[0](weights, [source], buffers, update_stats=False, counted=[])


def test_what_the_engine_does_not_take_runs_on_pytorch():
    require(BACKEND)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(2),
        nn.ZeroPad2d(9),
        nn.Conv2d(2, 1, 3),
    )
    plan = held_to_pytorch(BACKEND, net.double(), None, torch.rand(1, 3, 7, 6, dtype=DOUBLE), 1e-10, steps=1)
    assert plan.chained
    assert not any(isinstance(node.stage, ir.Pad) for node in plan.chained)


def test_explain_says_what_runs_each_convolution():
    require(BACKEND)
    _, fast, z = networks(SMALL, torch.float32, backend=BACKEND)
    text = fast.explain(z.shape[2:])
    lines = [line for line in text.splitlines() if "conv " in line]
    assert lines
    assert all("Triton chain: " in line for line in lines)


def test_a_module_moved_elsewhere_runs_on_pytorch():
    require(BACKEND)
    net = one_conv(nn.ReLU()).to(device_of(BACKEND))
    fast = oes.sparsify(net, kept(net), backend=BACKEND, verify=False).to("meta")
    assert fast(torch.zeros(1, 4, 8, 8, dtype=DOUBLE, device="meta")).device.type == "meta"


def test_a_kernel_that_does_not_fit_is_said_in_words(monkeypatch):
    require(BACKEND)
    _, fast, z = networks(SMALL, torch.float32, backend=BACKEND)

    def launch(*_, **__):
        raise importlib.import_module("triton.runtime.errors").OutOfResources(
            200_000, 100_000, "shared memory"
        )

    monkeypatch.setattr(importlib.import_module("oes_fast.kernels.chain.program"), "tap_sum", launch)
    with pytest.raises(
        oes.BackendError, match=r'backend "triton": .* \(out of resource: shared memory.*torch'
    ):
        fast(z)
