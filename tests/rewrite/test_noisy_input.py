"""Noise on the input, drawn where the kernels lay it out: against the noisy image read as any other."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close, build_problem, skip_unless_available
from kernel_backends import EMULATED, require
from torch import nn

import oes_fast as oes
from oes_fast import reference
from oes_fast.ops.philox import add_normal_noise
from oes_fast.reference.philox import STEP_INPUT_NOISE
from oes_fast.rewrite.noisy_input import StepNoise, noisy_input

MODES = {"ZEROS": "constant", "REFLECT": "reflect", "REPLICATE": "replicate", "CIRCULAR": "circular"}
NETWORKS = {
    "skip": {},
    "skip channels": {"num_channels_skip": 2},
    "pooled": {"downsample_mode": "avg"},
    "zero padding": {"pad": "zero", "num_channels_skip": 2},
    "whole kernel 5": {"filter_size_down": 5},
}


def noisy(z, std, seed, step):
    bits = reference.random_bits(seed, step, z.numel(), stream=STEP_INPUT_NOISE)
    return z + std * reference.normal_from_bits(bits, z.dtype).view_as(z)


def expected_planes(x, mode, border, box, phases, row_major):
    """What pads, sums and un-shuffles, in PyTorch."""
    x = F.pad(x, border, mode=MODES[mode])
    if box:
        x = x[..., :-1, :] + x[..., 1:, :]
        x = x[..., :-1] + x[..., 1:]
    if phases:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 2).flatten(1, 2)
    return (x[0].transpose(0, 1) if row_major else x[0]).contiguous().flatten()


def shown(size, before, after, mode):
    """Indices of a padded dimension, -1 for zeros."""
    line = torch.arange(1.0, size + 1).view(1, 1, -1)
    return (F.pad(line, (before, after), mode=MODES[mode]).flatten().long() - 1).tolist()


@pytest.mark.parametrize("mode", MODES)
def test_a_layout_is_that_of_the_steps_one_by_one(mode):
    require("cpu")
    extension = importlib.import_module("oes_fast._C")
    for size, border, box, phases, row_major in itertools.product(
        [(7, 9), (70, 12)], [(0, 0, 0, 0), (1, 2, 3, 0)], *[(False, True)] * 3
    ):
        z = torch.rand(1, 5, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        channels = [0, 2, 4]
        left, right, top, bottom = border
        layout = extension.SourceLayout(
            5, *size, channels=channels, rows=shown(size[0], top, bottom, mode),
            columns=shown(size[1], left, right, mode), box=box, phases=phases, row_major=row_major,
        )  # fmt: skip
        for dtype in (torch.float64, torch.float32):
            image = z.to(dtype)
            wanted = expected_planes(image[:, channels], mode, border, box, phases, row_major)
            planes = torch.full((wanted.numel() + 3,), 7, dtype=dtype)
            layout.write(image.numpy(), planes.numpy())
            assert torch.equal(planes[:-3], wanted)
            assert (planes[-3:] == 7).all()
        noise = {"seed": 2**63 + 5, "step": 2**31 + 1, "stream": 8}
        image = add_normal_noise(torch.empty_like(image), image, 0.3, **noise)
        wanted = expected_planes(image[:, channels], mode, border, box, phases, row_major)
        layout.write_noisy(
            z.float().numpy(), planes.numpy(), 0.3, noise["seed"] - 2**64, noise["step"], noise["stream"]
        )
        assert torch.equal(planes[:-3], wanted)


def test_a_layout_refuses_what_it_would_read_or_write_beyond():
    require("cpu")
    extension = importlib.import_module("oes_fast._C")
    good = {
        "image_channels": 2, "image_rows": 4, "image_columns": 5, "channels": [1], "rows": [1, 0, 1, 2, 3, 2],
        "columns": [-1, 0, 1, 2, 3, 4, -1], "box": True, "phases": True, "row_major": True,
    }  # fmt: skip
    for wrong in (
        {"channels": [2]}, {"channels": []}, {"channels": [-1]}, {"rows": [0, 4]}, {"rows": [-2, 0]},
        {"image_rows": 0}, {"columns": [0, 5]}, {"columns": []}, {"rows": [0]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="source: expected"):
            extension.SourceLayout(**(good | wrong))
    layout = extension.SourceLayout(**good)
    image, planes = torch.zeros(40), torch.zeros(4 * 3 * 3)
    layout.write(image.numpy(), planes.numpy())
    for first, second, error in (
        (image[1:], planes, ValueError), (image, planes[1:], ValueError), (image.double(), planes, TypeError),
        (torch.zeros(80)[::2], planes, ValueError),
    ):  # fmt: skip
        with pytest.raises(error, match="expected"):
            layout.write(first.numpy(), second.numpy())
    with pytest.raises(TypeError, match="expected"):
        layout.write_noisy(image.double().numpy(), planes.double().numpy(), 0.1, 0, 0, 0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_network_of_the_noisy_image(name, dtype):
    require("cpu")
    p = build_problem(size=(18, 22), density=0.6, dtype=dtype, **NETWORKS[name])
    fast, plain = (oes.sparsify(p.net, p.mask, backend=b, verify=False).train() for b in ("cpu", "torch"))
    found = noisy_input(fast.plan(p.z), p.z)
    assert found is not None
    for step in (0, 3, 3, 1):
        images, grads = [], []
        for module, given in (
            (fast, {"z": p.z, "input_noise": 0.2, "step": step, "seed": 9}),
            (plain, {"z": noisy(p.z, 0.2, 9, step)}),
        ):
            image = module(**given)
            module.zero_grad()
            (image - p.noisy).square().mean().backward()
            images.append(image.detach())
            grads.append(module.weights.grad.clone())
        close = {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
        assert_close(images[0], images[1], rtol=close)
        assert_close(grads[0], grads[1], rtol=10 * close)
        assert_close(fast(p.z).detach(), plain(p.z).detach(), rtol=close)  # without, in between
    for (key, mine), (_, other) in zip(fast.dense_buffers(), plain.dense_buffers(), strict=True):
        assert_close(mine.double(), other.double(), rtol=1e-5 if dtype == torch.float32 else 1e-10), key


@pytest.mark.parametrize("backend", ["torch", "cpu", *EMULATED])
def test_every_backend_has_the_noise(backend):
    skip_unless_available(backend)
    p = build_problem(size=(16, 16), density=0.6)
    fast = oes.sparsify(p.net, p.mask, backend=backend, verify=False).train()
    plain = oes.sparsify(p.net, p.mask, backend="torch", verify=False).train()
    for z in (p.z, torch.cat([p.z, p.z.flip(-1)])):
        assert_close(
            fast(z, input_noise=0.1, step=2, seed=1).detach(), plain(noisy(z, 0.1, 1, 2)).detach(), rtol=1e-9
        )


def test_a_z_that_changes_is_seen():
    require("cpu")
    p = build_problem(size=(16, 16), density=0.6)
    fast = oes.sparsify(p.net, p.mask, backend="cpu", verify=False).train()
    z = p.z.clone()
    for _ in range(2):
        found = fast(z, input_noise=0.1, step=2).detach()
        assert_close(found, fast(noisy(z, 0.1, 0, 2)).detach(), rtol=1e-9)
        z *= 0.5
    z.requires_grad_()
    fast(z, input_noise=0.1, step=2).square().sum().backward()
    grad, z.grad = z.grad, None
    fast(noisy(z, 0.1, 0, 2)).square().sum().backward()
    assert_close(grad, z.grad, rtol=1e-8)


def test_a_backward_pass_through_an_earlier_draw_is_refused():
    require("cpu")
    p = build_problem(size=(16, 16), density=0.6)
    fast = oes.sparsify(p.net, p.mask, backend="cpu", verify=False).train()
    first = fast(p.z, input_noise=0.1, step=0).sum()
    fast(p.z, input_noise=0.1, step=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


class Reads(nn.Module):
    """Its input is read by a convolution, and by code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, z):
        return self.last(self.first(z)) + torch.cumsum(z, 3)[:, :3]


