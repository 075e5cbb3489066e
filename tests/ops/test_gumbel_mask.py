"""gumbel_mask: every backend against the reference, gradients, extremes, tracing, distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_backends import MASK_KERNELS, device_of, dtypes_of, require
from scipy import integrate, special, stats

from oes_fast import BackendError, InputError, reference
from oes_fast.ops import gumbel_mask
from oes_fast.ops.philox import random_bits

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

SIZES = (0, 1, 2, 5, 511, 512, 513, 1025, 40_003)
# Of m, absolute. Float32 rounds (s + L) / T, which reaches 100: its error of 4e-6 meets m (1 - m) <= 1/4 only
# near 0, where it is small itself.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def make(numel, dtype, device="cpu", scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, numel, generator=generator, dtype=torch.float64)
    w0, logits, grad = (row.to(dtype).to(device) for row in (values[0], scale * values[1], values[2]))
    return w0, logits, grad


def exact(w0, logits, **noise):
    """(masked weights, mask) in float64."""
    mask = reference.relaxed_mask(logits.double().cpu(), **noise)
    return w0.double().cpu() * mask, mask


@pytest.mark.parametrize("backend", MASK_KERNELS)
@pytest.mark.parametrize("numel", SIZES)
def test_matches_the_reference(backend, numel):
    require(backend)
    for dtype in dtypes_of(backend):
        for noise in (
            {"seed": 0, "step": 0, "temperature": 0.2},
            {"seed": 2**64 - 1, "step": 2**32 - 1, "temperature": 0.7},
            {"seed": 2**63, "step": 17, "temperature": 5.0},
        ):
            w0, logits, _ = make(numel, dtype, device_of(backend))
            masked = gumbel_mask(w0, logits, backend=backend, **noise)
            expected, _ = exact(w0, logits, **noise)
            assert masked.shape == w0.shape
            assert masked.dtype == dtype
            error = (masked.cpu().double() - expected).abs() - TOLERANCE[dtype] * w0.cpu().double().abs()
            assert not (error > 0).any()


@pytest.mark.parametrize("backend", MASK_KERNELS)
@pytest.mark.parametrize("numel", [0, 1, 513, 40_003])
def test_gradients_match_the_reference(backend, numel):
    require(backend)
    for dtype in dtypes_of(backend):
        w0, logits, grad = (t.requires_grad_() for t in make(numel, dtype, device_of(backend)))
        masked = gumbel_mask(w0, logits, seed=5, step=9, temperature=0.2, backend=backend)
        found = torch.autograd.grad(masked, (w0, logits), grad.detach())
        wide = [t.detach().cpu().double().requires_grad_() for t in (w0, logits, grad)]
        expected = torch.autograd.grad(
            reference.gumbel_mask(wide[0], wide[1], seed=5, step=9), wide[:2], wide[2].detach()
        )
        # dm/ds = m (1 - m) / T, and its own derivative, which meets the rounding of (s + L) / T, is as small.
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=20 * TOLERANCE[dtype])
            assert (ours.cpu()[theirs.abs() > 1e-16] != 0).all()


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_only_the_gradients_asked_for(backend):
    require(backend)
    w0, logits, grad = make(700, torch.float32, device_of(backend))
    both = [t.clone().requires_grad_() for t in (w0, logits)]
    gumbel_mask(*both, seed=1, step=2, backend=backend).backward(grad)
    for index in (0, 1):
        tensors = [w0.clone(), logits.clone()]
        tensors[index].requires_grad_()
        gumbel_mask(*tensors, seed=1, step=2, backend=backend).backward(grad)
        assert torch.equal(tensors[index].grad, both[index].grad)
        assert tensors[1 - index].grad is None
    assert not gumbel_mask(w0, logits, seed=1, step=2, backend=backend).requires_grad


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_strided_and_expanded_arguments(backend):
    require(backend)
    w0, logits, grad = make(1203, torch.float32, device_of(backend))
    expected = gumbel_mask(w0[::3].clone(), logits[1::3].clone(), seed=1, step=2, backend=backend)
    assert torch.equal(gumbel_mask(w0[::3], logits[1::3], seed=1, step=2, backend=backend), expected)
    one = torch.ones((), device=w0.device, requires_grad=True)
    masked = gumbel_mask(one.expand(1203), logits, seed=1, step=2, backend=backend)
    masked.sum().backward()  # an expanded gradient, too
    assert float(one.grad) == pytest.approx(float(masked.detach().sum()), rel=1e-5)
    strided = torch.stack([grad, grad], dim=1)[:, 0]
    leaf = logits.clone().requires_grad_()
    gumbel_mask(w0, leaf, seed=1, step=2, backend=backend).backward(strided)
    other = logits.clone().requires_grad_()
    gumbel_mask(w0, other, seed=1, step=2, backend=backend).backward(grad)
    assert torch.equal(leaf.grad, other.grad)


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_extremes(backend):
    require(backend)
    dtype = dtypes_of(backend)[0]
    logits = torch.tensor([1e4, -1e4, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-40], dtype=dtype)
    logits = logits.to(device_of(backend)).requires_grad_()
    masked = gumbel_mask(torch.ones_like(logits), logits, seed=0, step=0, backend=backend)
    assert masked[:4].tolist() == [1, 0, 1, 0]
    assert masked[6:8].tolist() == [1, 0]
    assert torch.isfinite(masked).all()
    masked.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[[0, 1, 2, 3, 6, 7]].tolist() == [0] * 6
    nan = torch.full((40,), math.nan, dtype=dtype, device=logits.device)
    assert gumbel_mask(torch.ones_like(nan), nan, seed=0, step=0, backend=backend).isnan().all()


@pytest.mark.parametrize("backend", MASK_KERNELS)
@pytest.mark.parametrize("step", [33, 73])
def test_rare_draws_under_all_logits(backend, step):
    """The lowest and the highest of many draws, whose odds reach 2^23, under logits of all sizes.

    Among the draws of step 33 are the lowest odds there are, among those of step 73 the highest.
    """
    require(backend)
    count = 2**14
    words = random_bits(5, step, count)
    order = words.argsort()
    rare = torch.cat([order[:64], order[-64:]])
    assert words[order[0]] < 512 or step != 33
    assert words[order[-1]] >= 2**32 - 512 or step != 73
    noise = reference.logistic_from_bits(words[rare], torch.float64)
    for dtype in dtypes_of(backend):
        ones = torch.ones(count, dtype=dtype, device=device_of(backend))
        for size in (0.0, 1e-3, 1.0, 8.0, 16.0, 17.5, 20.0, 24.0, 26.0, 30.0, 42.9, 43.1, 88.0, 349.0, 351.0):
            for logit in (size, -size):
                logits = (logit * ones).requires_grad_()
                masked = gumbel_mask(ones, logits, seed=5, step=step, backend=backend)
                (slope,) = torch.autograd.grad(masked.sum(), logits)
                mask = torch.sigmoid(5 * (logit + noise))
                for found, expected in ((masked.detach(), mask), (slope, 5 * mask * (1 - mask))):
                    assert torch.isfinite(found).all()
                    error = (found.cpu()[rare].double() - expected).abs().max()
                    assert error <= 5 * TOLERANCE[dtype], (dtype, logit)


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_writes_where_it_is_told(backend):
    require(backend)
    for dtype in dtypes_of(backend):
        w0, logits, _ = make(1000, dtype, device_of(backend))
        logits.requires_grad_()
        for temperature in (0.2, 0.7):
            noise = {"seed": 1, "step": 2, "temperature": temperature, "backend": backend}
            out = torch.full_like(w0, math.nan)
            assert gumbel_mask(w0, logits, out=out, **noise) is out
            assert not out.requires_grad
            assert torch.equal(out, gumbel_mask(w0, logits, **noise))
            strided = torch.stack([w0, w0], dim=1)[:, 0]
            assert torch.equal(gumbel_mask(strided, logits, out=torch.empty_like(w0), **noise), out)
    for bad, message in (
        (torch.empty(999, dtype=dtype, device=w0.device), "out: expected shape"),
        (torch.empty(1000, dtype=torch.int64, device=w0.device), "out: expected"),
        (torch.empty(2000, dtype=dtype, device=w0.device)[::2], "out: expected a contiguous tensor"),
        (w0, "out: expected memory of its own to write to, it overlaps w0"),
        (logits.detach(), "out: .* overlaps logits"),
    ):
        with pytest.raises(InputError, match=message):
            gumbel_mask(w0, logits, seed=1, step=2, out=bad, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
def test_gradcheck(backend):
    require(backend)
    w0, logits, _ = (t.requires_grad_() for t in make(17, torch.float64, device_of(backend), scale=1.0))
    assert torch.autograd.gradcheck(
        lambda w0, logits: gumbel_mask(w0, logits, seed=3, step=4, temperature=0.7, backend=backend),
        (w0, logits.detach().requires_grad_()),
    )


def masked(backend):
    return lambda w0, s: gumbel_mask(w0, s, seed=3, step=4, temperature=0.7, backend=backend)


def test_second_derivative_of_the_reference():
    w0, logits, _ = (t.requires_grad_() for t in make(9, torch.float64, scale=1.0))
    assert torch.autograd.gradgradcheck(masked("reference"), (w0, logits))


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_kernels_have_no_second_derivative(backend):
    require(backend)
    w0, logits, _ = (t.requires_grad_() for t in make(9, torch.float64, device_of(backend), scale=1.0))
    (grad,) = torch.autograd.grad(masked(backend)(w0, logits).sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match='use backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_opcheck(backend):
    require(backend)
    for dtype in dtypes_of(backend):
        w0, logits, grad = make(37, dtype, device_of(backend))
        leaves = (w0.clone().requires_grad_(), logits.clone().requires_grad_())
        ops = torch.ops.oes_fast
        torch.library.opcheck(getattr(ops, f"gumbel_mask_{backend}").default, (*leaves, -3, 7, 0.2))
        torch.library.opcheck(
            getattr(ops, f"gumbel_mask_out_{backend}").default,
            (torch.empty_like(w0), w0, logits, -3, 7, 0.2),
        )
        torch.library.opcheck(
            getattr(ops, f"gumbel_mask_backward_{backend}").default,
            (grad, w0, logits, -3, 7, 0.2, True, False),
        )


def test_compiles_in_one_graph_for_all_steps():
    require("cpu")
    w0, logits, _ = make(1000, torch.float32)
    logits.requires_grad_()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=backend)
    def loss(w0, logits, step):
        return gumbel_mask(w0, logits, seed=2**64 - 5, step=step, backend="cpu").square().sum()

    for step in range(5):
        compiled = loss(w0, logits, step)
        expected = gumbel_mask(w0, logits, seed=2**64 - 5, step=step, backend="cpu").square().sum()
        assert torch.equal(compiled, expected)
        (grad,) = torch.autograd.grad(compiled, logits)
        assert torch.equal(grad, torch.autograd.grad(expected, logits)[0])
    assert len(graphs) <= 3  # 0, 1 and a symbol for all others


# The distribution of m: L = logit(u) turns an expectation over the noise into an integral over u in (0, 1).
@pytest.mark.parametrize("logit", [-2.0, 0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_moments_of_the_mask(logit, temperature):
    def moment(power):
        def integrand(u):
            return special.expit((logit + special.logit(u)) / temperature) ** power

        return integrate.quad(integrand, 0, 1, points=[special.expit(-logit)], limit=200)[0]

    mean, variance = moment(1), moment(2) - moment(1) ** 2
    elements, steps = 2000, 50
    logits = torch.full((elements,), logit, dtype=torch.float64)
    ones = torch.ones_like(logits)
    noise = [{"seed": 11, "step": step, "temperature": temperature} for step in range(steps)]
    draws = torch.stack([gumbel_mask(ones, logits, **n) for n in noise]).numpy()  # [step, element]
    count = draws.size
    assert draws.mean() == pytest.approx(mean, abs=4.5 * math.sqrt(variance / count))
    kurtosis = ((draws - mean) ** 4).mean() - variance**2
    assert draws.var() == pytest.approx(variance, abs=4.5 * math.sqrt(kurtosis / count))
    # Independent elements and steps: the means over either scatter as those of independent draws do.
    for axis in (0, 1):
        means = draws.mean(axis=axis)
        spread = means.var(ddof=1) * draws.shape[axis] / variance
        low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], means.size - 1) / (means.size - 1)
        assert low < spread < high
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 4.5 / math.sqrt(count)


def test_sharp_mask_is_bernoulli():
    """At a low temperature m is 0 or 1, and 1 with probability sigmoid(s)."""
    logits = torch.linspace(-3, 3, 7, dtype=torch.float64).repeat_interleave(20_000)
    masked = gumbel_mask(torch.ones_like(logits), logits, seed=2, step=1, temperature=1e-4)
    kept = masked.view(7, -1).mean(dim=1)
    torch.testing.assert_close(
        kept, logits.view(7, -1)[:, 0].sigmoid(), rtol=0, atol=4.5 * 0.5 / math.sqrt(20_000)
    )


def test_bad_arguments_are_refused(monkeypatch):
    w0, logits, _ = make(4, torch.float32)
    with pytest.raises(InputError, match="logits: expected shape"):
        gumbel_mask(w0, logits[:3], seed=0, step=0)
    with pytest.raises(InputError, match=r"logits: expected torch\.float32"):
        gumbel_mask(w0, logits.double(), seed=0, step=0)
    with pytest.raises(InputError, match="w0: expected 1 dimensions"):
        gumbel_mask(w0[None], logits[None], seed=0, step=0)
    with pytest.raises(InputError, match="temperature"):
        gumbel_mask(w0, logits, seed=0, step=0, temperature=0.0)
    for numbers in ({"seed": -1, "step": 0}, {"seed": 2**64, "step": 0}, {"seed": 0, "step": 2**32}):
        with pytest.raises(InputError):
            gumbel_mask(w0, logits, **numbers)
    with pytest.raises(InputError, match="backend: expected one of"):
        gumbel_mask(w0, logits, seed=0, step=0, backend="gpu")
    monkeypatch.setenv("OES_FAST_EMULATE_CUDA", "0")
    with pytest.raises(BackendError, match="cuda"):
        gumbel_mask(w0, logits, seed=0, step=0, backend="cuda")
