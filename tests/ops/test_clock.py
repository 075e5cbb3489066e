"""Steps read from memory, for recorded launches, against integer ones: the same bits."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import device_of, dtypes_of, require

from oes_fast import InputError
from oes_fast.functional import gumbel_mask, mask_update, masked_adam
from oes_fast.ops._clock import Clock

pytestmark = [pytest.mark.device, pytest.mark.memcheck]


def draw(n, seed, dtype, device):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return values.to(device)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_steps_from_memory_are_those_of_integers(backend):
    require(backend)
    for dtype in dtypes_of(backend):
        w0, logits, grad = (draw(700, seed, dtype, device_of(backend)) for seed in range(3))
        clock = Clock(w0.device, lr=0.1, betas=(0.8, 0.99), rows=4, dtype=dtype)
        adam = {"lr": 0.1, "betas": (0.8, 0.99), "backend": backend}
        search = [[t.clone() for t in (logits, logits * 0, logits * 0)] for _ in range(2)]
        training = [[t.clone() for t in (w0, w0 * 0, w0 * 0)] for _ in range(2)]
        for step in (0, 1, 3, 4, 11):
            clock.show(step)
            masks = [gumbel_mask(w0, logits, seed=2**63, step=s, backend=backend) for s in (step, clock)]
            assert torch.equal(*masks)
            for s, (state, moments1, moments2) in zip((step, clock), search, strict=True):
                mask_update(state, grad, w0, moments1, moments2, seed=5, step=s, **adam)
            for s, (state, *moments) in zip((step, clock), training, strict=True):
                masked_adam(state, grad, *moments, step=s, **adam)
            for pair in (search, training):
                for integer, clocked in zip(*pair, strict=True):
                    assert torch.equal(integer, clocked)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_clock_is_for_one_dtype(backend):
    require(backend)
    v = [torch.zeros(4, device=device_of(backend)) for _ in range(4)]
    clock = Clock(v[0].device, dtype=torch.float64)
    with pytest.raises(InputError, match=r"step: expected a Clock of torch\.float32 on .*, got .*float64"):
        masked_adam(*v, step=clock, backend=backend)


def test_clock_counts():
    clock = Clock("cpu", rows=4)
    clock.show(6)
    assert clock.ticks.tolist() == [6]
    clock.tick()
    clock.ticked()
    clock.ticks.add_(0)
    clock.show(7)
    assert clock.ticks.tolist() == [7]
    clock.show(2)
    assert clock.ticks.tolist() == [2]
    assert clock.corrections[2, 0] == pytest.approx(1e-2 / (1 - 0.9**3))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_other_backends_take_no_clock(backend):
    require(backend)
    v = torch.zeros(4)
    with pytest.raises(InputError, match=f'expected an integer, since backend "{backend}" takes no Clock'):
        masked_adam(v, v.clone(), v.clone(), v.clone(), step=Clock("cpu"), backend=backend)
