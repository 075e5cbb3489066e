"""A rewritten network under torch.compile, and under the transformations of torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import oes_fast as oes
from oes_fast.copies import copy_network
from oes_fast.rewrite import SparseGenerator

Z = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(backend: str = "auto", density: float = 0.5) -> SparseGenerator:
    net = oes.models.skip(3, 2, num_channels_down=[4], seed=0).double()
    keep = torch.rand(sum(p.numel() for p in net.parameters()), generator=torch.Generator().manual_seed(1))
    return oes.sparsify(net, oes.Mask.from_flat(net, keep < density), backend=backend)


def test_compiled_from_the_first_call_on() -> None:
    plain = made()
    compiled = copy_network(plain)
    run = torch.compile(compiled, backend="eager")
    for training in (True, True, False):
        wanted, got = plain.train(training)(Z), (compiled.train(training), run(Z))[1]
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        for output in (wanted, got):
            output.square().sum().backward()
        torch.testing.assert_close(compiled.weights.grad, plain.weights.grad, rtol=0, atol=0)
    torch.testing.assert_close(dict(compiled.dense_buffers()), dict(plain.dense_buffers()), rtol=0, atol=0)


def test_called_in_a_compiled_step() -> None:
    fast = made()

    @torch.compile(backend="eager")
    def loss(z: Tensor) -> Tensor:
        return (2 * fast(z + 0.5) - 1).square().mean()

    torch.testing.assert_close(loss(Z), (2 * made()(Z + 0.5) - 1).square().mean())


def image_of(fast: SparseGenerator) -> Callable[[Tensor], Tensor]:
    buffers = dict(fast.dense_buffers())
    return lambda weights: fast.evaluate(weights, Z, buffers, update_stats=False)


REFUSED: dict[str, tuple[Callable[[SparseGenerator, Tensor], Any], str]] = {
    "jvp": (lambda fast, w: torch.func.jvp(image_of(fast), (w,), (w,)), "weights: expected no tangent"),
    "jvp of the input": (lambda fast, w: torch.func.jvp(fast, (Z,), (Z,)), "z: expected no tangent"),
    "jacfwd": (lambda fast, w: torch.func.jacfwd(image_of(fast))(w), "weights: expected"),
    "vmap": (lambda fast, w: torch.vmap(image_of(fast))(w[None]), "weights: expected a tensor outside"),
    "vmap of the input": (lambda fast, w: torch.vmap(fast)(Z[None]), "z: expected a tensor outside"),
    "vmap of a gradient": (
        lambda fast, w: torch.vmap(torch.func.grad(lambda w: image_of(fast)(w).sum()))(w[None]),
        "weights: expected a tensor outside",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(("call", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line(
    call: Callable[[SparseGenerator, Tensor], Any], reason: str, backend: str
) -> None:
    fast = made(backend)
    with pytest.raises(oes.InputError, match=reason) as error:
        call(fast, fast.weights.detach())
    assert "\n" not in str(error.value)
    fast(Z)  # as ever


def test_a_dual_tensor_is_refused() -> None:
    with forward_ad.dual_level(), pytest.raises(oes.InputError, match="z: expected no tangent"):
        made()(forward_ad.make_dual(Z, Z))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_jacobian_by_reverse_mode(backend: str) -> None:
    fast = made(backend)
    weights = fast.weights.detach()
    (row,) = torch.autograd.grad(fast(Z)[0, 0, 0, 0], fast.weights)
    torch.testing.assert_close(torch.func.jacrev(image_of(fast))(weights)[0, 0, 0, 0], row)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("called_before", [False, True])
def test_the_gradient_of_the_input(backend: str, called_before: bool) -> None:
    fast = made(backend, density=0.95).eval()
    z = Z.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(fast.to_dense().eval()(z).square().sum(), z)
    assert wanted.abs().max() > 0
    if called_before:
        fast(Z)
    torch.testing.assert_close(torch.func.grad(lambda z: fast(z).square().sum())(Z), wanted)
    (row,) = torch.autograd.grad(fast(z)[0, 0, 0, 0], z)
    torch.testing.assert_close(torch.func.jacrev(lambda z: fast(z)[0, 0, 0])(Z)[0], row)
