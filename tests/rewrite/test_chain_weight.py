"""The weighted squared error that chains take along, on every engine, against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from chain_networks import chain_of
from chains import agree, networks
from kernel_backends import device_of, require
from torch import Tensor, nn

import oes_fast as oes
import oes_fast.rewrite.run.chain_cpu
from oes_fast.rewrite import SparseGenerator
from oes_fast.rewrite.run.chain_cuda import CudaChain
from oes_fast.rewrite.run.context import FusedLoss

DOUBLE = torch.float64
ENGINES = ("cpu", "cuda")
# Options of the generator, size, density: heads of one to four outputs and of more, every activation, several
# chunks of pixels.
CASES = (
    ({}, (36, 60), 0.8),
    ({"outputs": 1, "num_channels_down": (5, 6)}, (52, 92), 0.8),
    ({"outputs": 4, "num_channels_down": (11, 6), "need_sigmoid": False}, (32, 68), 0.7),
    ({"outputs": 5, "num_channels_down": (6, 6)}, (40, 36), 1.0),
    ({"outputs": 2, "num_channels_down": (4,), "need1x1_up": True}, (66, 62), 1.0),
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def small(backend: str, dtype: torch.dtype = DOUBLE) -> tuple[SparseGenerator, SparseGenerator, Tensor]:
    """(plain PyTorch, a backend's kernels, input) of two layers and an image of odd sizes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 1), nn.Sigmoid()
    )
    net, z = net.to(device_of(backend), dtype), drawn(1, 3, 9, 7).to(device_of(backend), dtype)
    plain, fast = (oes.sparsify(net, backend=name, verify=False).train() for name in ("torch", backend))
    return plain, fast, z


def weights_of(shape: torch.Size, kind: str) -> Tensor:
    """Weights of an image: any, pixels that are known or not, one channel alone, or none but one pixel."""
    weight = 2 * drawn(*shape, seed=3)
    if kind == "known":
        return (weight[:, :1] > 1).to(DOUBLE).expand(shape).contiguous()
    if kind == "channel":
        weight[:, 1:] = 0
    if kind == "pixel":
        weight *= 0
        weight[0, -1, -1, -1] = 3.0
    return weight


def found(fast, z: Tensor, target: Tensor, weight: Tensor | None, *, of_image: bool = False) -> list[Tensor]:
    """Image, loss and the gradient of three times the loss, and where asked for of the image too."""
    fused = FusedLoss(target, weight)
    image = fast.evaluate(fast.weights, z, dict(fast.dense_buffers()), update_stats=False, fused_loss=fused)
    loss = fused.loss
    if loss is None:
        squares = (image - target) ** 2
        loss = (squares if weight is None else weight * squares).mean()
    total = 3 * loss + (image.sin().sum() if of_image else 0)
    return [image.detach(), loss.detach(), *torch.autograd.grad(total, fast.weights)], fused


def held_to_pytorch(made, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    plain, fast, z = made
    shape = plain.plan(z).graph.output.shape
    target, weight = drawn(*shape, seed=2).to(dtype), weights_of(shape, kind).to(dtype)
    target, weight = target.to(z.device), weight.to(z.device)
    exact = oes.sparsify(plain.to_dense().double(), fast._given_mask, backend="torch", verify=False).train()
    for of_image in (False, True):
        ours, fused = found(fast, z, target, weight, of_image=of_image)
        assert fused.loss is not None, "it was not taken along"
        theirs, _ = found(exact, z.double(), target.double(), weight.double(), of_image=of_image)
        agree([each.double() for each in ours], theirs, tolerance)


@pytest.mark.cpu_kernel
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *((case, "any") for case in CASES),
        *((case, kind) for case in (CASES[0], CASES[3]) for kind in ("known", "channel", "pixel")),
    ],
    ids=str,
)
def test_the_cpu(case, kind):
    require("cpu")
    held_to_pytorch(networks(case, DOUBLE), kind, DOUBLE, 1e-11)
    if kind == "any":
        held_to_pytorch(networks(case, torch.float32), kind, torch.float32, 3e-4)


@pytest.mark.parametrize("kind", ["any", "known", "pixel"])
def test_the_cuda_engine(kind):
    require("cuda")
    held_to_pytorch(small("cuda"), kind, DOUBLE, 1e-10)
    if kind == "any":
        held_to_pytorch(networks(CASES[2], DOUBLE, backend="cuda"), kind, DOUBLE, 1e-10)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("last", [nn.Identity(), nn.LeakyReLU(0.3), nn.Sigmoid()], ids=str)
