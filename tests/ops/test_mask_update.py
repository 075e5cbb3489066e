"""mask_update: every backend against the reference over several steps, the KL value, the same bits always."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_backends import MASK_KERNELS, device_of, dtypes_of, require

from oes_fast import BackendError, InputError, reference
from oes_fast.ops import mask_update

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

SIZES = (0, 1, 5, 511, 512, 513, 40_003)
DEFAULT = {"temperature": 0.2, "kl": 1e-6, "density": 0.05, "lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
SETTINGS = (
    {"kl": 0.0},
    {"kl": 1e-9, "density": 0.5, "temperature": 0.7},
    {"kl": 1.0, "density": 0.9, "betas": (0.5, 0.9), "eps": 1e-3, "lr": 0.3},
    {"betas": (0.0, 0.0)},
)


def make(numel, dtype, device="cpu", scale=2.0):
    """(logits, grad, w0, exp_avg, exp_avg_sq)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, numel, generator=generator, dtype=torch.float64)
    values *= torch.tensor([scale, 1e-3, 1.0, 1e-4, 1e-4], dtype=torch.float64)[:, None]
    values[4] = values[4].square()
    return tuple(row.to(dtype).to(device) for row in values)


def run(state, backend, steps, settings, seed=2**63 + 11):
    """Logits, moments and KL values after some steps; the arguments are left alone."""
    logits, grad, w0, exp_avg, exp_avg_sq = (t.clone() for t in state)
    options = {**DEFAULT, **settings}
    values = []
    for step in steps:
        # Reversed, so that the gradient is another one in every step.
        grad = grad.flip(0).contiguous()
        value = mask_update(
            logits,
            grad,
            w0,
            exp_avg,
            exp_avg_sq,
            seed=seed,
            step=step,
            kl_value=True,
            backend=backend,
            **options,
        )
        values.append(float(value))
    return logits, exp_avg, exp_avg_sq, values


@pytest.mark.parametrize("backend", MASK_KERNELS)
@pytest.mark.parametrize(
    ("numel", "settings"), [*((n, {}) for n in SIZES), *((513, s) for s in SETTINGS)], ids=str
)
def test_matches_the_reference(backend, numel, settings):
    """Held to float64 within a tolerance, and in float32 within four times the error of the reference.

    Adam divides by the gradient's own size: where the loss and the KL term cancel, or where 1 - m is 0 in
    the reference but not in the kernels, any rounding is magnified up to lr / eps times.
    """
    require(backend)
    for dtype in dtypes_of(backend):
        state = make(numel, dtype, device_of(backend))
        # As in a search: from step 0 with moments of zero, and somewhere in the middle.
        fresh = (*state[:3], torch.zeros_like(state[3]), torch.zeros_like(state[4]))
        single = dtype == torch.float32
        tolerance = 1e-5 if single else 1e-11
        for start, steps in ((fresh, (0, 1, 2)), (state, (1000, 1001))):
            ours = run(start, backend, steps, settings)
            rounded = run(tuple(t.cpu().float() for t in start), "reference", steps, settings)
            exact = run(tuple(t.cpu().double() for t in start), "reference", steps, settings)
            options = {**DEFAULT, **settings}
            in_lr = 1.0 if single else 1e3
            scales = {
                "logits": in_lr * options["lr"],
                "exp_avg": options["kl"],
                "exp_avg_sq": options["kl"] ** 2,
            }
            for index, (name, scale) in enumerate(scales.items()):
                assert ours[index].dtype == dtype
                bound = tolerance * (scale + exact[index].abs())
                bound = (
                    torch.maximum(bound, tolerance * exact[index].abs().max()) if index and numel else bound
                )
                if numel and single:
                    bound = bound + 4 * (rounded[index].double() - exact[index]).abs().max()
                assert ((ours[index].cpu().double() - exact[index]).abs() <= bound).all(), name
            assert ours[3] == pytest.approx(exact[3], rel=tolerance / 10, abs=numel * tolerance / 10)


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_kl_value_at_the_extremes(backend):
    """Against the definition in float64, where the probabilities are 0 or 1 to the last bit."""
    require(backend)
    for dtype in dtypes_of(backend):
        for logit in (1e4, -1e4, 100.0, -100.0, 20.0, -20.0, 0.0, math.log(0.05 / 0.95)):
            logits = torch.full((700,), logit, dtype=dtype, device=device_of(backend))
            state = (logits, *(torch.zeros_like(logits) for _ in range(4)))
            *updated, values = run(state, backend, (0,), {"kl": 1.0})
            *_, exact = run(tuple(t.cpu().double() for t in state), "reference", (0,), {"kl": 1.0})
            assert all(torch.isfinite(t).all() for t in updated)
            per_element = 1e-6 if dtype == torch.float32 else 1e-14
            assert values[0] == pytest.approx(exact[0], rel=1e-6, abs=700 * per_element)


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_kl_gradient_is_that_of_autograd(backend):
    """With no loss and betas of 0, exp_avg is the gradient."""
    require(backend)
    for dtype in dtypes_of(backend) if backend != "reference" else (torch.float64,):
        logits = torch.linspace(-30, 30, 1001, dtype=dtype, device=device_of(backend))
        leaf = logits.cpu().double().requires_grad_()
        (expected,) = torch.autograd.grad(reference.mask_kl(leaf, density=0.05), leaf)
        zeros = [torch.zeros_like(logits) for _ in range(4)]
        _, gradient, *_ = run((logits, *zeros), backend, (0,), {"kl": 1.0, "betas": (0.0, 0.0)})
        tolerance = 2e-6 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(gradient.cpu().double(), expected, rtol=10 * tolerance, atol=tolerance)
        # Near +-30 the gradient is 1e-12: held to its own size, since the tolerance above would pass zeros.
        far = leaf.detach().abs() > 20
        torch.testing.assert_close(gradient.cpu().double()[far], expected[far], rtol=1e-3, atol=0)


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_extreme_logits_and_gradients_stay_finite(backend):
    require(backend)
    for dtype in dtypes_of(backend):
        logits = torch.tensor([1e4, -1e4, 50.0, -50.0, 88.0, -88.0, 0.0, 1e-40], dtype=dtype).repeat(100)
        state = [t.to(device_of(backend)) for t in make(800, dtype)]
        state[0] = logits.to(device_of(backend))
        state[1] *= 1e9
        for tensor in run(tuple(state), backend, (1, 2, 3), {})[:3]:
            assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_nan_in_the_gradient_is_not_lost(backend):
    require(backend)
    state = make(600, torch.float32, device_of(backend))
    state[1][123] = math.nan
    logits = run(state, backend, (0, 1), {})[0]
    assert logits.isnan().sum() == 2  # run() reverses the gradient: elements 123 and 476
    assert logits.isnan()[[123, 476]].all()


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_strided_arguments(backend):
    require(backend)
    state = make(900, torch.float32, device_of(backend))
    ours = [t.clone() for t in state]
    wide = torch.stack([ours[1], ours[2]], dim=1)
    mask_update(ours[0], wide[:, 0], wide[:, 1], ours[3], ours[4], seed=1, step=2, backend=backend)
    other = [t.clone() for t in state]
    mask_update(*other, seed=1, step=2, backend=backend)
    for index in (0, 3, 4):
        assert torch.equal(ours[index], other[index])
        bad = list(state)
        bad[index] = torch.stack([state[index]] * 2, dim=1)[:, 0]
        with pytest.raises(InputError, match="expected a contiguous tensor"):
            mask_update(*bad, seed=1, step=2, backend=backend)


