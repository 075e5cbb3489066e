"""sparse_conv2d: the kernels against the reference in float64, on every instruction set this machine runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import KERNELS, device_of, dtypes_of, examples_of, require

from oes_fast import BackendError, InputError, reference
from oes_fast.functional import PhaseSplit, SparsePattern, phase_split, sparse_conv2d
from oes_fast.ops import _library

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-14}
# (N, C, O, kH, kW, H, W, stride, density): around tiles of 3 and 6 rows and of 16 to 64 columns, narrow
# images, images of less than a vector, strips of more than 4096 pixels, full and empty masks.
CASES = (
    (1, 3, 4, 5, 5, 40, 140, 1, 0.2),
    (2, 3, 4, 5, 5, 41, 139, 2, 0.2),
    (1, 2, 3, 3, 3, 8, 66, 1, 0.3),
    (1, 2, 3, 3, 3, 7, 67, 1, 0.3),
    (1, 2, 3, 3, 3, 9, 65, 1, 0.3),
    (1, 2, 3, 3, 3, 5, 300, 1, 0.3),
    (1, 2, 3, 3, 3, 15, 34, 1, 0.3),
    (1, 2, 3, 3, 3, 4, 131, 2, 0.5),
    (1, 3, 2, 2, 3, 70, 301, 2, 0.5),
    (1, 3, 5, 5, 5, 36, 36, 1, 0.3),
    (1, 3, 5, 5, 5, 12, 12, 1, 0.3),
    (1, 2, 3, 3, 3, 5, 5, 1, 0.5),
    (2, 2, 3, 5, 5, 9, 12, 2, 1.0),
    (1, 2, 2, 1, 1, 1, 1, 1, 1.0),
    (2, 3, 5, 3, 2, 20, 20, 2, 0.0),
    (0, 2, 3, 3, 3, 8, 8, 1, 0.5),
    (1, 1, 1, 4, 7, 4, 7, 2, 0.5),
    (1, 1, 40, 3, 3, 10, 10, 1, 0.1),
)


# Of these, what the interpreter has time for: borders, both strides, batches, empty and full masks.
INTERPRETED_CASES = (
    (2, 3, 2, 5, 5, 21, 39, 2, 0.2),
    (1, 2, 3, 3, 3, 15, 67, 1, 0.3),
    (1, 3, 2, 2, 3, 12, 31, 2, 0.5),
    *CASES[12:17],
)
BACKEND_CASES = [("cpu", case) for case in CASES] + [("triton", case) for case in INTERPRETED_CASES]
each_backend = pytest.mark.parametrize("backend", KERNELS)


def drawn_inputs(case, dtype, seed=0):
    """(pattern, image, values of the weights, generator of what comes after)."""
    n, c, o, rows, columns, height, width, _, density = case
    generator = torch.Generator().manual_seed(seed)
    pattern = SparsePattern.of(torch.rand(o, c, rows, columns, generator=generator) < density)
    x = torch.randn(n, c, height, width, generator=generator, dtype=dtype)
    return pattern, x, torch.randn(pattern.nnz, generator=generator, dtype=dtype), generator


def results(case, dtype, seed=0, backend="cpu"):
    """Output and both gradients; nothing is left unwritten."""
    stride, device = case[-2], device_of(backend)
    pattern, x, values, generator = drawn_inputs(case, dtype, seed)
    x, values = (t.to(device).requires_grad_() for t in (x, values))
    torch.use_deterministic_algorithms(True)  # torch.empty is NaN then
    try:
        got = sparse_conv2d(x, values, pattern, stride=stride, backend=backend)
        direction = torch.randn(got.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        grads = torch.autograd.grad(got, (x, values), direction)
        (alone,) = torch.autograd.grad(
            sparse_conv2d(x.detach(), values, pattern, stride=stride, backend=backend), values, direction
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(alone, grads[1])
    return got.detach(), *grads


def check(case, dtype, seed=0, backend="cpu"):
    """The results, held to the reference in float64."""
    outputs, stride = case[2], case[-2]
    pattern, x, values, generator = drawn_inputs(case, dtype, seed)
    exact = [t.double().requires_grad_() for t in (x, values)]
    wanted = reference.sparse_conv2d(*exact, pattern.mask, stride=stride)
    direction = torch.randn(wanted.shape, generator=generator, dtype=torch.float64).to(dtype)
    wanted_grads = torch.autograd.grad(wanted, exact, direction.double())
    found = results(case, dtype, seed, backend)
    # A weight's gradient may cancel to little: its terms are about one in size.
    terms = (0.0, 0.0, (wanted.numel() / max(1, outputs)) ** 0.5)
    for ours, expected, size in zip(found, (wanted, *wanted_grads), terms, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        assert torch.isfinite(ours).all()
        if expected.numel():
            scale = max(size, float(expected.detach().abs().max()))
            error = float((ours.cpu().double() - expected.detach()).abs().max())
            assert error <= TOLERANCE[dtype] * scale
    return found


@pytest.mark.parametrize(("backend", "case"), BACKEND_CASES, ids=str)
def test_matches_the_reference(backend, case):
    require(backend)
    for dtype in dtypes_of(backend):
        check(case, dtype, backend=backend)


@each_backend
def test_drawn_shapes_and_masks(backend):
    require(backend)

    @settings(max_examples=examples_of(backend, 60), deadline=None)
    @given(st.data())
    def drawn(data):
        draw_and_check(data, backend)

    drawn()


def draw_and_check(data, backend):
    few = backend == "triton"
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    case = (
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 2 if few else 4)),
        data.draw(st.integers(1, 3 if few else 5)),
        rows,
        columns,
        rows + data.draw(st.integers(0, 20)),
        columns + data.draw(st.integers(0, 150)),
        data.draw(st.sampled_from((1, 2))),
        data.draw(st.sampled_from((0.0, 0.05, 0.3, 1.0))),
    )
    dtype = data.draw(st.sampled_from(dtypes_of(backend)))
    check(case, dtype, data.draw(st.integers(0, 1000)), backend)


@each_backend
@pytest.mark.parametrize("stride", [1, 2])
def test_strided_and_expanded_inputs(backend, stride):
    require(backend)
    device, dtype = device_of(backend), dtypes_of(backend)[-1]
    pattern = SparsePattern.of(torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5)
    wide = torch.randn(2, 3, 20, 160, dtype=dtype).to(device)
    weights = torch.randn(2 * pattern.nnz, dtype=dtype).to(device)
    tolerance = TOLERANCE[dtype] * 10
    for x in (
        wide[..., ::2],
        wide[:1, :, :, 3:77].expand(2, -1, -1, -1),
        wide.to(memory_format=torch.channels_last),
        wide.transpose(2, 3),
    ):
        x = x.detach().requires_grad_()
        values = weights[::2].detach().requires_grad_()
        results = []
        for each in (backend, "reference"):
            y = sparse_conv2d(x, values, pattern, stride=stride, backend=each)
            grad = torch.ones((), dtype=y.dtype, device=device).expand(y.shape)
            results.append((y, *torch.autograd.grad(y, (x, values), grad)))
        for ours, expected in zip(*results, strict=True):
            error = float((ours - expected).detach().abs().max())
            assert error <= tolerance * float(expected.detach().abs().max())


@each_backend
def test_output_channels_without_taps_are_zero(backend):
    require(backend)
    device = device_of(backend)
    mask = torch.zeros(4, 2, 3, 3, dtype=torch.bool)
    mask[1, 0, 1, 1] = mask[1, 0, 2, 2] = True
    pattern = SparsePattern.of(mask)
    for size in ((12, 80), (6, 6)):
        x = torch.randn(1, 2, *size).to(device).requires_grad_()
        y = sparse_conv2d(x, torch.tensor([2.0, 3.0]).to(device), pattern, backend=backend)
        assert not y[:, [0, 2, 3]].any()
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert not grad[:, 1].any()
        assert grad[:, 0].any()


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (2, 3)])
def test_phases(backend, size):
    require(backend)
    x = torch.arange(2.0 * 3 * size[0] * size[1]).view(2, 3, *size).to(device_of(backend)).requires_grad_()
    split = phase_split(x, backend=backend)
    assert split.size == size
    for phase, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        part = x[..., row::2, column::2]
        assert torch.equal(split.planes[:, :, phase, : part.shape[2], : part.shape[3]], part)
    assert float(split.planes.detach().sum()) == float(x.detach().sum())
    direction = torch.randn_like(split.planes)
    (grad,) = torch.autograd.grad(split.planes, x, direction)
    assert torch.equal(grad, reference.phase_merge(direction, *size))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_split_input_gives_the_same(backend):
    require(backend)
    pattern = SparsePattern.of(torch.rand(4, 3, 5, 5) < 0.3)
    x, values = (t.to(device_of(backend)) for t in (torch.randn(1, 3, 35, 36), torch.randn(pattern.nnz)))
    split = sparse_conv2d(phase_split(x, backend=backend), values, pattern, stride=2, backend=backend)
    assert torch.equal(split, sparse_conv2d(x, values, pattern, stride=2, backend=backend))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(backend, stride):
    require(backend)
    pattern = SparsePattern.of(torch.rand(2, 2, 3, 3) < 0.5)
    x = torch.randn(1, 2, 7, 8, dtype=torch.float64, requires_grad=True)
    values = torch.randn(pattern.nnz, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, v: sparse_conv2d(x, v, pattern, stride=stride, backend=backend), (x, values)
    )


@each_backend
def test_registration(backend):
    require(backend)
    device = device_of(backend)
    pattern = SparsePattern.of(torch.rand(2, 2, 3, 3) < 0.5)
    x = torch.randn(1, 2, 7, 8).to(device).requires_grad_()
    planes = torch.randn(1, 2, 4, 4, 4).to(device).requires_grad_()
    values = torch.randn(pattern.nnz).to(device).requires_grad_()
    index = pattern.index(x.device)
    torch.library.opcheck(_library.kernel("phase_split", backend), (x,))
    torch.library.opcheck(_library.kernel("phase_merge", backend), (planes, 7, 8))
    operator = _library.kernel("sparse_conv2d", backend)
    torch.library.opcheck(operator, (planes, values, *index, 2, 3, 3, 3, 3))
    torch.library.opcheck(
        _library.kernel("sparse_conv2d_backward", backend),
        (torch.randn(1, 2, 3, 3).to(device), planes.detach(), values.detach(), *index, 3, 3, True, True),
    )


def test_sums_over_many_pixels_are_accurate():
    """The weight gradient of a large, biased image, within a few units in the last place."""
    require("cpu")
    pattern = SparsePattern.of(torch.ones(1, 1, 1, 1, dtype=torch.bool))
    x = torch.rand(1, 1, 1024, 1024, generator=torch.Generator().manual_seed(0))
    values = torch.ones(1, requires_grad=True)
    y = sparse_conv2d(x, values, pattern, backend="cpu")
    (grad,) = torch.autograd.grad(y, values, torch.ones_like(y))
    assert float(grad) == pytest.approx(float(x.double().sum()), rel=3e-7)


def test_bad_arguments_are_refused():
    pattern = SparsePattern.of(torch.ones(2, 3, 3, 3, dtype=torch.bool))
    x, values = torch.randn(1, 3, 8, 8), torch.randn(pattern.nnz)
    with pytest.raises(InputError, match="stride: expected 1 or 2, got 3"):
        sparse_conv2d(x, values, pattern, stride=3)
    with pytest.raises(InputError, match="values: expected shape"):
        sparse_conv2d(x, values[:-1], pattern)
    with pytest.raises(InputError, match=r"values: expected torch\.float32"):
        sparse_conv2d(x, values.double(), pattern)
    with pytest.raises(InputError, match="values: expected"):
        sparse_conv2d(x, values.to("meta"), pattern)
    with pytest.raises(InputError, match="x: expected shape"):
        sparse_conv2d(x[:, :2], values, pattern)
    with pytest.raises(InputError, match="x: expected shape"):
        sparse_conv2d(x[0], values, pattern)
    with pytest.raises(InputError, match="x: expected dtype"):
        sparse_conv2d(x.half(), values, pattern)
    with pytest.raises(InputError, match="x: expected 3 x 3 pixels"):
        sparse_conv2d(x[..., :2], values, pattern)
    with pytest.raises(InputError, match="x: expected a tensor for stride 1"):
        sparse_conv2d(phase_split(x), values, pattern)
    with pytest.raises(InputError, match="x: expected shape"):
        sparse_conv2d(PhaseSplit(phase_split(x).planes, (9, 9)), values, pattern, stride=2)
    with pytest.raises(InputError, match="pattern: expected a SparsePattern"):
        sparse_conv2d(x, values, pattern.mask)
    with pytest.raises(InputError, match="mask: expected dtype bool"):
        SparsePattern.of(pattern.mask.float())
    with pytest.raises(InputError, match="mask: expected no size of 0"):
        SparsePattern.of(pattern.mask[:0])
    with pytest.raises(BackendError):
        sparse_conv2d(x, values, pattern, backend="cuda")


def test_indices_that_do_not_fit_are_refused_by_the_kernel():
    """The operator is public to torch: nothing may be read outside of a tensor."""
    require("cpu")
    pattern = SparsePattern.of(torch.ones(2, 1, 3, 3, dtype=torch.bool))
    planes, values = torch.randn(1, 1, 1, 8, 8), torch.randn(pattern.nnz)
    kernel = torch.ops.oes_fast.sparse_conv2d_cpu
    for place, wrong in ((0, 2), (1, 1), (2, 3), (3, -1)):
        taps = pattern.taps.clone()
        taps[-1, place] = wrong
        with pytest.raises(RuntimeError, match="taps: expected"):
            kernel(planes, values, taps, pattern.by_input, 2, 3, 3, 6, 6)
    with pytest.raises(RuntimeError, match="too small"):
        kernel(planes, values, pattern.taps, pattern.by_input, 2, 3, 3, 7, 6)
