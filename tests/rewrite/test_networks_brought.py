"""Networks as people bring them, rewritten: loss, image, gradients and running statistics as in the dense."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from brought import NETWORKS
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.copies import copy_network
from oes_fast.flat import flatten, unflatten_
from oes_fast.rewrite import ir

KERNELS = "cpu" if oes.backends()["cpu"] else "torch"
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}
# (images, share of the weights kept)
CASES = [(1, 0.1), (2, None)]


def drawn(make: Callable[[], nn.Module], images: int) -> tuple[nn.Module, Tensor]:
    """The network with weights that no rounding of a constant channel blows up, and an input."""
    torch.manual_seed(0)
    net = make().double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
            module.eps = 1e-2
    side = 32 if "Basic" in type(net).__name__ else 16
    return net, torch.rand(images, 4, side, side, dtype=torch.float64)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("images", "density"), CASES)
def test_same_as_dense(make: Callable[[], nn.Module], images: int, density: float | None) -> None:
    net, z = drawn(make, images)
    keep = torch.rand(flatten(net).numel()) < (1.0 if density is None else density)
    mask = None if density is None else oes.Mask.from_flat(net, keep)
    dense = copy_network(net)
    unflatten_(dense, flatten(net) * keep)
    fast = oes.sparsify(net, mask, verify=False, backend=KERNELS if images == 1 else "torch")
    for training in (True, False):
        wanted, got = dense.train(training)(z), fast.train(training)(z)
        torch.testing.assert_close(got, wanted, **TOLERANCE)
        target = torch.linspace(0, 1, wanted.numel(), dtype=z.dtype).view_as(wanted)
        losses = [(output - target).square().mean() for output in (wanted, got)]
        torch.testing.assert_close(*losses, **TOLERANCE)
        grads = torch.autograd.grad(losses[0], list(dense.parameters()), materialize_grads=True)
        theirs = torch.cat([grad.flatten() for grad in grads])[keep]
        (ours,) = torch.autograd.grad(losses[1], fast.weights)
        scale = float(theirs.abs().max()) + 1e-3
        torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE)
    back = fast.to_dense().eval()
    torch.testing.assert_close(back(z), dense(z), **TOLERANCE)  # by the running statistics


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_nothing_runs_as_it_was(make: Callable[[], nn.Module]) -> None:
    """They run rewritten with backend "auto", and all that they are made of has a stage."""
    net, z = drawn(make, 1)
    noisy = net(z).detach() + 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*runs as it is")
        found = oes.search_mask(net, z, noisy, density=0.5, steps=1)
    assert found.backend != "reference"
    fast = oes.sparsify(net, found.mask, backend="torch", verify=False)
    opaque = [node.stage for node in fast.plan(z).graph.nodes if isinstance(node.stage, ir.Opaque)]
    # Constants of oes's own UNet, computed once; the product in "functional".
    assert {getattr(stage.target, "__name__", stage.target) for stage in opaque} <= {"index_select", "mul"}


def test_layers_with_weights_made_in_forward_are_refused() -> None:
    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.BatchNorm2d(4)(self.conv(x))

    with pytest.raises(oes.TraceError, match="makes a BatchNorm2d with parameters in each call"):
        oes.sparsify(Makes())(torch.rand(1, 4, 8, 8))
