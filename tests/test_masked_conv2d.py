"""Convolution with masked weights against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import oes_fast as oes
from oes_fast.functional import masked_conv2d

MODES = ["zeros", "reflect", "replicate", "circular"]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_hand(x, weight, bias, stride, padding, dilation, groups, mode):
    """The definition, one multiplication at a time over the taps."""
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    x = F.pad(x, (pw, pw, ph, ph), mode="constant" if mode == "zeros" else mode)
    kh, kw = weight.shape[-2:]
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    x = x.unflatten(1, (groups, -1))  # [N, G, C / G, H, W]
    weight = weight.unflatten(0, (groups, -1))  # [G, O / G, C / G, kH, kW]
    y = 0
    for i in range(kh):
        for j in range(kw):
            taps = x[..., i * dh :: sh, j * dw :: sw][..., :rows, :columns]
            y = y + torch.einsum("ngchw,goc->ngohw", taps, weight[..., i, j])
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(6, 11), st.integers(6, 11)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.integers(1, 3),
    mode=st.sampled_from(MODES),
    bias=st.booleans(),
    batch=st.integers(1, 2),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_is_the_convolution_with_the_masked_weight(
    size, kernel, stride, padding, dilation, groups, mode, bias, batch, density
):
    x = draw(batch, 2 * groups, *size).requires_grad_()
    weight = draw(3 * groups, 2, *kernel, seed=1).requires_grad_()
    b = draw(3 * groups, seed=2).requires_grad_() if bias else None
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < density
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = masked_conv2d(x, weight, mask, b, padding_mode=mode, **options)
    expected = by_hand(x, torch.where(mask, weight, 0), b, **options, mode=mode)
    torch.testing.assert_close(y, expected)

    leaves = [x, weight] + ([b] if bias else [])
    upstream = draw(*y.shape, seed=4)
    for got, want in zip(
        torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode):
    x, weight, bias = draw(1, 2, 5, 4), draw(2, 2, 3, 3, seed=1), draw(2, seed=2)
    mask = torch.arange(36).view(2, 2, 3, 3) % 3 == 0

    def function(x, weight, bias):
        return masked_conv2d(x, weight, mask, bias, stride=(2, 1), padding=1, padding_mode=mode)

    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_dropped_weights_have_no_gradient_and_kept_ones_do():
    x, weight = draw(1, 3, 6, 6), draw(4, 3, 3, 3, seed=1).requires_grad_()
    mask = draw(4, 3, 3, 3, seed=2) > 0
    masked_conv2d(x, weight, mask).square().sum().backward()
    assert (weight.grad[~mask] == 0).all()
    assert (weight.grad[mask] != 0).all()


def test_masks_of_floats():
    x, weight = draw(1, 3, 6, 6), draw(4, 3, 3, 3, seed=1)
    mask = draw(4, 3, 3, 3, seed=2) > 0
    assert torch.equal(masked_conv2d(x, weight, mask.double()), masked_conv2d(x, weight, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_of_memory(dtype):
    x, weight = draw(2, 3, 6, 6, dtype=dtype), draw(4, 3, 3, 3, dtype=dtype, seed=1)
    mask = draw(4, 3, 3, 3, seed=2) > 0
    expected = masked_conv2d(x, weight, mask)
    assert expected.dtype == dtype
    wide = torch.stack([x, x], -1)[..., 0]
    for other in (x.to(memory_format=torch.channels_last), wide, x.mT.contiguous().mT):
        torch.testing.assert_close(masked_conv2d(other, weight.mT.contiguous().mT, mask), expected)
    one = x[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(masked_conv2d(one, weight, mask)[1], expected[0])
    everywhere = mask[:1].expand(4, -1, -1, -1)
    torch.testing.assert_close(
        masked_conv2d(x, weight, everywhere), masked_conv2d(x, weight, everywhere.clone())
    )


def test_expanded_gradients():
    x, weight = draw(1, 2, 5, 5).requires_grad_(), draw(3, 2, 3, 3, seed=1)
    y = masked_conv2d(x, weight, torch.ones_like(weight, dtype=torch.bool))
    (expanded,) = torch.autograd.grad(y, x, torch.ones(()).double().expand_as(y), retain_graph=True)
    (dense,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(expanded, dense)


GOOD = {"x": draw(1, 4, 6, 6), "weight": draw(6, 2, 3, 3), "bias": draw(6), "groups": 2}
BAD = [
    ("x", {"x": draw(4, 6, 6)}),
    ("x", {"x": draw(1, 3, 6, 6)}),
    ("x", {"x": draw(1, 4, 6, 6).long()}),
    ("x", {"x": GOOD["x"].numpy()}),
    ("x", {"x": draw(1, 4, 2, 6)}),  # smaller than the kernel
    ("weight", {"weight": draw(6, 2, 3)}),
    ("weight", {"weight": draw(6, 2, 3, 3).float()}),
    ("weight", {"weight": draw(6, 2, 3, 3).to("meta")}),
    ("mask", {"mask": torch.ones(6, 2, 3, 1, dtype=torch.bool)}),
    ("mask", {"mask": torch.ones(6, 2, 3, 3)}),
    ("mask", {"mask": torch.ones(6, 2, 3, 3, dtype=torch.bool, device="meta")}),
    ("bias", {"bias": draw(5)}),
    ("bias", {"bias": draw(6).float()}),
    ("groups", {"groups": 0}),
    ("groups", {"groups": 4, "weight": draw(6, 1, 3, 3)}),  # 6 outputs in 4 groups
    ("stride", {"stride": 0}),
    ("stride", {"stride": (1, 2, 3)}),
    ("stride", {"stride": None}),
    ("padding", {"padding": -1}),
    ("padding", {"padding": "same"}),
    ("padding", {"padding": 6, "padding_mode": "reflect"}),
    ("padding", {"padding": (0, 7), "padding_mode": "circular"}),
    ("dilation", {"dilation": 1.5}),
    ("padding_mode", {"padding_mode": "mirror"}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    arguments = GOOD | changes
    arguments.setdefault("mask", torch.ones(arguments["weight"].shape, dtype=torch.bool))
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        masked_conv2d(**arguments)
