"""Transposed convolutions, pixel shuffle, group and instance norm, PReLU: the same as dense."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.flat import FlatLayout, flatten, unflatten_
from oes_fast.rewrite.weights import CompactWeights, phases


def hold(net: nn.Module, z: Tensor, density: float = 0.5) -> None:
    """Loss, image, gradients and running statistics of the rewritten network are those of the dense one."""
    net = net.double()
    net.zero_grad()
    total = sum(p.numel() for p in net.parameters())
    keep = torch.rand(total, generator=torch.Generator().manual_seed(3)) < density
    mask = None if density == 1 else oes.Mask.from_flat(net, keep)
    fast = oes.sparsify(net, mask, backend="torch")
    if mask is not None:
        unflatten_(net, flatten(net) * keep)
    ours, theirs = fast(z), net(z)
    torch.testing.assert_close(ours, theirs)
    theirs.square().sum().backward()
    ours.square().sum().backward()
    dense = torch.cat([p.grad.flatten() for p in net.parameters()])
    torch.testing.assert_close(fast.weights.grad, dense if mask is None else dense[keep])
    mode = net.training
    torch.testing.assert_close(fast.eval()(z), net.eval()(z))  # by the running statistics
    net.train(mode)


TRANSPOSED = [
    {"kernel_size": k, "stride": s, "padding": p, "output_padding": o}
    for k, s, p, o in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1))
    if o < s and 2 * p < 4 + k
]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 2), (5, 3)])
def test_phases(kernel: tuple[int, int], stride: int) -> None:
    """Convolved with the phases and shuffled, an image is what the transposed convolution makes of it."""
    torch.manual_seed(0)
    weight, x = torch.rand(3, 2, *kernel).double(), torch.rand(2, 3, 5, 4).double()
    rows, columns = (-(-k // stride) - 1 for k in kernel)
    ours = F.conv2d(F.pad(x, (columns, columns, rows, rows)), phases(weight, stride))
    ours, theirs = F.pixel_shuffle(ours, stride), F.conv_transpose2d(x, weight, stride=stride)
    torch.testing.assert_close(ours[..., : theirs.shape[2], : theirs.shape[3]], theirs)
    absent = phases(torch.ones(3, 2, *kernel), stride, absent=-1.0)
    assert int((absent > 0).sum()) == weight.numel()


def test_blocks_of_phases() -> None:
    """Values, indices and gradients of a transposed convolution's weight, seen as a convolution's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(3, 2, 3, 2)).double()
    layout, flat = FlatLayout.of(net), flatten(net).detach()
    outputs, inputs = torch.tensor([0, 3, 5, 6]), torch.tensor([0, 2])
    for mask in (None, torch.rand(layout.numel) < 0.6):
        weights = CompactWeights(layout, mask)
        block = weights.request("1.weight", outputs, inputs, transposed=2)
        index = weights.index("1.weight", outputs, inputs, transposed=2)
        weights.finish(torch.device("cpu"))
        dense = (flat if mask is None else flat * mask).requires_grad_()
        wanted = phases(layout.views(dense)["1.weight"], 2)[outputs][:, inputs]
        kept = (flat if mask is None else flat[mask]).clone().requires_grad_()
        got = weights.blocks(kept)[block]
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(torch.where(index < 0, 0.0, kept[index]), wanted)
        assert weights.nonzeros("1.weight", outputs, inputs, transposed=2) == int((wanted != 0).sum())
        (grad,) = torch.autograd.grad(got.square().sum(), kept)
        (theirs,) = torch.autograd.grad(wanted.square().sum(), dense)
        torch.testing.assert_close(grad, theirs if mask is None else theirs[mask])


@pytest.mark.parametrize("options", TRANSPOSED[::4], ids=str)
def test_transposed_convolutions(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    z = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    for density in (1, 0.2):
        body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 3, **options))
        hold(nn.Sequential(body, nn.BatchNorm2d(3), nn.PReLU(3), nn.Conv2d(3, 2, 1)), z, density)


def test_unusual_transposed_convolutions() -> None:
    torch.manual_seed(0)
    z = torch.rand(1, 4, 6, 5, dtype=torch.float64)
    for options in ({"groups": 2}, {"dilation": 2}, {"stride": (2, 1)}, {"bias": False, "stride": 2}):
        hold(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, **options), nn.ReLU(), nn.Conv2d(4, 2, 1)), z)
    layer = nn.ConvTranspose2d(4, 3, (3, 2), 2, (2, 0), (1, 0))
    hold(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(), layer), z, 0.2)


NETWORKS = {
    "group norm": lambda: [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 3)],
    "one group": lambda: [nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8, affine=False), nn.Sigmoid()],
    "groups of one": lambda: [nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.PReLU(), nn.BatchNorm2d(8)],
    "sigmoid behind": lambda: [nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Sigmoid(), nn.BatchNorm2d(8)],
    "instance norm": lambda: [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 2, 3)],
    "instance norm, affine": lambda: [nn.InstanceNorm2d(3, affine=True), nn.PReLU(3), nn.Conv2d(3, 2, 3)],
    "instance norm, tracked": lambda: [
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.Conv2d(4, 2, 1)
    ],
    "pixel shuffle": lambda: [nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(2, 2, 1)],
    "shuffled constants": lambda: [
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PixelShuffle(2), nn.InstanceNorm2d(2, affine=True)
    ],
}  # fmt: skip


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_norms_and_shuffles(make: Callable[[], list[nn.Module]]) -> None:
    # Every pair of two of these.
    for images, training, density in (
        (1, True, 1), (2, False, 1), (2, True, 0.4), (1, False, 0.4), (1, True, 0.1), (2, False, 0.1),
    ):  # fmt: skip
        torch.manual_seed(images)
        z = torch.rand(images, 3, 6, 5, dtype=torch.float64)
        hold(nn.Sequential(*make(), nn.Conv2d(make_channels(make), 2, 1)).train(training), z, density)


def make_channels(make: Callable[[], list[nn.Module]]) -> int:
    return int(nn.Sequential(*make())(torch.rand(2, 3, 8, 8)).shape[1])
