"""What a step launches on a GPU, held to a budget: kernels and operators are nodes of the recording."""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import triton_launches
from oes_fast.backends import triton_interprets

pytestmark = pytest.mark.skipif(triton_interprets(), reason="launches of compiled kernels are recorded")

# By step: kernels of our own, operators of torch's. Before there were chains: 258 and 165 in all.
BUDGET = {"training": (89, 3), "search": (90, 4)}
VARIANTS = {"training": 65, "search": 65}  # that Triton compiles for a first step
NEVER = {
    "zeros",  # made by autograd for gradients that nobody reads
    "slice_backward",  # of a view of everything
    "mul",  # weights that are scaled in every step
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


def test_weights_move_at_once(step):
    kernels = step[1]["kernels"]
    assert kernels["pack_weights_kernel"] == kernels["unpack_weight_grads_kernel"] == 1


def test_a_first_step_compiles_few_variants(step):
    launches = [node for node in nodes_of(step[0]) if isinstance(node, triton_launches.Launch)]
    assert len({triton_launches.variant(launch).key for launch in launches}) <= VARIANTS[step[0]]


def test_the_last_evaluation_needs_no_kernel_of_its_own():
    """It would be compiled at the very end of a run, one kernel after the other."""
    nodes = []
    with triton_launches.as_on_an_h100(), triton_launches.launches(lambda launch: None):
        run = triton_launches.run_of("training", "drawn", 192)
        run.evaluate(0, final=False)
        with triton_launches.recorded(nodes):
            run.evaluate(0, final=True)
    last, usual = (
        {triton_launches.variant(node).key for node in of if isinstance(node, triton_launches.Launch)}
        for of in (nodes, nodes_of("training"))
    )
    assert last
    assert last <= usual
