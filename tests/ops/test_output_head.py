"""The last layer with its loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import KERNELS, device_of, dtypes_of, examples_of, require

import oes_fast as oes
from oes_fast.functional import output_head
from oes_fast.ops import _library

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device, pytest.mark.memcheck]

BACKENDS = list(KERNELS)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13}


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def formula(x, weight, bias, target, sigmoid):
    height, width = target.shape[-2:]
    y = torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0])[:, :, :height, :width]
    y = y if bias is None else y + bias[:, None, None]
    y = 1 / (1 + torch.exp(-y)) if sigmoid else y
    return y, ((y - target) ** 2).sum() / target.numel()


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    images=st.sampled_from([1, 3, 4]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
    sigmoid=st.booleans(),
)
def test_formula_and_gradients(batch, channels, images, size, cut, bias, sigmoid):
    x = draw(batch, channels, *size).requires_grad_()
    weight = draw(images, channels, 1, 1, seed=1).requires_grad_()
    b = draw(images, seed=2).requires_grad_() if bias else None
    target = draw(batch, images, *(max(1, s - c) for s, c in zip(size, cut, strict=True)), seed=3)
    output, loss = output_head(x, weight, b, target, sigmoid=sigmoid)
    expected_output, expected_loss = formula(x, weight, b, target, sigmoid)
    assert output.shape == target.shape
    assert loss.shape == ()
    torch.testing.assert_close((output, loss), (expected_output, expected_loss))

    leaves = [t for t in (x, weight, b) if t is not None]
    upstream = draw(*output.shape, seed=4)
    got = torch.autograd.grad((output, loss), leaves, (upstream, torch.ones_like(loss)))
    want = torch.autograd.grad((expected_output, expected_loss), leaves, (upstream, torch.ones_like(loss)))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_gradcheck(sigmoid):
    leaves = [t.requires_grad_() for t in (draw(1, 3, 3, 4), draw(2, 3, 1, 1, seed=1), draw(2, seed=2))]
    target = draw(1, 2, 3, 3, seed=3)
    assert torch.autograd.gradcheck(lambda *a: output_head(*a, target, sigmoid=sigmoid), leaves)


def test_pixels_outside_of_the_target_get_no_gradient():
    x = draw(1, 2, 4, 5).requires_grad_()
    output_head(x, draw(3, 2, 1, 1), None, draw(1, 3, 3, 4))[1].backward()
    assert (x.grad[..., 3:, :] == 0).all()
    assert (x.grad[..., 4:] == 0).all()
    assert (x.grad[..., :3, :4] != 0).all()


def test_saturated_outputs_stay_finite():
    x = torch.full((1, 1, 2, 2), 1e30).requires_grad_()
    output, loss = output_head(x, torch.ones(1, 1, 1, 1), None, torch.zeros(1, 1, 2, 2))
    loss.backward()
    assert (output == 1).all()
    assert loss == 1
    assert (x.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_of_memory(dtype):
    x, weight, target = (
        draw(2, 3, 4, 5, dtype=dtype),
        draw(3, 3, 1, 1, dtype=dtype),
        draw(2, 3, 4, 5, dtype=dtype),
    )
    expected = output_head(x, weight, None, target)
    assert expected[0].dtype == expected[1].dtype == dtype
    last = {"memory_format": torch.channels_last}
    torch.testing.assert_close(output_head(x.to(**last), weight, None, target.to(**last)), expected)
    wide = torch.stack([x, x], -1)[..., 0]
    torch.testing.assert_close(
        output_head(wide, weight.transpose(0, 1).clone().transpose(0, 1), None, target), expected
    )
    flat = target[:, :, :1, :1].expand(2, 3, 4, 5)
    torch.testing.assert_close(output_head(x, weight, None, flat), output_head(x, weight, None, flat.clone()))


GOOD = {"x": draw(1, 4, 5, 6), "weight": draw(3, 4, 1, 1), "bias": draw(3), "target": draw(1, 3, 5, 6)}
BAD = [
    ("x", {"x": draw(4, 5, 6)}),
    ("x", {"x": [1.0]}),
    ("weight", {"weight": draw(3, 4, 3, 3)}),
    ("weight", {"weight": draw(3, 5, 1, 1)}),
    ("weight", {"weight": draw(3, 4, 1, 1).float()}),
    ("bias", {"bias": draw(4)}),
    ("bias", {"bias": draw(3).to("meta")}),
    ("target", {"target": draw(1, 3, 6, 6)}),
    ("target", {"target": draw(1, 3, 5, 7)}),
    ("target", {"target": draw(1, 1, 5, 6)}),
    ("target", {"target": draw(2, 3, 5, 6)}),
    ("target", {"target": draw(1, 3, 0, 6)}),
    ("target", {"target": draw(1, 3, 5, 6).float()}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        output_head(**(GOOD | changes))


def check(backend, dtype, shape, images, size, *, bias=True, sigmoid=True, of=("output", "loss")):
    """Output, loss and gradients against the formula in float64."""
    device = device_of(backend)
    tensors = [
        draw(*shape),
        draw(images, shape[1], 1, 1, seed=1),
        draw(images, seed=2) if bias else None,
        draw(shape[0], images, *size, seed=3),
    ]
    rounded = [None if t is None else t.to(dtype) for t in tensors]
    upstream = {
        "output": draw(shape[0], images, *size, seed=4).to(dtype),
        "loss": torch.tensor(1.5).to(dtype),
    }
    results = []
    for kind, place in ((dtype, device), (torch.float64, "cpu")):
        leaves = [None if t is None else t.to(kind).to(place).requires_grad_() for t in rounded[:3]]
        target = rounded[3].to(kind).to(place)
        torch.use_deterministic_algorithms(True)  # torch.empty is NaN then
        try:
            if place == "cpu" and kind == torch.float64 and results:
                values = formula(*leaves, target, sigmoid)
            else:
                values = output_head(*leaves, target, sigmoid=sigmoid, backend=backend)
            named = dict(zip(("output", "loss"), values, strict=True))
            grads = torch.autograd.grad(
                [named[name] for name in of],
                [t for t in leaves if t is not None],
                [upstream[name].to(kind).to(place) for name in of],
            )
        finally:
            torch.use_deterministic_algorithms(False)
        results.append([t.detach().cpu() for t in (*values, *grads)])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        assert torch.isfinite(ours).all()
        error = float((ours.double() - expected).abs().max())
        assert error <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))


CASES = [
    ((1, 5, 9, 13), 3, (9, 13), {}),
    ((2, 3, 9, 13), 3, (7, 10), {"of": ("loss",)}),
    ((1, 1, 1, 1), 1, (1, 1), {"of": ("output",)}),
    ((1, 4, 6, 70), 4, (6, 64), {"sigmoid": False, "bias": False}),
    ((1, 2, 70, 70), 16, (70, 70), {}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "images", "size", "options"), CASES, ids=str)
def test_kernels_match_the_formula(backend, shape, images, size, options):
    require(backend)
    for dtype in dtypes_of(backend):
        check(backend, dtype, shape, images, size, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_on_drawn_shapes(backend):
    require(backend)

    @settings(max_examples=examples_of(backend, 30), deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 9), st.integers(1, 70)),
        images=st.sampled_from([1, 3, 4]),
        cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        bias=st.booleans(),
        sigmoid=st.booleans(),
        dtype=st.sampled_from(dtypes_of(backend)),
    )
    def drawn(shape, images, cut, bias, sigmoid, dtype):
        size = tuple(max(1, s - c) for s, c in zip(shape[2:], cut, strict=True))
        check(backend, dtype, shape, images, size, bias=bias, sigmoid=sigmoid)

    drawn()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_give_only_the_gradients_asked_for(backend):
    require(backend)
    device = device_of(backend)
    leaves = [t.float().to(device) for t in (draw(1, 4, 5, 6), draw(3, 4, 1, 1, seed=1), draw(3, seed=2))]
    target = draw(1, 3, 5, 6, seed=3).float().to(device)
    all_of_them = [t.clone().requires_grad_() for t in leaves]
    output_head(*all_of_them, target, backend=backend)[1].backward()
    for index in range(3):
        some = [t.clone().requires_grad_(i == index) for i, t in enumerate(leaves)]
        output_head(*some, target, backend=backend)[1].backward()
        torch.testing.assert_close(some[index].grad, all_of_them[index].grad)
    saturated = torch.full_like(leaves[0], 1e30).requires_grad_()
    output, loss = output_head(saturated, torch.ones_like(leaves[1]), None, target, backend=backend)
    loss.backward()
    assert (output == 1).all()
    assert (saturated.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_registration(backend):
    require(backend)
    device = device_of(backend)
    x, weight, bias = (
        t.float().to(device).requires_grad_() for t in (draw(1, 4, 5, 6), draw(3, 4, seed=1), draw(3, seed=2))
    )
    target = draw(1, 3, 4, 6, seed=3).float().to(device)
    torch.library.opcheck(_library.kernel("output_head", backend), (x, weight, bias, target, True))
    grads = (torch.ones_like(target), torch.ones((), device=device))
    values = (x.detach(), weight.detach(), target.sigmoid(), target)
    operator = _library.kernel("output_head_backward", backend)
    torch.library.opcheck(operator, (*grads, *values, True, True, True, True))


def test_more_outputs_than_a_triton_program_holds():
    x, weight, target = torch.zeros(1, 2, 3, 3), torch.zeros(17, 2, 1, 1), torch.zeros(1, 17, 3, 3)
    assert output_head(x, weight, None, target)[0].shape == target.shape
    with pytest.raises(oes.BackendError):
        output_head(x, weight, None, target, backend="triton")
