"""sparse_up_conv2d: every backend against the reference in float64, gradients, borders, tracing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import KERNELS, device_of, dtypes_of, examples_of, require

from oes_fast import BackendError, InputError, reference
from oes_fast.functional import SparsePattern, sparse_up_conv2d
from oes_fast.ops import _library

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device, pytest.mark.memcheck]

BACKENDS = list(KERNELS)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
# (N, C, O, h, w, density): a pixel, a row, a column, odd sizes, sizes about a tile, empty and full masks.
CASES = (
    (1, 3, 4, 20, 70, 0.4),
    (2, 3, 2, 7, 5, 0.4),
    (1, 2, 3, 1, 1, 1.0),
    (1, 2, 3, 1, 9, 1.0),
    (1, 2, 3, 9, 1, 1.0),
    (2, 2, 3, 2, 2, 1.0),
    (1, 3, 5, 6, 6, 0.0),
    (0, 2, 3, 4, 4, 0.5),
    (1, 1, 17, 5, 5, 0.1),
    (1, 1, 1, 33, 65, 1.0),
)


def check(case, backend, dtype, seed=0):
    """Output and both gradients against the reference in float64; nothing is left unwritten."""
    n, c, o, rows, columns, density = case
    device = device_of(backend)
    generator = torch.Generator().manual_seed(seed)
    pattern = SparsePattern.of(torch.rand(o, c, 3, 3, generator=generator) < density)
    x = torch.randn(n, c, rows, columns, generator=generator, dtype=dtype).to(device).requires_grad_()
    values = torch.randn(pattern.nnz, generator=generator, dtype=dtype).to(device).requires_grad_()
    exact = [t.detach().cpu().double().requires_grad_() for t in (x, values)]
    wanted = reference.sparse_up_conv2d(*exact, pattern.mask)
    direction = torch.randn(wanted.shape, generator=generator, dtype=torch.float64).to(dtype)
    wanted_grads = torch.autograd.grad(wanted, exact, direction.double())
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN then
    try:
        got = sparse_up_conv2d(x, values, pattern, backend=backend)
        grads = torch.autograd.grad(got, (x, values), direction.to(device))
        (alone,) = torch.autograd.grad(
            sparse_up_conv2d(x.detach(), values, pattern, backend=backend), values, direction.to(device)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(alone, grads[1])
    # A weight's gradient may cancel to little: its terms are about one in size.
    terms = (0.0, 0.0, (4 * n * rows * columns) ** 0.5)
    for ours, expected, size in zip((got, *grads), (wanted, *wanted_grads), terms, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        assert torch.isfinite(ours).all()
        if expected.numel():
            scale = max(size, float(expected.detach().abs().max()))
            error = float((ours.detach().cpu().double() - expected.detach()).abs().max())
            assert error <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference(case, backend):
    require(backend)
    for dtype in dtypes_of(backend):
        check(case, backend, dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"triton-{case}")
def test_products_match_the_reference(case, monkeypatch):
    """Small images as well by the matrix products that large ones take."""
    require("triton")
    monkeypatch.setattr("oes_fast.kernels.sparse_up_conv2d.PRODUCT_PIXELS", 0)
    check(case, "triton", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_drawn_shapes_and_masks(backend):
    require(backend)

    @settings(max_examples=examples_of(backend, 20), deadline=None)
    @given(st.data())
    def drawn(data):
        draw_and_check(data, backend)

    drawn()


def draw_and_check(data, backend):
    case = (
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(1, 20)),
        data.draw(st.integers(1, 70)),
        data.draw(st.sampled_from((0.0, 0.05, 0.4, 1.0))),
    )
    check(case, backend, data.draw(st.sampled_from(dtypes_of(backend))), data.draw(st.integers(0, 1000)))


def test_the_reference_is_three_layers_of_torch():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    x, values = torch.randn(2, 3, 5, 6).double(), torch.randn(int(mask.sum())).double()
    weight = torch.zeros(mask.shape).double()
    weight[mask] = values
    layers = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.ReflectionPad2d(1))
    torch.testing.assert_close(reference.sparse_up_conv2d(x, values, mask), F.conv2d(layers(x), weight))


def test_the_identity_the_kernels_use():
    """Mix the channels at the low resolution, then add nine shifted images: the same function."""
    x, weight = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 3, 3).double()
    rows, columns = torch.arange(8), torch.arange(10)
    total = torch.zeros(2, 2, 8, 10).double()
    for u in range(3):
        for v in range(3):
            mixed = torch.einsum("oc,nchw->nohw", weight[:, :, u, v], x)
            at_rows = ((rows + u - 1).div(2, rounding_mode="floor")).clamp(0, 3)
            at_columns = ((columns + v - 1).div(2, rounding_mode="floor")).clamp(0, 4)
            total += mixed[:, :, at_rows][..., at_columns]
    full = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    torch.testing.assert_close(reference.sparse_up_conv2d(x, weight.flatten(), full), total)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_and_expanded_inputs(backend):
    require(backend)
    device, dtype = device_of(backend), dtypes_of(backend)[-1]
    pattern = SparsePattern.of(torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5)
    wide = torch.randn(2, 3, 10, 24, dtype=dtype).to(device)
    weights = torch.randn(2 * pattern.nnz, dtype=dtype).to(device)
    for x in (
        wide[..., ::2],
        wide[:1, :, :, 3:17].expand(2, -1, -1, -1),
        wide.to(memory_format=torch.channels_last),
        wide.transpose(2, 3),
    ):
        x = x.detach().requires_grad_()
        values = weights[::2].detach().requires_grad_()
        results = []
        for each in (backend, "reference"):
            y = sparse_up_conv2d(x, values, pattern, backend=each)
            grad = torch.ones((), dtype=y.dtype, device=device).expand(y.shape)
            results.append((y, *torch.autograd.grad(y, (x, values), grad)))
        for ours, expected in zip(*results, strict=True):
            error = float((ours - expected).detach().abs().max())
            assert error <= 1e-5 * float(expected.detach().abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_without_weights(backend):
    require(backend)
    device = device_of(backend)
    mask = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    mask[1, 0, 1, 1] = mask[1, 0, 2, 2] = True
    x = torch.randn(1, 2, 6, 7).to(device).requires_grad_()
    values = torch.tensor([2.0, 3.0]).to(device)
    y = sparse_up_conv2d(x, values, SparsePattern.of(mask), backend=backend)
    assert not y[:, [0, 2, 3]].any()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert not grad[:, 1].any()
    assert grad[:, 0].all()


@pytest.mark.parametrize("backend", ["reference", *(b for b in BACKENDS if b == "cpu")])
def test_gradcheck(backend):
    require(backend)
    pattern = SparsePattern.of(torch.rand(2, 2, 3, 3) < 0.5)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    values = torch.randn(pattern.nnz, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, v: sparse_up_conv2d(x, v, pattern, backend=backend), (x, values)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_registration(backend):
    require(backend)
    device = device_of(backend)
    pattern = SparsePattern.of(torch.rand(2, 2, 3, 3) < 0.5)
    x = torch.randn(1, 2, 4, 5).to(device).requires_grad_()
    values = torch.randn(pattern.nnz).to(device).requires_grad_()
    index = pattern.index(x.device)
    torch.library.opcheck(_library.kernel("sparse_up_conv2d", backend), (x, values, *index, 2))
    grad = torch.randn(1, 2, 8, 10).to(device)
    torch.library.opcheck(
        _library.kernel("sparse_up_conv2d_backward", backend),
        (grad, x.detach(), values.detach(), *index, True, True),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_is_refused(backend):
    require(backend)
    pattern = SparsePattern.of(torch.ones(1, 1, 3, 3, dtype=torch.bool))
    x = torch.randn(1, 1, 3, 3).to(device_of(backend)).requires_grad_()
    y = sparse_up_conv2d(x, torch.ones(9).to(x.device).requires_grad_(), pattern, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f'sparse_up_conv2d: backend "{backend}"'):
        grad.sum().backward()


def test_bad_arguments_are_refused():
    pattern = SparsePattern.of(torch.ones(2, 3, 3, 3, dtype=torch.bool))
    x, values = torch.randn(1, 3, 8, 8), torch.randn(pattern.nnz)
    with pytest.raises(InputError, match="pattern: expected a SparsePattern"):
        sparse_up_conv2d(x, values, pattern.mask)
    with pytest.raises(InputError, match="pattern: expected a kernel of 3 x 3, got 3 x 5"):
        sparse_up_conv2d(x, values, SparsePattern.of(torch.ones(2, 3, 3, 5, dtype=torch.bool)))
    with pytest.raises(InputError, match="values: expected shape"):
        sparse_up_conv2d(x, values[:-1], pattern)
    with pytest.raises(InputError, match=r"values: expected torch\.float32"):
        sparse_up_conv2d(x, values.double(), pattern)
    with pytest.raises(InputError, match="x: expected shape"):
        sparse_up_conv2d(x[:, :2], values, pattern)
    with pytest.raises(InputError, match="x: expected shape"):
        sparse_up_conv2d(x[0], values, pattern)
    with pytest.raises(InputError, match="x: expected dtype"):
        sparse_up_conv2d(x.half(), values, pattern)
    with pytest.raises(InputError, match="x: expected a pixel at least"):
        sparse_up_conv2d(x[..., :0], values, pattern)
    with pytest.raises(BackendError):
        sparse_up_conv2d(x, values, pattern, backend="cuda")
