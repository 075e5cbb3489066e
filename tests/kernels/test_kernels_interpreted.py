"""The tests of the Triton kernels once more, under the interpreter, which a process chooses at its start."""

from __future__ import annotations

import os

import pytest
from kernel_backends import run_python


def test_triton_kernels_on_cpu_tensors():
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        pytest.skip("this process interprets already")
    chosen = ("-m", "device or interpreted", "-k", "triton or interpreted", "kernels", "ops", "rewrite")
    done = run_python(
        "-m", "pytest", "-x", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen, TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SKIPPED" not in done.stdout, done.stdout
