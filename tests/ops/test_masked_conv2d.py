"""Convolution with masked weights against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import INTERPRETED, device_of, examples_of, require

import oes_fast as oes
from oes_fast import reference
from oes_fast.functional import masked_conv2d
from oes_fast.ops import _library

pytestmark = pytest.mark.device

BACKENDS = ["triton"]
# Largest error of a product, relative to it, and of float32 sums of some tens of them.
# The interpreter cuts where a device rounds to bf16, and its tf32 is float32.
ROUNDING = {"float32": 3e-6, "tf32": 2.0**-9, "bf16": 2.0**-6 if INTERPRETED else 1.01 * 2.0**-7}

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
    ("precision", {"precision": "half"}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    arguments = GOOD | changes
    arguments.setdefault("mask", torch.ones(arguments["weight"].shape, dtype=torch.bool))
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        masked_conv2d(**arguments)


def check(backend, shape, outputs, kernel, *, bias=True, density=0.5, precision="float32", **options):
    """Result and gradients against the reference in float64; errors by the sum of the terms' magnitudes."""
    device = device_of(backend)
    x, weight = draw(*shape).float(), draw(outputs, shape[1], *kernel, seed=1).float()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)) < density
    b = draw(outputs, seed=2).float() if bias else None
    ours = [None if t is None else t.to(device).requires_grad_() for t in (x, weight, b)]
    exact = [None if t is None else t.double().requires_grad_() for t in (x, weight, b)]
    sizes = [None if t is None else t.double().abs().requires_grad_() for t in (x, weight, b)]
    named = {"precision": precision, "backend": backend, **options}
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN then
    try:
        y = masked_conv2d(ours[0], ours[1], mask.to(device), ours[2], **named)
        upstream = draw(*y.shape, seed=4).float()
        grads = torch.autograd.grad(y, [t for t in ours if t is not None], upstream.to(device))
    finally:
        torch.use_deterministic_algorithms(False)
    pairs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | {
        key: (value, value) if isinstance(value, int) else value
        for key, value in options.items()
        if key != "padding_mode"
    }
    pairs["padding_mode"] = options.get("padding_mode", "zeros")

    def by_reference(leaves, direction):
        value = reference.masked_conv2d(leaves[0], leaves[1], mask, leaves[2], **pairs)
        return value, *torch.autograd.grad(value, [t for t in leaves if t is not None], direction)

    expected = by_reference(exact, upstream.double())
    magnitude = by_reference(sizes, upstream.double().abs())
    for got, want, size in zip((y, *grads), expected, magnitude, strict=True):
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        assert torch.isfinite(got).all()
        error = (got.detach().cpu().double() - want.detach()).abs()
        assert (error <= ROUNDING[precision] * size.detach() + 1e-30).all()
    assert (grads[1].cpu()[~mask] == 0).all()


CASES = [
    ((1, 3, 9, 13), 4, (3, 3), {"padding": 1}),
    ((2, 17, 6, 7), 18, (3, 3), {"stride": 2, "padding": 1}),
    ((1, 2, 9, 8), 3, (5, 5), {"stride": 2, "bias": False}),
    ((1, 2, 7, 9), 2, (2, 3), {"stride": (1, 2), "dilation": (2, 1), "padding": (1, 2)}),
    ((1, 2, 8, 8), 2, (3, 3), {"stride": 3, "dilation": 2, "padding": 2}),
    ((1, 3, 40, 40), 2, (1, 1), {"density": 1.0}),
    ((1, 3, 6, 6), 2, (3, 3), {"density": 0.0, "padding": 1, "padding_mode": "reflect"}),
    ((1, 3, 6, 6), 2, (3, 3), {"padding": 1, "padding_mode": "circular"}),
    ((1, 5, 8, 8), 3, (3, 3), {"padding": 1, "precision": "tf32"}),
    ((1, 5, 8, 8), 3, (3, 3), {"padding": 1, "precision": "bf16"}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "outputs", "kernel", "options"), CASES, ids=str)
def test_kernels_match_the_reference(backend, shape, outputs, kernel, options):
    require(backend)
    check(backend, shape, outputs, kernel, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_drawn_windows(backend):
    require(backend)

    @settings(max_examples=examples_of(backend, 40), deadline=None)
    @given(
        size=st.tuples(st.integers(6, 11), st.integers(6, 11)),
        kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
        bias=st.booleans(),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def drawn(size, kernel, **options):
        check(backend, (1, 2, *size), 3, kernel, **options)

    drawn()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_strided_inputs_and_masks_of_floats(backend):
    require(backend)
    device = device_of(backend)
    x, weight = draw(2, 3, 6, 12).float().to(device), draw(4, 3, 3, 3, seed=1).float().to(device)
    mask = draw(4, 3, 3, 3, seed=2).to(device) > 0
    expected = masked_conv2d(x[..., ::2], weight, mask)
    for other in (x[..., ::2], x[..., ::2].to(memory_format=torch.channels_last)):
        torch.testing.assert_close(
            masked_conv2d(other, weight.mT.contiguous().mT, mask, backend=backend), expected
        )
    found = masked_conv2d(x[..., ::2], weight, mask.float(), backend=backend)
    torch.testing.assert_close(found, expected)
    halves = masked_conv2d(x[..., ::2], weight, mask.float() / 2, backend=backend)
    torch.testing.assert_close(halves, expected / 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_registration(backend):
    require(backend)
    device = device_of(backend)
    x, weight, bias = (
        t.float().to(device).requires_grad_()
        for t in (draw(1, 2, 5, 4), draw(2, 2, 3, 3, seed=1), draw(2, seed=2))
    )
    mask = torch.arange(36, device=device).view(2, 2, 3, 3) % 3 == 0
    window = [2, 1, 1, 1, 1, 1]
    torch.library.opcheck(_library.kernel("masked_conv2d", backend), (x, weight, mask, bias, window, 0))
    grad = draw(1, 2, 3, 4, seed=3).float().to(device)
    operator = _library.kernel("masked_conv2d_backward", backend)
    torch.library.opcheck(operator, (grad, x.detach(), weight.detach(), mask, window, 0, True, True, True))


def test_what_the_kernels_do_not_do_is_refused():
    x, weight = torch.zeros(1, 4, 6, 6), torch.zeros(6, 2, 3, 3)
    mask = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    with pytest.raises(oes.BackendError):
        masked_conv2d(x, weight, mask, groups=2, backend="triton")
    with pytest.raises(oes.InputError, match='precision: expected float32 without backend "triton"'):
        masked_conv2d(x, weight, mask, groups=2, precision="tf32")
