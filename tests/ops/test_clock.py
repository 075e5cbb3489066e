"""Steps read from memory, for recorded launches, against integer ones: the same bits."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import device_of, require

from oes_fast import InputError
from oes_fast.functional import gumbel_mask, mask_update, masked_adam
from oes_fast.ops._clock import Clock

pytestmark = [pytest.mark.device, pytest.mark.memcheck]

BACKEND = "triton"


def draw(n, seed):
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return values.to(device_of(BACKEND))


def test_triton_steps_from_memory_are_those_of_integers():
    require(BACKEND)
    w0, logits, grad = (draw(700, seed) for seed in range(3))
    clock = Clock(w0.device, lr=0.1, betas=(0.8, 0.99), rows=4)
    adam = {"lr": 0.1, "betas": (0.8, 0.99), "backend": BACKEND}
    search = [[t.clone() for t in (logits, logits * 0, logits * 0)] for _ in range(2)]
    training = [[t.clone() for t in (w0, w0 * 0, w0 * 0)] for _ in range(2)]
    for step in (0, 1, 3, 4, 11):
        clock.show(step)
        masks = [gumbel_mask(w0, logits, seed=2**63, step=s, backend=BACKEND) for s in (step, clock)]
        assert torch.equal(*masks)
        for s, (state, moments1, moments2) in zip((step, clock), search, strict=True):
            mask_update(state, grad, w0, moments1, moments2, seed=5, step=s, **adam)
        for s, (state, *moments) in zip((step, clock), training, strict=True):
            masked_adam(state, grad, *moments, step=s, **adam)
        for pair in (search, training):
            for integer, clocked in zip(*pair, strict=True):
                assert torch.equal(integer, clocked)


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


def test_other_backends_take_no_clock():
    v = torch.zeros(4)
    with pytest.raises(
        InputError, match='step: expected an integer, since backend "reference" takes no Clock'
    ):
        masked_adam(v, v.clone(), v.clone(), v.clone(), step=Clock("cpu"), backend="reference")
