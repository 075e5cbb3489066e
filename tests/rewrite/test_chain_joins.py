"""Chains that are graphs: joins, several readers and sources, against the same network in plain PyTorch."""

from __future__ import annotations

import io

import pytest
import torch
from chains import agree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from join_networks import NETWORKS, Unet, chains, check, decoder, evaluated, perturbed, rewritten_pair
from kernel_backends import require, run_python
from optional_packages import deepinv, monai
from torch import Tensor, nn

import oes_fast as oes
import oes_fast.rewrite.run.chain_joins
from oes_fast.rewrite.run.context import FusedLoss

pytestmark = pytest.mark.cpu_kernel


@pytest.fixture(autouse=True)
def kernels():
    require("cpu")


def noise(shape: tuple[int, ...], seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Each network with all weights, and with more or fewer than half of them in turn.
SHARES = [
    (name, share) for number, name in enumerate(NETWORKS) for share in (1.0, 0.6 if number % 2 == 0 else 0.25)
]


@pytest.mark.parametrize(("name", "density"), SHARES)
def test_same_as_pytorch(name, density):
    torch.manual_seed(0)
    net, z = perturbed(NETWORKS[name].make()), noise(NETWORKS[name].shape)
    fast = check(net, z, density)
    if density == 1:
        assert chains(fast, z) == (1, [])


@pytest.mark.parametrize("name", NETWORKS)
def test_float32(name):
    torch.manual_seed(0)
    net, z = perturbed(NETWORKS[name].make()), noise(NETWORKS[name].shape)
    expected = evaluated(rewritten_pair(net, 0.7)[0], z)
    _, fast = rewritten_pair(net, 0.7, dtype=torch.float32)
    actual = evaluated(fast, z.float())
    agree([t.double() if t.is_floating_point() else t for t in actual], expected, 5e-4)


def test_masks_that_keep_nothing_or_biases_alone():
    for name in ("unet", "skip", "residual", "transposed"):
        torch.manual_seed(0)
        net, z = perturbed(NETWORKS[name].make()), noise(NETWORKS[name].shape)
        for parameters in (lambda p: False, lambda p: p.ndim == 1, lambda p: p.ndim == 4):
            keep = torch.cat([torch.full((p.numel(),), parameters(p)) for p in net.parameters()])
            mask = oes.Mask.from_flat(net, keep)
            plain, fast = (
                oes.sparsify(net, mask, backend=backend, verify=False).train() for backend in ("torch", "cpu")
            )
            agree(evaluated(fast, z), evaluated(plain, z), 1e-10)


@pytest.mark.parametrize("name", ["unet without norms", "skip", "transposed", "decoder"])
def test_gradcheck(name):
    torch.manual_seed(0)
    net = perturbed(NETWORKS[name].make())
    _, fast = rewritten_pair(net, 0.8)
    rows, columns = (8, 12) if name != "decoder" else (3, 4)
    z = noise((1, NETWORKS[name].shape[1], rows, columns)).requires_grad_()
    buffers = dict(fast.dense_buffers())
    torch.autograd.gradcheck(
        lambda weights, z: fast.evaluate(weights, z, buffers, update_stats=False),
        (fast.weights.detach().requires_grad_(), z),
        atol=1e-5,
        fast_mode=True,
    )


def test_loss_of_a_last_convolution_is_fused():
    for name, fused in (("skip", True), ("residual", True), ("unet", False)):
        torch.manual_seed(0)
        net, z = perturbed(NETWORKS[name].make()), noise(NETWORKS[name].shape)
        plain, fast = rewritten_pair(net, 1.0)
        image = plain(z)
        loss = FusedLoss(noise(image.shape, 5))
        ours = fast.evaluate(fast.weights, z, dict(fast.dense_buffers()), update_stats=False, fused_loss=loss)
        agree([ours.detach()], [image.detach()], 1e-11)
        assert (loss.loss is not None) == fused
        if fused:
            theirs = (image - loss.target).square().mean()
            grads = [
                torch.autograd.grad(value, of.weights)[0]
                for value, of in ((loss.loss, fast), (theirs, plain))
            ]
            agree([grads[0]], [grads[1]], 1e-11)


class Drawn(nn.Module):
    """A small random graph: each layer reads results before it, of one size or half of it."""

    def __init__(self, draw: list[tuple[int, int, int, int]], channels: int = 3) -> None:
        super().__init__()
        self.draw = draw
        self.layers = nn.ModuleList()
        for kind, _, _, option in draw:
            pads = ("zeros", "reflect", "replicate", "circular")
            conv = nn.Conv2d(channels, channels, 3, padding=1, padding_mode=pads[option % 4])
            acts = (nn.ReLU(), nn.SiLU(), nn.ELU(), nn.Identity(), nn.PReLU(channels))
            behind = {
                0: [conv],
                1: [conv, nn.BatchNorm2d(channels), acts[option % 5]],
                2: [conv, acts[option % 5], nn.BatchNorm2d(channels)],
                3: [nn.BatchNorm2d(channels), acts[option % 5]],
                4: [nn.Conv2d(2 * channels, channels, 1), acts[option % 5]],
                5: [nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)],
                6: [conv, nn.InstanceNorm2d(channels, affine=option > 2), acts[option % 5]],
                7: [
                    (nn.MaxPool2d, nn.AvgPool2d)[option % 2](2, ceil_mode=option > 2),
                    nn.Conv2d(channels, channels, 1),
                    nn.Upsample(size=(9, 10), mode=("nearest", "bilinear")[option // 2 % 2]),
                ],
            }
            self.layers.append(nn.Sequential(*behind[kind]))
        self.last = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer, (kind, one, two, _) in zip(self.layers, self.draw, strict=True):
            a, b = found[one % len(found)], found[two % len(found)]
            if kind == 4:
                found.append(layer(torch.cat([a, b], 1)))
            elif kind in (3, 5):
                found.append(layer(a + b))
            else:
                found.append(layer(a))
        return self.last(found[-1] + found[len(found) // 2])


@settings(max_examples=14, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 9), st.integers(0, 4)),
        min_size=2,
        max_size=7,
    ),
    st.sampled_from((1.0, 0.7, 0.4)),
    st.integers(0, 1000),
)
def test_drawn_graphs(draw, density, seed):
    torch.manual_seed(seed)
    check(perturbed(Drawn(draw), seed), noise((1, 3, 9, 10), seed), density, seed, tolerance=1e-7)


def test_results_do_not_depend_on_threads():
    program = """
import sys, hashlib, torch
sys.path[:0] = ["rewrite", "helpers"]
from join_networks import NETWORKS, evaluated, perturbed, rewritten_pair
for threads in (1, 2):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for name in ("unet", "skip bilinear", "transposed"):
        torch.manual_seed(0)
        _, fast = rewritten_pair(perturbed(NETWORKS[name].make()), 1.0, dtype=torch.float32)
        n, c, h, w = NETWORKS[name].shape
        z = torch.randn(n, c, 4 * h, 4 * w, generator=torch.Generator().manual_seed(0))
        for tensor in evaluated(fast, z):
            digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest())
"""
    done = run_python("-c", program, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    one, two = done.stdout.split()
    assert one == two


FAULTS = {
    "a term is forgotten": lambda spec: (
        setattr(spec, "terms", spec.terms[:-3]) if len(spec.inputs) > 1 else None
    ),
    "another channel": lambda spec: (
        setattr(spec, "terms", [*spec.terms[:-1], 0]) if len(spec.inputs) > 1 else None
    ),
    "another input": lambda spec: (
        setattr(spec, "inputs", spec.inputs[::-1]) if len(spec.inputs) > 1 else None
    ),
    "weights of rows": lambda spec: setattr(spec, "row_weights", [w * 1.01 for w in spec.row_weights]),
    "average for maximum": lambda spec: setattr(
        spec, "kind", type(spec.kind).AVERAGE_POOL if spec.kind == type(spec.kind).MAX_POOL else spec.kind
    ),
    "slope of another channel": lambda spec: setattr(spec, "slopes", spec.slopes[::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault, monkeypatch):
    made = oes_fast.rewrite.run.chain_joins.join_spec

    def broken(*arguments):
        spec = made(*arguments)
        FAULTS[fault](spec)
        return spec

    monkeypatch.setattr("oes_fast.rewrite.run.chain_cpu.join_spec", broken)
    torch.manual_seed(0)
    with pytest.raises((AssertionError, ValueError)):
        check(perturbed(Unet("max", "sizes", size=(16, 20))), noise((1, 3, 16, 20)), 1.0)


def test_regions_around_what_the_engine_does_not_take():
    """A stage that runs outside splits the network: both parts are still chains."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Unet(), Unet()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(torch.erf(x)) + x

    torch.manual_seed(0)
    net, z = perturbed(Split()), noise((1, 3, 16, 24))
    fast = check(net, z, 1.0)
    assert chains(fast, z) == (2, [])


def test_explain_counts_chains():
    _, fast = rewritten_pair(perturbed(decoder()), 1.0)
    fast(noise((1, 4, 6, 7)))
    assert "chains: 1, of 3 convolutions" in fast.explain((6, 7), io.StringIO())


def test_deepinv_unet():
    torch.manual_seed(0)
    net = deepinv().models.UNet(in_channels=3, out_channels=3, scales=3, channels_per_scale=[4, 6, 8])
    z = noise((1, 3, 16, 24))
    fast = check(perturbed(net), z, 1.0)
    assert chains(fast, z) == (1, [])
    check(perturbed(net), z, 0.3)


@pytest.mark.parametrize("units", [0, 1])
def test_monai_unet(units):
    torch.manual_seed(0)
    monai()
    from monai.networks.nets import UNet

    net = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        channels=(4, 6, 8),
        strides=(2, 2),
        num_res_units=units,
        dropout=None,
    )
    z = noise((1, 3, 24, 32))
    fast = check(perturbed(net), z, 1.0)
    assert chains(fast, z) == (1, [])
    check(perturbed(net), z, 0.4)


def test_transposed_convolutions_with_all_their_weights_are_pytorchs():
    """Chains of nothing else take longer: they shuffle and crop in passes of their own."""
    net = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1)
    ).double()
    z = noise((1, 4, 6, 5))
    assert chains(check(net, z, 1.0), z)[0] == 0
    assert chains(check(net, z, 0.5), z)[0] == 1
