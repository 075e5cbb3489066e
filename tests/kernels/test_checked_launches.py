"""Checked launches under Triton's interpreter: planted faults are found, and nothing where there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from kernel_backends import INTERPRETED

if not INTERPRETED:
    pytest.skip("Triton's interpreter is chosen at the start of a process", allow_module_level=True)

import triton
import triton.language as tl
from checked_launches import LaunchError

pytestmark = pytest.mark.interpreted

BLOCK = 4
PROGRAMS = 3
SIZE = BLOCK * PROGRAMS - 1


class Places(NamedTuple):
    """An argument that holds tensors."""

    x: Any
    sums: Any
    ticket: Any


@triton.jit
def copy_kernel(x_ptr, y_ptr, size, shift, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < size) if MASKED else (at >= 0)
    tl.store(y_ptr + at, tl.load(x_ptr + at + shift, mask=inside), mask=at < size)


@triton.jit
def fill_kernel(y_ptr, at_program, at_lane, BLOCK: tl.constexpr):
    at = tl.program_id(0) * at_program + tl.arange(0, BLOCK) * at_lane
    tl.store(y_ptr + at, 1.0)


@triton.jit
def sum_kernel(
    places, out_ptr, BARRIER: tl.constexpr, SEM: tl.constexpr, WAITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The last program to arrive sums what all have stored; without ``WAITS`` the first one in the grid."""
    program = tl.program_id(0)
    count = tl.num_programs(0)
    value = tl.load(places.x + program * BLOCK + tl.arange(0, BLOCK))
    tl.store(places.sums + program, tl.sum(value))
    if BARRIER:
        tl.debug_barrier()
    arrived = tl.atomic_add(places.ticket, 1, sem=SEM)
    if arrived == count - 1 if WAITS else program == 0:
        tl.store(places.ticket, 0)
        of = tl.arange(0, BLOCK)
        tl.store(out_ptr, tl.sum(tl.load(places.sums + of, mask=of < count, other=0.0)))


@triton.jit
def reverse_kernel(y_ptr, SIZE: tl.constexpr, BARRIER: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, at.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    turned = tl.load(y_ptr + SIZE - 1 - at)
    tl.store(y_ptr + SIZE + at, turned)


@triton.jit
def undefined_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at > 0))


@triton.jit
def order_kernel(y_ptr, ticket_ptr):
    tl.store(y_ptr + tl.program_id(0), tl.atomic_add(ticket_ptr, 1))


def copy(shift=0, masked=True):
    x, y = torch.arange(64.0)[:SIZE], torch.zeros(SIZE)
    copy_kernel[(PROGRAMS,)](x, y, SIZE, shift, BLOCK=BLOCK, MASKED=masked)
    return y


def partial_sums(barrier=True, sem="acq_rel", waits=True):
    x = torch.arange(float(BLOCK * PROGRAMS))
    places = Places(x, torch.empty(PROGRAMS), torch.zeros(1, dtype=torch.int32))
    out = torch.empty(1)
    sum_kernel[(PROGRAMS,)](places, out, BARRIER=barrier, SEM=sem, WAITS=waits, BLOCK=BLOCK)
    return out, x.sum()


def test_kernels_without_fault():
    assert torch.equal(copy(), torch.arange(float(SIZE)))
    for _ in range(5):  # in several orders of programs
        out, expected = partial_sums()
        assert torch.equal(out, expected[None])
    y = torch.empty(2 * BLOCK)
    reverse_kernel[(1,)](y, SIZE=BLOCK, BARRIER=True)
    assert y.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]


def test_the_kernel_and_the_element_are_named():
    with pytest.raises(
        LaunchError, match=r"test_checked_launches.copy_kernel: 1 element loaded from .*x_ptr\[11\]"
    ):
        copy(masked=False)


@pytest.mark.parametrize("shift", [-1, 1, 1 << 40])
def test_load_beside_every_argument(shift):
    with pytest.raises(LaunchError, match=r"loaded from memory that is no argument's, \w_ptr\[-?\d+\]"):
        copy(shift)


@pytest.mark.parametrize(
    ("at_program", "at_lane", "message"),
    [
        (BLOCK, 2, r"stored to by two programs, y_ptr\[4\]"),
        (BLOCK, 0, r"3 elements stored to by two lanes, y_ptr\[0\]"),
        (64, 1, r"8 elements stored to memory that is no argument's, y_ptr\[(64|128)\]"),
    ],
)
def test_stores(at_program, at_lane, message):
    with pytest.raises(LaunchError, match=message):
        fill_kernel[(PROGRAMS,)](torch.zeros(20), at_program, at_lane, BLOCK=BLOCK)


def test_load_of_what_another_program_stores():
    y = torch.zeros(32)
    with pytest.raises(LaunchError, match="stored to by one program and loaded by another"):
        copy_kernel[(PROGRAMS,)](y, y, SIZE, BLOCK, BLOCK=BLOCK, MASKED=True)
    copy_kernel[(PROGRAMS,)](y, y, SIZE, 0, BLOCK=BLOCK, MASKED=True)


@pytest.mark.parametrize(
    "fault",
    [{"barrier": False}, {"sem": "relaxed"}, {"sem": "acquire"}, {"sem": "release"}, {"waits": False}],
    ids=str,
)
def test_sums_of_other_programs(fault):
    def in_several_orders():
        for _ in range(5):
            partial_sums(**fault)

    with pytest.raises(LaunchError, match=r"stored to by one program and loaded by another, places.sums\["):
        in_several_orders()


def test_own_stores_without_a_barrier():
    y = torch.empty(2 * BLOCK)
    with pytest.raises(LaunchError, match=r"4 elements stored to and loaded by a program without a barrier"):
        reverse_kernel[(1,)](y, SIZE=BLOCK, BARRIER=False)


def test_what_a_masked_load_leaves_undefined():
    x, y = torch.ones(BLOCK), torch.ones(BLOCK)
    undefined_kernel[(1,)](x, y, SIZE=BLOCK)
    assert y.isnan().tolist() == [True, False, False, False]
    undefined_kernel[(1,)](x.int(), y.int(), SIZE=BLOCK)


def test_new_memory_is_nan():
    x = torch.ones(2)
    assert all(new.isnan().all() for new in (torch.empty(2), torch.empty_like(x), x.new_empty(2, 3)))
    assert (torch.empty(2, dtype=torch.int32) > 1 << 30).all()


def test_programs_are_shuffled():
    orders = set()
    for _ in range(8):
        y = torch.zeros(16, dtype=torch.int32)
        order_kernel[(16,)](y, torch.zeros(1, dtype=torch.int32))
        assert sorted(y.tolist()) == list(range(16))
        orders.add(tuple(y.tolist()))
    assert len(orders) == 8
