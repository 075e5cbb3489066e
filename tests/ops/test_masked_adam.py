"""Adam on flat buffers against torch.optim.Adam."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import MASK_KERNELS, device_of, dtypes_of, require

import oes_fast as oes
from oes_fast import reference
from oes_fast.functional import masked_adam
from oes_fast.ops import _library

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

BACKENDS = list(MASK_KERNELS)

SETTINGS = [
    {},
    {"lr": 0.3},
    {"betas": (0.0, 0.0)},
    {"betas": (0.5, 0.9), "eps": 1e-3},
    {"eps": 0.0},
]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("density", [None, 0.0, 0.3, 1.0])
def test_is_torchs_adam_with_masked_gradients(dtype, settings, density):
    n = 37
    weights = draw(n, dtype=dtype)
    mask = None if density is None else torch.rand(n, generator=torch.Generator().manual_seed(1)) < density
    moments = torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
    parameter = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], **({"lr": 1e-2} | settings))
    for step in range(30):
        grad = draw(n, dtype=dtype, seed=step) * 10.0 ** (step % 5 - 3)
        parameter.grad = grad.clone() if mask is None else torch.where(mask, grad, 0)
        optimizer.step()
        masked_adam(weights, grad, *moments, step=step, mask=mask, **settings)
        kept = (
            slice(None) if mask is None or settings.get("eps") != 0 else mask
        )  # 0 / 0 where torch has it too
        torch.testing.assert_close(weights[kept], parameter.detach()[kept])
    if mask is not None and settings.get("eps") != 0:
        assert torch.equal(weights[~mask], draw(n, dtype=dtype)[~mask])
        if density == 0.3:
            assert (weights[mask] != draw(n, dtype=dtype)[mask]).all()


def test_the_first_step_is_the_learning_rate():
    weights, grad = torch.zeros(4).double(), torch.tensor([1e-3, -1e3, 1.0, 0.0]).double()
    masked_adam(weights, grad, torch.zeros(4).double(), torch.zeros(4).double(), step=0, lr=0.1)
    torch.testing.assert_close(weights, torch.tensor([-0.1, 0.1, -0.1, 0.0]).double(), rtol=2e-5, atol=0)


def test_late_steps():
    weights, grad = torch.zeros(1).double(), torch.ones(1).double()
    masked_adam(weights, grad, torch.ones(1).double(), torch.ones(1).double(), step=10**6, lr=0.1)
    torch.testing.assert_close(weights, torch.tensor([-0.1]).double())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gradients_that_the_mask_drops_count_as_zero_whatever_they_are(bad):
    weights, mask = torch.ones(2), torch.tensor([True, False])
    moments = torch.zeros(2), torch.zeros(2)
    masked_adam(weights, torch.tensor([1.0, bad]), *moments, step=0, mask=mask)
    assert weights[1] == 1
    assert moments[0][1] == moments[1][1] == 0
    assert weights[0] < 1


def test_moments_of_dropped_weights_decay():
    """The mask is over gradients: a weight with momentum goes on moving, as in torch.optim."""
    weights, mask = torch.zeros(2), torch.tensor([True, False])
    first, second = torch.ones(2), torch.ones(2)
    masked_adam(weights, torch.ones(2), first, second, step=5, mask=mask)
    torch.testing.assert_close(first, torch.tensor([1.0, 0.9]))
    torch.testing.assert_close(second, torch.tensor([1.0, 0.999]))
    assert weights[1] < 0


def test_works_in_place_on_leaves_and_views_and_leaves_the_gradient_alone():
    base = draw(3, 8)
    weights, first, second = base.unbind(0)
    second.abs_()
    grad = draw(1).expand(8)
    reference = [t.clone() for t in (weights, first, second)]
    masked_adam(weights, grad, first, second, step=3)
    masked_adam(reference[0], grad.clone(), *reference[1:], step=3)
    torch.testing.assert_close(list(base), reference)
    strided = draw(16)[::2].clone(), draw(16)
    leaf = strided[0].requires_grad_()
    masked_adam(leaf, strided[1][::2], torch.zeros(8).double(), torch.zeros(8).double(), step=0)
    assert leaf.is_leaf
    assert leaf.grad is None
    assert torch.equal(strided[1], draw(16))


def test_no_weights():
    empty = torch.zeros(0)
    masked_adam(empty, empty, empty.clone(), empty.clone(), step=0)


V = torch.zeros(4)
BAD = [
    ("weights", {"weights": torch.zeros(2, 2)}),
    ("weights", {"weights": V.long()}),
    ("grad", {"grad": torch.zeros(3)}),
    ("grad", {"grad": V.double()}),
    ("exp_avg", {"exp_avg": torch.zeros(3)}),
    ("exp_avg_sq", {"exp_avg_sq": None}),
    ("mask", {"mask": torch.ones(4)}),
    ("mask", {"mask": torch.ones(3, dtype=torch.bool)}),
    ("mask", {"mask": torch.ones(4, dtype=torch.bool, device="meta")}),
    ("step", {"step": -1}),
    ("step", {"step": 0.0}),
    ("lr", {"lr": 0.0}),
    ("lr", {"lr": torch.inf}),
    ("betas", {"betas": (0.9, 1.0)}),
    ("betas", {"betas": (-0.1, 0.9)}),
    ("betas", {"betas": (0.9,)}),
    ("betas", {"betas": 0.9}),
    ("eps", {"eps": -1.0}),
]


@pytest.mark.parametrize(("name", "changes"), BAD)
def test_bad_arguments_are_named(name, changes):
    good = {"weights": V.clone(), "grad": V, "exp_avg": V.clone(), "exp_avg_sq": V.clone(), "step": 0}
    with pytest.raises(oes.InputError, match=f"^{name}: "):
        masked_adam(**(good | changes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.get("eps") != 0.0])
@pytest.mark.parametrize("density", [None, 0.0, 0.3])
@pytest.mark.parametrize("n", [0, 1, 513, 2048])
def test_kernels_match_the_reference(backend, settings, density, n):
    require(backend)
    device = device_of(backend)
    for dtype in dtypes_of(backend):
        mask = (
            None if density is None else torch.rand(n, generator=torch.Generator().manual_seed(1)) < density
        )
        start = draw(n, dtype=dtype), torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
        ours = [t.clone().to(device) for t in start]
        theirs = [t.double() for t in start]
        for step in (0, 1, 2, 1000):
            grad = draw(n, dtype=dtype, seed=step) * 10.0 ** (step % 5 - 3)
            if mask is not None:
                grad[~mask] = torch.nan
            on_device = None if mask is None else mask.to(device)
            weights, *moments = ours
            masked_adam(
                weights, grad.to(device), *moments, step=step, mask=on_device, backend=backend, **settings
            )
            weights, *moments = theirs
            reference.masked_adam(weights, grad.double(), *moments, step=step, mask=mask, **settings)
        for got, expected in zip(ours, theirs, strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_refuse_strided_weights(backend):
    require(backend)
    zeros = torch.zeros(16, device=device_of(backend))
    for name in ("weights", "exp_avg", "exp_avg_sq"):
        given = {n: torch.zeros_like(zeros[:8]) for n in ("weights", "grad", "exp_avg", "exp_avg_sq")}
        given[name] = zeros[::2]
        with pytest.raises(oes.InputError, match=f"^{name}: expected a contiguous tensor"):
            masked_adam(**given, step=0, backend=backend)
        masked_adam(**given, step=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_registration(backend):
    require(backend)
    vectors = [torch.ones(8, device=device_of(backend)) for _ in range(4)]
    mask = torch.arange(8, device=device_of(backend)) % 2 == 0
    operator = _library.kernel("masked_adam", backend)
    torch.library.opcheck(operator, (*vectors, mask, 3, 1e-2, 0.9, 0.999, 1e-8))
