"""What a step launches on a GPU, held to a budget: kernels and operators are nodes of the recording."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import triton_launches
from oes_fast.backends import triton_interprets

pytestmark = pytest.mark.skipif(triton_interprets(), reason="launches of compiled kernels are recorded")

# By step: kernels of our own, operators of torch's.
BUDGET = {"training": (157, 100), "search": (96, 68)}
VARIANTS = {"training": 118, "search": 57}  # that Triton compiles for a first step, all configurations tried
NEVER = {
    "zeros",  # made by autograd for gradients that nobody reads
    "slice_backward",  # of a view of everything
    "_local_scalar_dense", "equal", "nonzero", "item", "is_nonzero", "masked_select",  # wait for the device
}  # fmt: skip


@functools.cache
def nodes_of(case):
    return triton_launches.step(case, size=192)


@pytest.fixture(params=list(BUDGET))
def step(request):
    return request.param, triton_launches.counted(nodes_of(request.param))


def test_a_step_keeps_to_its_budget(step):
    which, (kernels, operators) = step[0], (step[1]["kernels"], step[1]["operators"])
    most_kernels, most_operators = BUDGET[which]
    assert 0 < sum(kernels.values()) <= most_kernels, kernels
    assert sum(operators.values()) <= most_operators, operators


def test_nothing_is_made_for_nobody(step):
    operators = step[1]["operators"]
    assert not NEVER & operators.keys(), operators


def test_batches_are_counted_at_once(step):
    which, operators = step[0], step[1]["operators"]
    assert operators.get("_foreach_add_", 0) == (which == "training")
    assert operators.get("add_", 0) <= 1  # the clock


def test_weights_are_not_scaled_in_every_step(step):
    which, operators = step[0], step[1]["operators"]
    # Of the channels whose input is constant: two statistics in each of six layers.
    assert operators.get("mul", 0) <= (12 if which == "training" else 0)


@pytest.mark.parametrize("case", VARIANTS)
def test_a_first_step_compiles_few_variants(case):
    seen = []
    with triton_launches.as_on_an_h100(), triton_launches.launches(seen.append, every_config=True):
        run = triton_launches.run_of(case, "drawn", 192)
        run.forward(0, final=False)
        run.update(0)
    variants = {triton_launches.variant(launch) for launch in seen}
    assert 0 < len(variants) <= VARIANTS[case]


def test_the_last_evaluation_needs_no_kernel_of_its_own():
    """It would be compiled at the very end of a run, one kernel after the other."""
    nodes = []
    with triton_launches.as_on_an_h100(), triton_launches.launches(lambda launch: None):
        run = triton_launches.run_of("training", "drawn", 192)
        run.evaluate(0, final=False)
        with triton_launches.recorded(nodes):
            run.evaluate(0, final=True)
    last, usual = (
        {triton_launches.variant(node) for node in of if isinstance(node, triton_launches.Launch)}
        for of in (nodes, nodes_of("training"))
    )
    assert last
    assert last <= usual, sorted(last - usual)
