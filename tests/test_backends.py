"""Which backends there are, why one is missing, and how an operation chooses."""

from __future__ import annotations

import importlib

import pytest
import torch
from kernel_backends import require, run_python

import oes_fast as oes
from oes_fast.backends import NAMES, BackendStatus, automatic_order, backends, resolve
from oes_fast.errors import BackendError, InputError

ALL = ("cpu", "triton", "reference")


def test_names_and_order():
    assert tuple(oes.backends()) == NAMES == ("reference", "torch", "cpu", "triton", "cuda")


def test_status_says_what_to_do():
    for name, status in backends().items():
        assert bool(status) == status.available
        if status:
            assert str(status) == "available"
        else:
            assert str(status).startswith("not available: ")
            assert len(status.reason) > 30, name
    assert backends()["reference"]
    assert backends()["torch"]
    cuda = backends()["cuda"]
    assert cuda or "nvcc" in cuda.reason or "sees no GPU" in cuda.reason or "was built for" in cuda.reason


def test_auto_takes_the_fastest_that_can_run(monkeypatch):
    require("cpu")
    assert resolve("auto", "cpu", ALL) == "cpu"
    assert resolve("auto", "cpu", ("reference",)) == "reference"
    assert resolve("auto", "cpu", ("torch", "reference")) == "torch"
    assert resolve("auto", "meta", ALL) == "reference"
    monkeypatch.setenv("OES_FAST_DISABLE_BACKENDS", "cpu, triton")
    assert resolve("auto", "cpu", ALL) == "reference"
    assert "switched off" in str(backends()["cpu"])
    with pytest.raises(BackendError, match="switched off by OES_FAST_DISABLE_BACKENDS"):
        resolve("cpu", "cpu", ALL)


def test_auto_on_a_gpu_takes_cuda_before_triton(monkeypatch):
    there = dict.fromkeys(NAMES, BackendStatus(True))
    module = importlib.import_module("oes_fast.backends")  # not the package's function of that name
    monkeypatch.setattr(module, "_status", lambda name, device=None: there[name])
    assert resolve("auto", "cuda", NAMES) == "cuda"
    assert resolve("auto", "cuda", ("cpu", "triton", "reference")) == "triton"  # an operation of no other
    there["cuda"] = BackendStatus(False, "not built")
    assert resolve("auto", "cuda", NAMES) == "triton"
    assert automatic_order()["cuda"] == (
        "cuda, triton, torch, reference (for runs of some thousand steps, as measured on an H100)"
    )


def test_each_gpu_is_asked_for_itself(monkeypatch):
    module = importlib.import_module("oes_fast.backends")
    current = [0]

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_):
            current[0] = self.before

    monkeypatch.setattr(module._cuda_extension, "emulated", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(module, "_probe_cuda", lambda: BackendStatus(current[0] == 0, "built for others"))
    monkeypatch.setattr(module, "_probe_triton", lambda: BackendStatus(True))
    module._probe.cache_clear()
    for _ in range(2):
        assert resolve("auto", "cuda:1", NAMES) == "triton"
        assert resolve("auto", "cuda:0", NAMES) == resolve("auto", "cuda", NAMES) == "cuda"
        with pytest.raises(BackendError, match="built for others"):
            resolve("cuda", "cuda:1", NAMES)
    module._probe.cache_clear()


def test_named_backend_is_taken_or_refused():
    assert resolve("reference", "cpu", ALL) == "reference"
    assert resolve("torch", "cpu", ALL) == "reference"
    assert resolve("torch", "cpu", ("torch", "reference")) == "torch"
    with pytest.raises(BackendError, match=r"'cuda' (is not available|does not have the operation)"):
        resolve("cuda", "cpu", ALL)
    with pytest.raises(InputError, match=r"backend: expected one of auto, reference, .* got 'gpu'"):
        resolve("gpu", "cpu", ALL)
    require("cpu")
    with pytest.raises(BackendError, match="needs tensors on cpu, got meta"):
        resolve("cpu", torch.device("meta"), ALL)
    with pytest.raises(BackendError, match="does not have the operation for these tensors"):
        resolve("cpu", "cpu", ("reference",))


def test_unknown_name_in_the_switch(monkeypatch):
    monkeypatch.setenv("OES_FAST_DISABLE_BACKENDS", "cpu,reference")
    with pytest.raises(InputError, match=r"OES_FAST_DISABLE_BACKENDS: .*, got reference"):
        backends()


def test_status_is_frozen():
    with pytest.raises(AttributeError):
        BackendStatus(True).available = False


def test_capability_must_be_known_and_supported():
    require("cpu")
    done = run_python("-c", "import oes_fast; oes_fast.backends()", OES_FAST_CPU_CAPABILITY="avx1024")
    assert (
        "InputError: OES_FAST_CPU_CAPABILITY: expected default, avx2 or avx512, got 'avx1024'" in done.stderr
    )


def test_package_works_without_the_extension_and_without_triton():
    """As installed where torch was missing while building: neither imports, and all runs on the reference."""
    program = """
import sys
sys.modules["oes_fast._C"] = None
sys.modules["triton"] = None
import oes_fast.cli.app
# The compiler alone would double the time of every start.
slow = {"torch._dynamo", "sympy", "matplotlib", "scipy.stats", "scipy.ndimage", "skimage.transform"}
assert not slow & sys.modules.keys()
import torch, oes_fast.kernels
from oes_fast.ops import gumbel_mask
status = oes_fast.backends()
assert not status["cpu"] and not status["triton"]
assert "pip install" in str(status["cpu"]) and "pip install" in str(status["triton"])
assert torch.isfinite(gumbel_mask(torch.ones(9), torch.zeros(9), seed=0, step=0)).all()
try:
    gumbel_mask(torch.ones(9), torch.zeros(9), seed=0, step=0, backend="cpu")
except oes_fast.BackendError as error:
    print(error)
noisy = torch.rand(1, 1, 32, 32)
net, z = oes_fast.models.skip(4, 1, num_channels_down=(4,)), oes_fast.noise_input(4, (32, 32))
oes_fast.search_mask(net, z, noisy, steps=1, verify=True)
assert "torch._dynamo" not in sys.modules  # nor is it needed for a trace and its verification
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert "backend 'cpu' is not available: the C++ extension" in done.stdout
