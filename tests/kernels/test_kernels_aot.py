"""The Triton kernels compile for GPUs that are not here, within the budget of docs/kernels.md."""

from __future__ import annotations

import json
import os

import pytest
from conftest import REPO
from kernel_backends import run_python

# Less than there is is enough for most, see aot_compile.jobs: `make aot` compiles everything.
EVERYTHING = os.environ.get("OES_TEST_ALL_ARCHS") == "1"
TARGETS = ("sm_80", "sm_90", "sm_100") if EVERYTHING else ("sm_90",)  # held to the budget
COMPILED = ("sm_75", "sm_86", "sm_89", "sm_120", "gfx942") if EVERYTHING else ("sm_75", "gfx942")  # only that

# By kernel, over all its configurations: registers a thread and bytes of shared memory a program at most. An
# SM has 65,536 registers; 128 threads of 96 leave room for 5 programs, of 128 for 4, of 224 for 2. Shared
# memory beyond 48 KB is what older devices lack.
BUDGET = {
    "random_bits": (32, 1024),
    "logistic_from_bits": (40, 0),
    "gumbel_mask": (48, 0),
    "gumbel_mask_clock": (48, 0),
    "gumbel_mask_backward": (48, 0),
    "mask_update": (96, 0),
    "mask_update_clock": (96, 0),
    "mask_update_kl_value": (128, 64),
    "masked_adam": (48, 0),
    "masked_adam_mask": (48, 0),
    "masked_adam_clock": (48, 0),
    "tap_sum": (232, 1024),
    "tap_sum_64_bit": (200, 0),
    "weight_grad": (128, 256),
    "frame": (40, 0),
    "split": (48, 0),
    "merge": (40, 0),
    "up_add": (40, 0),
    "up_spread": (64, 0),
    "take": (24, 0),
    "norm_whole_pad0": (64, 128),
    "norm_whole_backward_pad0": (56, 128),
    "norm_whole_pad2": (64, 64),
    "norm_whole_backward_pad2": (168, 64),
    "moments": (56, 64),
    "norm_pad0": (40, 64),
    "norm_sums_pad0": (56, 64),
    "norm_backward_pad0": (48, 64),
    "norm_pad2": (48, 64),
    "norm_sums_pad2": (104, 64),
    "norm_backward_pad2": (96, 64),
    "norm_act0": (40, 64),
    "norm_sums_act0": (104, 64),
    "norm_act2": (40, 64),
    "norm_sums_act2": (104, 64),
    "norm_act3": (40, 64),
    "norm_sums_act3": (104, 64),
    "running_stats": (32, 0),
    "running_stats_layers": (32, 0),
    "head": (72, 128),
    "head_backward": (88, 128),
    "dense_float32": (200, 24576),
    "dense_tf32": (128, 24576),
    "dense_bf16": (128, 24576),
    "dense_input_float32": (144, 16384),
    "dense_input_tf32": (128, 16384),
    "dense_input_bf16": (128, 16384),
    "dense_weight_float32": (224, 28672),
    "dense_weight_tf32": (192, 28672),
    "dense_weight_bf16": (192, 28672),
}
# Kernels whose results are those of the CPU's to the last bit: no fused and no approximate arithmetic.
EXACT = ("random_bits", "logistic_from_bits", "gumbel_mask", "gumbel_mask_clock", "gumbel_mask_backward",
         "mask_update", "mask_update_clock", "mask_update_kl_value", "masked_adam", "masked_adam_mask",
         "masked_adam_clock")  # fmt: skip
STREAMS_READ = {
    "gumbel_mask": 2, "gumbel_mask_backward": 3, "mask_update": 5, "mask_update_kl_value": 5,
    "masked_adam": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed")
    # A warm cache would hide a kernel that no longer compiles.
    cache = tmp_path_factory.mktemp("triton")
    arguments = ("kernels/aot_compile.py", "all" if EVERYTHING else "some")
    environment = {"TRITON_CACHE_DIR": str(cache), "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = run_python(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def of_kernel(report, kernel, target):
    """What each configuration of a kernel needs, by its label."""
    found = {
        name: used
        for name, used in report.items()
        if name.endswith(f" {target}") and name.split(" ")[0].split("[")[0] == kernel
    }
    assert found, kernel
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", BUDGET)
def test_kernel_fits(report, kernel, target):
    registers, shared = BUDGET[kernel]
    for name, used in of_kernel(report, kernel, target).items():
        assert 0 < used["registers"] <= registers, name
        assert used["stack"] == 0, name  # registers spill to the stack
        assert used["shared"] <= shared, name
        assert used["registers"] * used["threads"] <= 65_536, name


def test_every_kernel_has_a_budget(report):
    assert {name.split(" ")[0].split("[")[0] for name in report} == set(BUDGET)


@pytest.mark.parametrize("target", COMPILED)
def test_kernels_compile(report, target):
    found = {name.split(" ")[0]: used for name, used in report.items() if target in name.split(" ")}
    assert len(found) >= 27
    assert found.keys() == {name.split(" ")[0] for name in report if COMPILED[1] in name.split(" ")}
    assert all(used["bytes"] > 0 for used in found.values())


def test_kernels_compile_with_integers_that_are_one(report):
    ones = {name.split(" ")[0] for name in report if name.endswith(" sm_75 ones")}
    assert ones == {name.split(" ")[0] for name in report if name.endswith(" gfx942")}


def test_the_budget_is_the_one_that_is_written_down():
    text = (REPO / "docs" / "kernels.md").read_text("utf-8")
    for kernel, (registers, shared) in BUDGET.items():
        assert f"| `{kernel}` | {registers} | {shared} |" in text


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", EXACT)
def test_arithmetic_is_that_of_the_cpu(report, kernel, target):
    for name, used in of_kernel(report, kernel, target).items():
        assert used["fused"] == 0, name
        assert used["inexact"] == 0, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kernel", "streams"), STREAMS_READ.items())
def test_loads_are_16_bytes_wide(report, kernel, streams, target):
    for name, used in of_kernel(report, kernel, target).items():
        assert used["wide_loads"] == streams, name
