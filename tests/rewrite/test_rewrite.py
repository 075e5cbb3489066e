"""The rewritten generator against the dense one with masked weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from networks import masks, networks
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.rewrite import SparseGenerator, sparsify

BACKENDS = [name for name in ("torch", "cpu") if oes.backends()[name]]
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def masked(net: nn.Module, mask: Mask | None) -> nn.Module:
    net = copy.deepcopy(net)
    if mask is not None:
        unflatten_(net, flatten(net) * mask.flat)
    return net


def gradient(net: nn.Module, mask: Mask | None) -> Tensor:
    flat = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in net.parameters()]
    )
    net.zero_grad()
    return flat if mask is None else flat[mask.flat]


def suits(net: nn.Module, mask: Mask | None, z: Tensor) -> bool:
    """Whether the layers take an image of this size and give finite numbers."""
    try:
        return bool(torch.isfinite(masked(net, mask).train()(z)).all())
    except (RuntimeError, ValueError):
        return False


def compare(net: nn.Module, mask: Mask | None, z: Tensor, backend: str = "torch") -> SparseGenerator:
    """Two training steps and an evaluation against the dense net: outputs, gradients, running statistics."""
    dense, fast = masked(net, mask).train(), sparsify(net.train(), mask, backend=backend, verify=False)
    for training in (True, True, False):
        dense.train(training), fast.train(training)
        wanted, got = dense(z), fast(z)
        direction = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(got, wanted, **TOLERANCE)
        if wanted.requires_grad:
            (wanted * direction).sum().backward()
            (grad,) = torch.autograd.grad((got * direction).sum(), fast.weights, allow_unused=True)
            grad = torch.zeros_like(fast.weights) if grad is None else grad
            scale = 1 + float(grad.norm())
            torch.testing.assert_close(grad / scale, gradient(dense, mask) / scale, **TOLERANCE)
    back = fast.to_dense()
    torch.testing.assert_close(flatten(back), flatten(dense), rtol=0, atol=0)
    torch.testing.assert_close(back.eval()(z), dense.eval()(z), **TOLERANCE)
    return fast


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_masked_networks(data: st.DataObject) -> None:
    net, z = data.draw(networks())
    mask = Mask.from_flat(net, data.draw(masks(net)))
    assume(suits(net, mask, z))
    compare(net, mask, z, data.draw(st.sampled_from(BACKENDS)))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_dense_networks(network: tuple[nn.Module, Tensor]) -> None:
    net, z = network
    assume(suits(net, None, z))
    compare(net, None, z)


def test_cumulative_average_of_statistics() -> None:
    """momentum=None averages all batches; not drawn above: it puts constants on the kink of LeakyReLU."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=None)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm, nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.BatchNorm2d(4)
    )
    net = net.double()
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(FlatLayout.of(net).numel, generator=generator) < 0.7
    compare(net, Mask.from_flat(net, mask), torch.rand(1, 3, 9, 8, dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["pepper", "barbara"])
def test_published_network(published: dict[str, Tensor], name: str, backend: str) -> None:
    """The published network under a published mask, at the smallest size it has inside."""
    net = oes.models.skip(seed=0).double()
    z = oes.noise_input(32, (192, 192), dtype=torch.float64)
    fast = compare(net, Mask.from_flat(net, published[name]), z, backend)
    table = fast.explain((192, 192))
    assert "conv 3x3 of up-sampled x2" in table
    assert ("C++ chain" in table) == (backend == "cpu")


def test_deep_network_dense() -> None:
    """As deep as the published network, without a mask, at a size that is no multiple of 64."""
    net = oes.models.skip(num_channels_down=[16] * 6, seed=1).double()
    compare(net, None, oes.noise_input(32, (67, 60), dtype=torch.float64))


def test_network_is_left_alone() -> None:
    net = oes.models.skip(3, 2, num_channels_down=[4, 4], seed=0)
    before = copy.deepcopy(net.state_dict())
    fast = sparsify(net)
    fast(torch.rand(1, 3, 16, 16)).sum().backward()
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert all(p.grad is None for p in net.parameters())
    assert set(net.__dict__) == set(oes.models.skip(3, 2, num_channels_down=[4, 4]).__dict__)


def test_fixed_input_is_prepared_once() -> None:
    net = oes.models.skip(3, 2, num_channels_down=[4, 4], seed=0).double()
    fast = sparsify(net)
    z = oes.noise_input(3, (16, 16), dtype=torch.float64)
    first = fast(z)
    prepared = fast._prepared
    torch.testing.assert_close(fast(z), first, rtol=0, atol=0)
    assert fast._prepared is prepared
    z.mul_(2)  # the same tensor, changed in place: it has to be prepared again
    torch.testing.assert_close(fast(z), net(z), **TOLERANCE)
    other = z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(net(other).square().sum(), other)
    (got,) = torch.autograd.grad(fast(other).square().sum(), other)
    torch.testing.assert_close(got, wanted, **TOLERANCE)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else x


class InPlace(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :1] += 1
        return y


@pytest.mark.parametrize("net", [Branching(), InPlace()])
def test_what_cannot_be_traced_is_refused(net: nn.Module) -> None:
    with pytest.raises(oes.TraceError, match=r"cannot be traced|in place"):
        sparsify(net)(torch.rand(1, 3, 4, 4))
    noisy = torch.rand(1, 3, 4, 4)
    with pytest.warns(UserWarning, match="as it is"):
        found = oes.search_mask(net, torch.rand(1, 3, 4, 4), noisy, density=0.5, steps=2)
    assert found.backend == "reference"


def test_bad_input() -> None:
    net = oes.models.skip(3, 2, num_channels_down=[4], seed=0)
    fast = sparsify(net)
    with pytest.raises(oes.InputError, match="z: expected 4 dimensions"):
        fast(torch.rand(3, 8, 8))
    with pytest.raises(oes.InputError, match=r"z: expected torch\.float32"):
        fast(torch.rand(1, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(oes.InputError, match="backend: expected one of"):
        sparsify(net, backend="fpga")
    with pytest.raises(oes.MaskMismatchError):
        sparsify(net, Mask.from_flat(Branching(), [True] * 12))