@pytest.mark.parametrize("outputs", [2, 6])
def test_last_layers(engine, last, outputs):
    """A last convolution with taps, which has its image made by itself."""
    require(engine)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, outputs, 3), last)
    net, z = net.double().to(device_of(engine)), drawn(1, 3, 9, 13).to(device_of(engine))
    target, weight = (drawn(1, outputs, 7, 11, seed=seed).to(z.device) for seed in (1, 2))
    weight[:, :, 2:4] = 0
    results = []
    for backend in ("torch", engine):
        fast = oes.sparsify(net, backend=backend, verify=False).train()
        results.append(found(fast, z, target, weight, of_image=False)[0])
    agree(results[1], results[0], 1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_one_change_no_bit(engine):
    require(engine)
    for dtype in (torch.float32, DOUBLE):
        _, fast, z = networks(CASES[0], dtype) if engine == "cpu" else small(engine, dtype)
        target = drawn(*fast.plan(z).graph.output.shape).to(dtype).to(z.device)
        with_ones, _ = found(fast, z, target, torch.ones_like(target))
        without, _ = found(fast, z, target, None)
        for ours, theirs in zip(with_ones, without, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_in_between_keep_their_weights(engine):
    """The buffers are filled anew for the gradient of an earlier evaluation, with its own weights."""
    require(engine)
    _, fast, z = small(engine)
    target = drawn(*fast.plan(z).graph.output.shape).to(z.device)

    def losses() -> list[Tensor]:
        fused = [FusedLoss(target, weights_of(target.shape, kind).to(z.device)) for kind in ("known",)]
        fused.append(FusedLoss(target))
        for each in fused:
            fast.evaluate(fast.weights, z, dict(fast.dense_buffers()), update_stats=False, fused_loss=each)
        return [each.loss for each in fused]

    alone = [torch.autograd.grad(losses()[number], fast.weights)[0] for number in range(2)]
    together = [torch.autograd.grad(loss, fast.weights)[0] for loss in losses()]
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours, theirs)
    plain = found(fast, z, target, None)[0][2] / 3
    torch.testing.assert_close(together[1], plain)


def test_networks_at_once_have_weights_each_on_cuda():
    require("cuda")
    _, fast, z = small("cuda")
    together, source = chain_of(fast, z, CudaChain, 2)
    alone, _ = chain_of(fast, z, CudaChain, 1)
    weights = fast.weights.detach() + 0.1 * drawn(2, fast.weights.numel()).to(z.device)
    shape = together.chain.end.shape[1:]
    targets, errors = (drawn(2, *shape, seed=seed).to(z.device) for seed in (1, 2))
    errors[1, :, 3:] = 0

    def run(function, w, target, weight):
        w = w.clone().requires_grad_()
        buffers = {}
        image, loss = function(
            w, [source], buffers, update_stats=False, counted=[], target=target, weight=weight
        )
        return [image.detach(), loss.detach(), *torch.autograd.grad(loss.sum(), w)]

    ours = run(together, weights, targets, errors)
    for number in range(2):
        own = slice(number, number + 1)
        image, loss, grad = run(alone, weights[number], targets[own], errors[own])
        torch.testing.assert_close(ours[0][own], image, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours[1][number], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(ours[2][number], grad, rtol=1e-10, atol=1e-12)
        expected = (errors[own] * (image - targets[own]) ** 2).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_weights_are_refused(engine):
    require(engine)
    _, fast, z = small(engine)
    target = drawn(*fast.plan(z).graph.output.shape).to(z.device)
    for wrong in (target[..., 1:].contiguous(), target.float()):
        with pytest.raises((oes.InputError, TypeError, ValueError), match="weight"):
            found(fast, z, target, wrong)


@pytest.mark.parametrize("dense", [False, True])
def test_both_forms_of_the_cpu(dense, monkeypatch):
    require("cpu")
    monkeypatch.setattr(oes_fast.rewrite.run.chain_cpu, "dense_is_faster", lambda *_, **__: dense)
    held_to_pytorch(networks(CASES[0], DOUBLE), "any", DOUBLE, 1e-11)