def test_shared_memory_is_refused():
    logits, grad, w0, exp_avg, exp_avg_sq = make(64, torch.float32)
    for arguments in (
        (logits, logits, w0, exp_avg, exp_avg_sq),
        (logits, grad, w0, exp_avg, exp_avg),
        (logits[:32], grad[:32], logits[16:48], exp_avg[:32], exp_avg_sq[:32]),
    ):
        with pytest.raises(InputError, match="overlaps"):
            mask_update(*arguments, seed=0, step=0)


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_opcheck(backend):
    require(backend)
    for dtype in dtypes_of(backend):
        numbers = (-3, 7, 0.2, 1e-9, 0.05, 0.01, 0.9, 0.999, 1e-8, True)
        operator = getattr(torch.ops.oes_fast, f"mask_update_{backend}").default
        torch.library.opcheck(operator, (*make(37, dtype, device_of(backend)), *numbers))


def test_compiles_in_one_graph():
    require("cpu")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def update(logits, grad, w0, exp_avg, exp_avg_sq, step):
        return mask_update(
            logits, grad, w0, exp_avg, exp_avg_sq, seed=3, step=step, kl_value=True, backend="cpu"
        )

    compiled = [t.clone() for t in make(600, torch.float32)]
    eager = [t.clone() for t in compiled]
    for step in range(3):
        value = update(*compiled, step)
        assert torch.equal(value, mask_update(*eager, seed=3, step=step, kl_value=True, backend="cpu"))
        assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_follows_the_reference_over_a_search():
    """A small search: the loss curves of the kernel and of the reference, float64."""
    require("cpu")
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(50, 300, generator=generator, dtype=torch.float64)
    w0 = torch.randn(300, generator=generator, dtype=torch.float64)
    target = torch.randn(50, generator=generator, dtype=torch.float64)
    curves = {}
    for backend in ("reference", "cpu"):
        logits, exp_avg, exp_avg_sq = (torch.zeros_like(w0) for _ in range(3))
        curves[backend] = []
        for step in range(200):
            noise = {"seed": 4, "step": step, "temperature": 0.2}
            masked = reference.gumbel_mask(w0, logits, **noise).requires_grad_()
            loss = (matrix @ masked - target).square().mean()
            (grad,) = torch.autograd.grad(loss, masked)
            mask_update(logits, grad, w0, exp_avg, exp_avg_sq, **noise, backend=backend)
            curves[backend].append(float(loss.detach()))
    assert curves["cpu"] == pytest.approx(curves["reference"], rel=1e-9)
    assert sum(curves["cpu"][-20:]) < 0.6 * sum(curves["cpu"][:20])


def test_bad_arguments_are_refused(monkeypatch):
    state = make(8, torch.float32)
    good = {"seed": 0, "step": 0}
    for name, value in (
        ("seed", -1),
        ("step", 2**32),
        ("temperature", 0.0),
        ("kl", -1.0),
        ("density", 1.0),
        ("lr", 0.0),
        ("betas", (0.9, 1.0)),
        ("eps", math.inf),
    ):
        with pytest.raises(InputError, match=name):
            mask_update(*state, **{**good, name: value})
    with pytest.raises(InputError, match="w0: expected"):
        mask_update(*state[:2], state[2].double(), *state[3:], **good)
    with pytest.raises(InputError, match="grad: expected shape"):
        mask_update(state[0], state[1][:5], *state[2:], **good)
    with monkeypatch.context() as patch:
        patch.setenv("OES_FAST_EMULATE_CUDA", "0")
        with pytest.raises(BackendError, match="cuda"):
            mask_update(*state, **good, backend="cuda")
    assert mask_update(*state, **good) is None
