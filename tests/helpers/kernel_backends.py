"""Which kernels the tests of the mask step can run here, and how to run some of them in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import oes_fast as oes
from oes_fast import _cuda_extension

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

if INTERPRETED:
    from checked_launches import check_launches
    from quick_interpreter import quicken

    quicken()
    check_launches()

TESTS = Path(__file__).resolve().parents[1]
KERNELS = ("cpu", "triton")  # of every operation
MASK_KERNELS = (*KERNELS, "cuda")  # of those on masks
# Beside "cpu", the kernels that take tensors of the CPU: those of CUDA where they are emulated.
EMULATED = ("cuda",) if _cuda_extension.emulated() else ()


def require(backend: str) -> None:
    """Skip the test where the backend cannot run, with its reason; a stale extension fails it."""
    status = oes.backends()[backend]
    if "is stale" in status.reason:
        pytest.fail(f"{backend} is {status}", pytrace=False)
    if not status:
        pytest.skip(f"{backend} is {status}")


def device_of(backend: str) -> str:
    """Where tensors for the backend lie: under Triton's interpreter and the emulation of CUDA on the CPU."""
    if backend == "cuda":
        return _cuda_extension.device_type()
    return "cuda" if backend == "triton" and not INTERPRETED else "cpu"


def dtypes_of(backend: str) -> tuple[torch.dtype, ...]:
    """The dtypes the backend's kernels take."""
    return (torch.float32,) if backend == "triton" else (torch.float32, torch.float64)


def examples_of(backend: str, usual: int) -> int:
    """How many examples to draw: few under the interpreter, which is slow."""
    return min(usual, 4) if backend == "triton" and INTERPRETED else usual


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with other environment variables, in the directory of the tests, which it imports from."""
    path = os.pathsep.join([str(TESTS), str(TESTS / "helpers"), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    return subprocess.run(
        [sys.executable, *arguments],
        # The programs import torch before oes_fast, which then cannot keep threads from spinning.
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": "1000",
            **environment,
        },
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
