"""The kernels of Triton's chains compile for GPUs that are not here, within the budget of docs/kernels.md.

One launch of every tile that a training step uses is compiled for an H100, and a few for other GPUs. `make
aot` compiles all that a training and a search launch for an H100, and one launch of every tile for others.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from chain_steps import heaviest, inner_loop, label_of, launches_of
from conftest import REPO

from benchmarks import sass, triton_sass
from oes_fast._cuda_toolkit import ToolkitError
from oes_fast.backends import triton_interprets

pytestmark = pytest.mark.skipif(triton_interprets(), reason="an interpreted kernel is not compiled")

ALL = os.environ.get("OES_TEST_ALL_ARCHS") == "1"
ARCHS = ("8.0", sass.DETAILED, "10.0")
OTHERS = ("tap_sum 16x16x256", "weight_grad 16x2x32")  # compiled for the other GPUs in any case
# Not planned for an sm_80, see tap_sum_plan.multiplies_shared_memory.
LARGE = ("tap_sum 128x32x128", "weight_grad 64x1x64", "weight_grad 64x2x32")


class Budget(NamedTuple):
    """What a kernel may need at most, over its variants. No inner loop spills.

    Attributes:
        registers: a thread. An SM has 65,536: 128 threads of 128 leave room for 4 programs, of 255 for 2.
        stack: bytes a thread, outside of the inner loop.
        shared: bytes a program.
        instructions: of the inner loop for an H100, a multiply-accumulate of the sum, for which "float32"
            takes three on tensor cores; of a pass a pixel. None where there is no loop.
        loads: from shared and global memory likewise.
        barriers: in the inner loop.
    """

    registers: int
    stack: int
    shared: int
    instructions: float | None = None
    loads: float | None = None
    barriers: int = 0


# By kernel and tile: outputs, taps and cells of a sum; outputs, places and taps of a weight's gradient.
BUDGET: dict[str, Budget] = {
    "tap_sum 16x32x32": Budget(168, 16, 16384, 2.8, 0.58, 4),
    "tap_sum 16x16x64": Budget(168, 16, 16384, 2.8, 0.45, 4),
    "tap_sum 16x16x128": Budget(255, 16, 26624, 2.0, 0.32, 4),
    "tap_sum 16x16x256": Budget(255, 96, 51200, 1.8, 0.26, 4),
    "tap_sum 32x16x64": Budget(255, 32, 16384, 1.6, 0.27, 4),
    "tap_sum 32x16x128": Budget(255, 48, 27648, 1.25, 0.18, 4),
    "tap_sum 128x16x64": Budget(255, 128, 33792, 0.8, 0.18, 7),
    "tap_sum 128x32x128": Budget(255, 704, 67584, 0.48, 0.11, 7),
    "weight_grad 16x1x64": Budget(160, 0, 8448, 1.8, 0.12, 4),
    "weight_grad 16x2x32": Budget(160, 0, 8448, 1.9, 0.12, 4),
    "weight_grad 16x4x16": Budget(160, 0, 8448, 1.95, 0.12, 4),
    "weight_grad 32x1x64": Budget(192, 0, 8448, 1.1, 0.08, 4),
    "weight_grad 32x2x32": Budget(216, 0, 8448, 1.1, 0.08, 4),
    "weight_grad 32x4x16": Budget(224, 0, 8448, 1.2, 0.08, 4),
    "weight_grad 64x1x64": Budget(255, 0, 16640, 0.72, 0.06, 4),
    "weight_grad 64x2x32": Budget(255, 0, 16640, 0.75, 0.06, 4),
    "norm_pass": Budget(72, 8, 256, 24.0, 1.0, 0),
    "fold_pass": Budget(80, 0, 64, 48.0, 5.0, 0),
    "pack_weights": Budget(48, 0, 0),
    "unpack_weight_grads": Budget(72, 0, 0),
}


def cases() -> tuple[str, ...]:
    """The steps whose kernels are compiled."""
    return ("training", "search") if ALL else ("training",)


@pytest.fixture(scope="module")
def launched():
    """Launches by variant, one of each tile unless all are asked for."""
    try:
        for tool in ("cuobjdump", "nvdisasm"):
            sass.find_tool(tool, None)
    except ToolkitError as error:
        pytest.skip(str(error))
    found = launches_of(*cases())
    return triton_sass.variants(found if ALL else heaviest(found).values())


@pytest.fixture(scope="module")
def compiled(launched, tmp_path_factory):
    """(label, GPU, launch, what it compiles to) of everything that is compiled."""
    of_tile = triton_sass.variants(heaviest(list(launched.values())).values())
    other = {key: launch for key, launch in of_tile.items() if ALL or label_of(launch) in OTHERS}
    found = triton_sass.kernels(launched, [sass.DETAILED])
    found |= triton_sass.kernels(other, [arch for arch in ARCHS if arch != sass.DETAILED])
    return [
        (label_of(launched[key]), arch, launched[key], kernel)
        for arch, kernels in found.items()
        for key, kernel in kernels.items()
        if arch != "8.0" or label_of(launched[key]) not in LARGE
    ]


def test_every_kernel_has_a_budget(launched):
    assert {label_of(launch) for launch in launched.values()} <= set(BUDGET)


def test_nothing_spills_where_it_counts(compiled):
    for label, arch, launch, kernel in compiled:
        loop, _ = inner_loop(launch, kernel)
        # Of the passes for an sm_80 one keeps a number of the channel on the stack.
        assert loop is None or loop.spilled <= 2 * (label == "norm_pass"), (label, arch)


@pytest.mark.parametrize("label", BUDGET)
def test_kernel_fits(compiled, label):
    for name, arch, launch, kernel in compiled:
        if name == label:
            assert 0 < kernel.registers <= BUDGET[label].registers, (arch, launch.arguments)
            assert kernel.stack <= BUDGET[label].stack, arch
            assert kernel.shared <= BUDGET[label].shared, arch
            assert kernel.registers * 32 * launch.options["num_warps"] <= 65_536, arch


@pytest.mark.parametrize("label", [label for label, budget in BUDGET.items() if budget.instructions])
def test_inner_loop(compiled, label):
    budget = BUDGET[label]
    heavy = list(heaviest([launch for name, _, launch, _ in compiled if name == label]).values())
    assert heavy, label
    for _, arch, launch, kernel in compiled:
        if launch in heavy and arch == sass.DETAILED:
            loop, count = inner_loop(launch, kernel)
            assert loop is not None
            assert 0 < loop.instructions / count <= budget.instructions
            loads = loop.shared_loads + loop.global_loads + loop.copies
            assert loads / count <= budget.loads
            assert loop.barriers <= budget.barriers


def test_the_budget_is_the_one_that_is_written_down():
    text = (REPO / "docs" / "kernels.md").read_text("utf-8")
    for label, budget in BUDGET.items():
        cells = ["" if number is None else str(number) for number in budget]
        assert f"| `{label}` | {' | '.join(cells)} |" in text
