"""How the CUDA extension and its emulation are built, when one is refused, and what the backend says."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import REPO

import oes_fast as oes
from oes_fast import _cuda_extension, _extension
from oes_fast._cuda_toolkit import ToolkitError, find_toolkit
from oes_fast._extension import CPU, CUDA, EMULATED_CUDA
from oes_fast.backends import BackendStatus

backends = importlib.import_module("oes_fast.backends")  # oes_fast.backends is the function

TORCH = "2.13.0+cpu"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
needs_gcc = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ on Linux"
)

MODULE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "cuda/norm/scale.h"
#define NAMED(name) PyInit_##name
#define INIT(name) NAMED(name)
#define STRING(name) #name
#define NAME(name) STRING(name)

static PyObject* scaled(PyObject*, PyObject* by) {
  float values[5] = {0, 1, 2, 3, 4};
  oes::cuda::norm::scale(values, 5, static_cast<float>(PyFloat_AsDouble(by)));
  return PyFloat_FromDouble(values[4]);
}
static PyMethodDef methods[] = {{"scaled", scaled, METH_O, ""}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, NAME(OES_MODULE), "", -1, methods};
extern "C" __attribute__((visibility("default"))) PyObject* INIT(OES_MODULE)() {
  return PyModule_Create(&module);
}
"""
CSRC = "csrc"  # of a checkout that is made up
HEADER = "#pragma once\nnamespace oes::cuda::norm {\nvoid scale(float* values, int count, float by);\n}\n"
KERNEL = """
#include "cuda/norm/scale.h"
#ifdef OES_EMULATE_CUDA
#include "cuda_emulation.h"
#else
#include <cuda_runtime.h>
#endif
__global__ void scale_kernel(float* values, int count, float by) {
  if (const int i = threadIdx.x; i < count) {
    values[i] *= by;
  }
}
void oes::cuda::norm::scale(float* values, int count, float by) {
#ifdef OES_EMULATE_CUDA
  emulate(count, [&] { scale_kernel(values, count, by); });
#else
  scale_kernel<<<1, 32>>>(values, count, by);
#endif
}
"""
EMULATION_HEADER = """
#pragma once
#include <functional>
#define __global__
struct uint3 { unsigned x, y, z; };
extern uint3 threadIdx;
void emulate(unsigned threads, const std::function<void()>& kernel);
"""
EMULATION = """
#include "cuda_emulation.h"
uint3 threadIdx;
void emulate(unsigned threads, const std::function<void()>& kernel) {
  for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
}
#define OF_SIZE(n) \\
  void __tsan_read##n(void*) {} \\
  void __tsan_write##n(void*) {} \\
  void __tsan_unaligned_read##n(void*) {} \\
  void __tsan_unaligned_write##n(void*) {}
extern "C" {
OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void*, long) {}
void __tsan_write_range(void*, long) {}
}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A source folder with one kernel, and an emulation that is enough for it."""
    root = tmp_path / "source folder"
    for name, text in {
        f"{CSRC}/common/shared.h": "#pragma once\n",
        "csrc/cpu/core/parallel.h": "#pragma once\n",
        "csrc/cuda/module.cpp": MODULE,
        f"{CSRC}/cuda/norm/scale.h": HEADER,
        f"{CSRC}/cuda/norm/scale.cu": KERNEL,
        "tests/cuda_emulation/cuda_emulation.h": EMULATION_HEADER,
        "tests/cuda_emulation/cuda_emulation.cpp": EMULATION,
        "tests/cuda_emulation/self_test/main.cpp": "int main() {}\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "oes_fast").mkdir()
    for name in ("setup.py", *(f"oes_fast/{n}.py" for n in ("_extension", "_cuda_toolkit", "requirements"))):
        shutil.copy(REPO / name, root / name)
    return root


def build(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py there; extensions are put beside their package unless arguments say otherwise."""
    ours = (
        "FORCE_CUDA",
        "TORCH_CUDA_ARCH_LIST",
        "OES_EMULATE_CUDA",
        "OES_SANITIZE",
        "OES_REQUIRE_EXT",
        "MAX_JOBS",
    )
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *(arguments or ("--inplace",))],
        cwd=root,
        env=plain | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def built(root: Path, extension: _extension.Extension) -> Path:
    return root / "oes_fast" / f"{extension.name.rpartition('.')[2]}{SUFFIX}"


def written(root: Path, extension: _extension.Extension, archs: tuple[str, ...] = ()) -> Path:
    """A file as the compiler would make it, with what the extension says of itself somewhere in it."""
    (said,) = re.findall(r'R"\((.*)\)"', extension.identity(root, [], archs, nvcc="13.0"))
    path = root / "written.so"
    path.write_bytes(b"\x7fELF\0code\0" + said.encode() + b"\0more\0")
    return path


class TestIdentity:
    def test_names_what_it_was_compiled_for(self, checkout):
        path = written(checkout, CUDA, ("8.0", "9.0+PTX"))
        assert _extension.read_identity(path) == {
            "sources": CUDA.source_hash(checkout, [], ["8.0", "9.0+PTX"]),
            "variants": [],
            "built_with_nvcc": "13.0",
            "needs_torch": "2.10",
            "archs": ["8.0", "9.0+PTX"],
        }
        assert _extension.archs_of(_extension.read_identity(path)) == ["8.0", "9.0+PTX"]
        assert _extension.archs_of(None) == []
        assert CUDA.refusal(path, TORCH, checkout) == ""
        assert CUDA.source_hash(checkout, [], ["9.0"]) != CUDA.source_hash(checkout, [], ["8.0"])

    @pytest.mark.parametrize(
        ("changed", "stale"),
        [
            (f"{CSRC}/cuda/norm/scale.cu", [CUDA, EMULATED_CUDA]),
            (f"{CSRC}/cuda/norm/new.h", [CUDA, EMULATED_CUDA]),
            (f"{CSRC}/common/shared.h", [CPU, CUDA, EMULATED_CUDA]),
            ("csrc/cpu/core/parallel.h", [CPU]),
            ("tests/cuda_emulation/cuda_emulation.cpp", [EMULATED_CUDA]),
            ("tests/cuda_emulation/self_test/main.cpp", []),
        ],
    )
    def test_each_is_stale_by_its_own_sources(self, checkout, changed, stale):
        extensions = {each.name: each for each in (CPU, CUDA, EMULATED_CUDA)}
        before = {name: each.source_hash(checkout, []) for name, each in extensions.items()}
        (checkout / changed).write_text("// changed\n")
        after = {name: each.source_hash(checkout, []) for name, each in extensions.items()}
        assert {name for name in before if before[name] != after[name]} == {each.name for each in stale}

    def test_says_which_one_is_stale(self, checkout):
        path = written(checkout, CUDA, ("9.0",))
        (checkout / "csrc" / "cuda" / "norm" / "scale.cu").write_text("// changed\n")
        assert CUDA.refusal(path, TORCH, checkout).startswith(
            "the CUDA extension is stale: csrc or its flags"
        )

    def test_of_two_sanitizers_one_is_taken(self):
        assert EMULATED_CUDA.flags_of_kernels([]) == ["-fsanitize=thread"]
        assert EMULATED_CUDA.flags_of_kernels(["OES_SANITIZE"]) == []
        assert "-fsanitize=address,undefined" in EMULATED_CUDA.compiler_flags(["OES_SANITIZE"])


@needs_gcc
class TestBuild:
    def test_emulated(self, checkout):
        done = build(checkout, OES_EMULATE_CUDA="1")
        assert done.returncode == 0, done.stderr
        path = built(checkout, EMULATED_CUDA)
        assert EMULATED_CUDA.refusal(path, TORCH, checkout) == ""
        program = "import _C_cuda_emulated as kernels; print(kernels.scaled(2.5))"
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True, check=False
        )
        assert ran.stdout == "10.0\n", ran.stderr

        objects = {path: path.stat().st_mtime_ns for path in (checkout / "build").rglob("*.o")}
        (checkout / "csrc" / "cuda" / "norm" / "scale.h").write_text(HEADER + "// changed\n")
        assert build(checkout, OES_EMULATE_CUDA="1").returncode == 0
        again = {path.name for path, time in objects.items() if path.stat().st_mtime_ns != time}
        assert again == {"scale.o", "module.o", "identity.o"}
        assert EMULATED_CUDA.refusal(path, TORCH, checkout) == ""

    def test_emulated_is_never_installed(self, checkout):
        done = build(checkout, "--build-lib", "lib", OES_EMULATE_CUDA="1")
        assert done.returncode == 0, done.stderr
        assert not list((checkout / "lib").rglob("_C_cuda*"))

    def test_for_a_gpu_that_is_not_here(self, checkout):
        try:
            find_toolkit()
        except ToolkitError as error:
            pytest.skip(str(error))
        done = build(checkout, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0+PTX")
        assert done.returncode == 0, done.stderr
        path = built(checkout, CUDA)
        assert CUDA.refusal(path, TORCH, checkout) == ""
        said = _extension.read_identity(path)
        assert said["archs"] == ["9.0+PTX"]
        # It links to no CUDA library that would have to be there, and loads without a GPU.
        program = "import _C_cuda as kernels; print(kernels.scaled)"
        ran = subprocess.run(
            [sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True, check=False
        )
        assert "built-in function scaled" in ran.stdout, ran.stderr
        kernel = next((checkout / "build").rglob("scale.o"))
        before = kernel.stat().st_mtime_ns
        assert build(checkout, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0+PTX").returncode == 0
        assert kernel.stat().st_mtime_ns == before

    def test_without_a_cuda_torch_it_is_not_tried(self, checkout):
        if torch.version.cuda:
            pytest.skip("this torch is for CUDA")
        done = build(checkout, CUDA_HOME="/no/toolkit")
        assert done.returncode == 0, done.stderr
        assert "CUDA" not in done.stderr
        assert built(checkout, CPU).is_file()
        assert not built(checkout, CUDA).exists()

    def test_with_force_it_fails_without_nvcc(self, checkout):
        done = build(checkout, FORCE_CUDA="1", CUDA_HOME="/no/toolkit")
        assert done.returncode == 1
        said = "FORCE_CUDA=1, but the CUDA extension cannot be built: CUDA_HOME is /no/toolkit"
        assert said in done.stderr

    @pytest.mark.parametrize("broken", ["toolkit", "archs", "kernel"])
    def test_otherwise_the_rest_is_installed(self, checkout, broken):
        """With a torch for CUDA, whatever is wrong with the toolkit or the kernels."""
        (checkout / "torch").mkdir()
        (checkout / "torch" / "__init__.py").touch()
        (checkout / "torch" / "version.py").write_text(
            f"__version__ = {torch.__version__!r}\ncuda = '13.0'\n"
        )
        for folder in ("include", "lib"):
            (checkout / "torch" / folder).symlink_to(Path(torch.__file__).parent / folder)
        variables = {"PYTHONPATH": str(checkout)}
        if broken == "toolkit":
            variables["CUDA_HOME"] = "/no/toolkit"
        else:
            try:
                find_toolkit()
            except ToolkitError as error:
                pytest.skip(str(error))
            variables["TORCH_CUDA_ARCH_LIST"] = "Fermi" if broken == "archs" else "9.0"
        if broken == "kernel":
            (checkout / "csrc" / "cuda" / "norm" / "scale.cu").write_text("this is not C++\n")
        done = build(checkout, OES_REQUIRE_EXT="1", **variables)
        assert done.returncode == 0, done.stderr
        reason = {
            "toolkit": "CUDA_HOME is",
            "archs": "TORCH_CUDA_ARCH_LIST: ",
            "kernel": "nvcc fails on csrc",
        }
        assert f"INSTALLING WITHOUT THE CUDA EXTENSION: {reason[broken]}" in done.stderr
        assert "The CUDA kernels will be missing" in done.stderr
        assert built(checkout, CPU).is_file()
        assert not built(checkout, CUDA).exists()


class TestBackend:
    @pytest.fixture
    def cuda(self, monkeypatch):
        """Sets what there is of the CUDA extension, and returns the backend's status."""

        refusal = _extension.Extension.refusal
        works = SimpleNamespace(processors={3: 132}.__getitem__)

        def status(
            path: Path | None, root: Path, gpu: tuple[int, int] | None = None, module: Any = works
        ) -> BackendStatus:
            monkeypatch.setattr(_extension.Extension, "find", lambda extension: path)
            monkeypatch.setattr(
                _extension.Extension, "refusal", lambda self, path, torch: refusal(self, path, torch, root)
            )
            monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
            monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
            monkeypatch.setattr(backends.importlib, "import_module", lambda name: module)
            monkeypatch.setattr(backends.sys, "platform", "linux")
            return backends._probe_cuda()

        return status

    def test_not_built(self, cuda, checkout):
        status = cuda(None, checkout)
        said = "the CUDA extension was not built; with CUDA's nvcc and a CUDA build of torch installed, run: "
        assert status.reason.startswith(said + "FORCE_CUDA=1 ")

    def test_no_gpu(self, cuda, checkout):
        assert "PyTorch sees no GPU" in cuda(written(checkout, CUDA, ("9.0",)), checkout).reason

    def test_stale(self, cuda, checkout):
        path = written(checkout, CUDA, ("9.0",))
        (checkout / "csrc" / "cuda" / "norm" / "scale.h").touch()
        assert cuda(path, checkout, (9, 0))
        (checkout / "csrc" / "cuda" / "norm" / "scale.h").write_text("// changed\n")
        reason = cuda(path, checkout, (9, 0)).reason
        assert reason.startswith("the CUDA extension is stale: ")
        assert "; run: FORCE_CUDA=1 " in reason

    def test_a_gpu_it_was_not_compiled_for(self, cuda, checkout):
        path = written(checkout, CUDA, ("8.0", "9.0"))
        assert cuda(path, checkout, (8, 9))
        reason = cuda(path, checkout, (12, 0)).reason
        assert reason.startswith(
            "the CUDA extension was built for GPUs of compute capability 8.0, 9.0, and a GPU "
        )
        assert "has 12.0; run: TORCH_CUDA_ARCH_LIST=12.0 FORCE_CUDA=1 " in reason
        assert cuda(written(checkout, CUDA, ("9.0+PTX",)), checkout, (12, 0))

    def test_a_driver_too_old_for_it(self, cuda, checkout):
        def processors(device: int) -> int:
            raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")

        fails = SimpleNamespace(processors=processors)
        reason = cuda(written(checkout, CUDA, ("9.0",)), checkout, (9, 0), fails).reason
        assert reason.startswith("the CUDA extension does not run here (CUDA driver version is insufficient")
        assert "update the driver" in reason

    def test_emulated_takes_tensors_of_the_cpu(self, monkeypatch):
        monkeypatch.setenv("OES_FAST_EMULATE_CUDA", "1")
        monkeypatch.setattr(
            backends, "_probe", lambda name, emulated, index=None: BackendStatus(emulated or name != "cuda")
        )
        assert oes.backends()["cuda"]
        assert backends.resolve("cuda", "cpu", ("cuda", "reference")) == "cuda"
        with pytest.raises(oes.BackendError, match="needs tensors on cpu, got meta"):
            backends.resolve("cuda", "meta", ("cuda", "reference"))
        assert backends.resolve("auto", "cpu", ("cuda", "reference")) == "reference"
        monkeypatch.delenv("OES_FAST_EMULATE_CUDA")
        assert not oes.backends()["cuda"]

    def test_emulated_says_how_to_build_it(self, monkeypatch, tmp_path):
        monkeypatch.setattr(_extension.Extension, "find", lambda extension: None)
        reason = backends._probe_emulated_cuda().reason
        assert reason.startswith("the emulated CUDA extension was not built; ")
        assert "run: OES_EMULATE_CUDA=1 " in reason
        monkeypatch.setattr(_extension, "ROOT", tmp_path)
        assert "is for tests in a checkout of oes_fast" in backends._probe_emulated_cuda().reason


class TestModule:
    def test_which_one_and_where_tensors_lie(self, monkeypatch):
        monkeypatch.setattr(_cuda_extension.importlib, "import_module", lambda name: name)
        tensor = torch.zeros(1)
        for value, name, device in (
            (None, "oes_fast._C_cuda", "cuda"),
            ("0", "oes_fast._C_cuda", "cuda"),
            ("1", "oes_fast._C_cuda_emulated", "cpu"),
        ):
            if value is None:
                monkeypatch.delenv("OES_FAST_EMULATE_CUDA", raising=False)
            else:
                monkeypatch.setenv("OES_FAST_EMULATE_CUDA", value)
            assert _cuda_extension.extension() == name
            assert _cuda_extension.device_type() == device
            assert _cuda_extension.emulated() == (device == "cpu")
        assert _cuda_extension.stream_of(tensor) == 0

    def test_stream_is_that_of_the_tensors_device(self, monkeypatch):
        monkeypatch.delenv("OES_FAST_EMULATE_CUDA", raising=False)
        streams = {torch.device("cuda", 1): SimpleNamespace(cuda_stream=1234)}
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device])
        assert _cuda_extension.stream_of(SimpleNamespace(device=torch.device("cuda", 1))) == 1234
