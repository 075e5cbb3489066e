"""Operations on every instruction set that this machine runs, with one thread and with two."""

from __future__ import annotations

import functools

import pytest
from kernel_backends import require, run_python

pytestmark = pytest.mark.cpu_kernel

# A process chooses its instruction set at its start: one for each.
PROGRAM = """
import hashlib, sys, torch
sys.path.insert(0, "ops")
import test_mask_update, test_sparse_conv2d
from oes_fast import _C
from oes_fast.ops import gumbel_mask
from oes_fast.ops.philox import logistic_from_bits
print(_C.capability())

strips = (1, 6, 6, 5, 5, 132, 132, 1, 0.15), (1, 6, 6, 5, 5, 259, 259, 2, 0.15)
for case in test_sparse_conv2d.CASES + strips:
    for dtype in test_sparse_conv2d.DTYPES:
        torch.set_num_threads(1)
        one = test_sparse_conv2d.check(case, dtype)
        torch.set_num_threads(2)
        two = test_sparse_conv2d.results(case, dtype)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), (case, dtype)

for threads in (1, 2):
    torch.set_num_threads(threads)
    digest = hashlib.sha256(logistic_from_bits(torch.arange(2**20) * 4095, backend="cpu").numpy().tobytes())
    for dtype in (torch.float32, torch.float64):
        bits = (torch.arange(2**18) << 14) + 12345
        digest.update(logistic_from_bits(bits, dtype, backend="cpu").numpy().tobytes())
        state = test_mask_update.make(100_003, dtype, scale=5.0)
        digest.update(gumbel_mask(state[2], state[0], seed=1, step=2, backend="cpu").numpy().tobytes())
        *tensors, values = test_mask_update.run(state, "cpu", (0, 1, 2), {})
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
        digest.update(repr(values).encode())
    print(digest.hexdigest())
"""
CAPABILITIES = ("default", "avx2", "avx512")


@functools.cache
def digests(capability: str) -> list[str]:
    """Of the mask step on an instruction set, for each number of threads; empty where there is none such."""
    done = run_python("-c", PROGRAM, OES_FAST_CPU_CAPABILITY=capability, OMP_NUM_THREADS="2")
    if "supports no more than" in done.stderr:
        return []
    assert done.returncode == 0, done.stderr
    used, *found = done.stdout.split()
    assert used == capability
    assert len(found) == 2
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_sparse_conv2d_is_the_reference_with_any_threads(capability):
    require("cpu")
    if not digests(capability):
        pytest.skip(f"this processor does not have {capability}")


def test_the_mask_step_has_the_same_bits_always():
    """Noise of words of all sizes, the masked weights, the update and the KL value."""
    require("cpu")
    assert len({digest for capability in CAPABILITIES for digest in digests(capability)}) == 1
