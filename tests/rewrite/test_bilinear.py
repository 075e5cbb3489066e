"""Bilinear up-sampling by 2 with its own adjoint: as torch's, in every derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from oes_fast.rewrite.run.bilinear import upsample_bilinear_2x

SIZES = [(1, 1), (1, 5), (2, 1), (3, 4), (8, 6)]


def by_torch(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def drawn(size, dtype=torch.float64):
    return torch.randn(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_result_and_gradient_are_those_of_torch(size, dtype):
    x = drawn(size, dtype)
    grad = torch.randn_like(by_torch(x))
    found = []
    for up in (upsample_bilinear_2x, by_torch):
        leaf = x.clone().requires_grad_()
        result = up(leaf)
        result.backward(grad)
        found.append((result.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(
        found[0][1], found[1][1], rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_derivatives_of_every_kind(size):
    x = drawn(size).requires_grad_()
    assert torch.autograd.gradcheck(upsample_bilinear_2x, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample_bilinear_2x(x).square(), x)


def test_gradients_in_other_layouts():
    x = drawn((4, 6)).to(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn(2, 3, 8, 12, dtype=torch.float64).to(memory_format=torch.channels_last)
    upsample_bilinear_2x(x).backward(grad)
    leaf = x.detach().clone().requires_grad_()
    by_torch(leaf).backward(grad)
    torch.testing.assert_close(x.grad, leaf.grad)


def test_gradient_of_what_lies_channels_last_reaches_a_batch_norm():
    x = torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    other = torch.rand(1, 3, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    grads = []
    for up in (upsample_bilinear_2x, lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")):
        y = up(F.batch_norm(x, None, None, training=True) + other)
        grads.append(torch.autograd.grad((y * y.exp()).to(memory_format=torch.channels_last).sum(), x)[0])
        y = up(F.batch_norm(x, None, None, training=True))
        direction = torch.arange(240.0).view(1, 10, 8, 3).permute(0, 3, 1, 2).double()
        grads.append(torch.autograd.grad(y, x, direction)[0])
    torch.testing.assert_close(grads[:2], grads[2:])
