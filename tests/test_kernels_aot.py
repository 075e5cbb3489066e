"""The Triton kernels compile for GPUs that are not here, within a budget of registers and without a spill."""

from __future__ import annotations

import json

import pytest
from kernel_backends import run_python

CAPABILITIES = (80, 90, 100)

# Registers a thread at most. 128 threads work on 512 elements: with 96 registers an SM of 65,536 keeps 5
# blocks of them in flight, with 128 it keeps 4.
BUDGET = {
    "random_bits": 32,
    "logistic_from_bits": 40,
    "gumbel_mask": 48,
    "gumbel_mask_backward": 48,
    "mask_update": 96,
    "mask_update_kl_value": 128,
}
STREAMS_READ = {"gumbel_mask": 2, "gumbel_mask_backward": 3, "mask_update": 5, "mask_update_kl_value": 5}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed")
    # A warm cache would hide a kernel that no longer compiles.
    cache = tmp_path_factory.mktemp("triton")
    arguments = ("aot_compile.py", *map(str, CAPABILITIES))
    done = run_python(*arguments, TRITON_CACHE_DIR=str(cache), TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kernel", BUDGET)
def test_kernel_fits(report, kernel, capability):
    used = report[f"{kernel} sm_{capability}"]
    assert 0 < used["registers"] <= BUDGET[kernel]
    assert used["stack"] == 0  # registers spill to the stack


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("kernel", BUDGET)
def test_arithmetic_is_that_of_the_cpu(report, kernel, capability):
    used = report[f"{kernel} sm_{capability}"]
    assert used["fused"] == 0
    assert used["inexact"] == 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("kernel", "streams"), STREAMS_READ.items())
def test_loads_are_16_bytes_wide(report, kernel, streams, capability):
    assert report[f"{kernel} sm_{capability}"]["wide_loads"] == streams
