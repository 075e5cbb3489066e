"""What a step launches on a GPU, held to a budget: kernels and operators are nodes of the recording."""

from __future__ import annotations

import json

import pytest
from kernel_backends import run_python

# By step: kernels of our own, operators of torch's.
BUDGET = {"train": (157, 101), "search": (96, 69)}
VARIANTS = {"train": 118, "search": 57}  # that Triton compiles for a first step, all configurations tried
NEVER = {
    "zeros",  # made by autograd for gradients that nobody reads
    "slice_backward",  # of a view of everything
    "_local_scalar_dense", "equal", "nonzero", "item", "is_nonzero", "masked_select",  # wait for the device
}  # fmt: skip


@pytest.fixture(scope="module")
def counted():
    pytest.importorskip("triton", reason="Triton is not installed")
    done = run_python("kernels/count_nodes.py", *BUDGET)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=list(BUDGET))
def step(request, counted):
    return request.param, counted[request.param]


def test_a_step_keeps_to_its_budget(step):
    which, (kernels, operators) = step[0], (step[1]["kernels"], step[1]["operators"])
    most_kernels, most_operators = BUDGET[which]
    assert sum(kernels.values()) <= most_kernels, kernels
    assert sum(operators.values()) <= most_operators, operators


def test_nothing_is_made_for_nobody(step):
    operators = step[1]["operators"]
    assert not NEVER & operators.keys(), operators


def test_batches_are_counted_at_once(step):
    which, operators = step[0], step[1]["operators"]
    assert operators.get("_foreach_add_", 0) == (which == "train")
    assert operators.get("add_", 0) <= 1  # the clock


def test_weights_are_not_scaled_in_every_step(step):
    which, operators = step[0], step[1]["operators"]
    # Of the channels whose input is constant: two statistics in each of six layers.
    assert operators.get("mul", 0) <= (12 if which == "train" else 0)


def test_a_first_step_compiles_few_variants(step):
    which, found = step
    assert len(found["variants"]) <= VARIANTS[which]