def test_where_more_than_chains_reads_it():
    require("cpu")
    net = Reads().double()
    z = oes.noise_input(4, (16, 16), seed=0, dtype=torch.float64)
    fast = oes.sparsify(net, backend="cpu", verify=False).train()
    for step in (0, 1):
        wanted = net.train()(noisy(z, 0.1, 0, step)).detach()
        assert_close(fast(z, input_noise=0.1, step=step).detach(), wanted, rtol=1e-10)


def test_moved_and_copied_modules_have_it(tmp_path):
    require("cpu")
    p = build_problem(size=(16, 16), density=0.6, dtype=torch.float32)
    fast = oes.sparsify(p.net, p.mask, backend="cpu", verify=False).train()
    fast(p.z, input_noise=0.1)
    double = fast.double()
    z = p.z.double()
    wanted = double(noisy(z, 0.1, 0, 0)).detach()
    assert_close(double(z, input_noise=0.1).detach(), wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("input_noise", {"input_noise": -0.1}),
        ("input_noise", {"input_noise": "much"}),
        ("step", {"input_noise": 0.1, "step": -1}),
        ("step", {"input_noise": 0.1, "step": 2**32}),
        ("seed", {"input_noise": 0.1, "seed": 2**64}),
    ],
)
def test_bad_numbers_are_named(name, arguments):
    p = build_problem(size=(16, 16))
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        oes.sparsify(p.net, backend="torch")(p.z, **arguments)


def test_the_same_step_is_drawn_once(monkeypatch):
    require("cpu")
    p = build_problem(size=(16, 16), density=0.6, dtype=torch.float64)
    fast = oes.sparsify(p.net, p.mask, backend="cpu", verify=False).train()
    drawn = []
    added = StepNoise.added
    monkeypatch.setattr(StepNoise, "added", lambda self, *z: drawn.append(self.step) or added(self, *z))
    for step in (0, 0, 1):
        fast(p.z, input_noise=0.1, step=step)
    assert drawn == [0, 1]
