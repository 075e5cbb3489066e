"""The CUDA kernels compile for GPUs that are not here, within a budget."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import REPO

from benchmarks import sass
from oes_fast._cuda_toolkit import USUAL, ToolkitError, find_toolkit
from oes_fast._extension import CUDA

# Compiling everything once more takes minutes: `make aot` does it, for all GPUs.
EVERYTHING = os.environ.get("OES_TEST_ALL_ARCHS") == "1"
ARCHS = USUAL if EVERYTHING else (sass.DETAILED,)
# Of 140 seconds these take 125: otherwise nvcc reads them alone. By file, how its kernels' names begin.
SLOW = {
    "tap_sum.cu": "conv::tap_sum_kernel<",
    "tap_sum_mma.cu": "conv::tap_sum_mma_kernel<",
    "weight_grad.cu": "conv::weight_grad_kernel<",
}
BINDINGS = ("bindings", "module")
LEFT_OUT = () if EVERYTHING else tuple(SLOW)


class Budget(NamedTuple):
    """What a kernel may need at most. Nothing may spill, and none has a stack.

    Attributes:
        registers: a thread. An SM has 65,536: 256 threads of 64 leave room for 4 blocks, of 128 for 2.
        shared: bytes a block, beside what a launch adds.
        instructions: a multiply-accumulate of the inner loop, on an H100; None where little is multiplied.
        loads: from shared and global memory a multiply-accumulate of the inner loop.
        barriers: in the inner loop.
    """

    registers: int
    shared: int = 0
    instructions: float | None = None
    loads: float | None = None
    barriers: int = 0


# By kernel; * stands for any template arguments, and the first row that fits counts.
BUDGET: dict[str, Budget] = {
    "conv::pack_weights_kernel<*>": Budget(32),
    "conv::unpack_weight_grads_kernel<*>": Budget(48),
    # Outputs, cells of a thread, side of the up-sampling.
    "conv::tap_sum_kernel<float, 20, 4, 1>": Budget(255, instructions=1.25, loads=0.15),
    "conv::tap_sum_kernel<float, 16, 4, 1>": Budget(255, instructions=1.3, loads=0.17),
    "conv::tap_sum_kernel<float, 8, 4, 1>": Budget(128, instructions=1.45, loads=0.25),
    "conv::tap_sum_kernel<float, 8, 2, 2>": Budget(200, instructions=1.65, loads=0.35),
    "conv::tap_sum_kernel<float, 4, 4, 1>": Budget(128, instructions=1.75, loads=0.42),
    "conv::tap_sum_kernel<float, 4, 2, 2>": Budget(128, instructions=2.1, loads=0.55),
    "conv::tap_sum_kernel<float, 4, 1, *>": Budget(128, instructions=2.8, loads=0.8),
    "conv::tap_sum_kernel<float, 1, 4, *>": Budget(128, instructions=5.3, loads=1.6),
    "conv::tap_sum_kernel<float, 1, 1, *>": Budget(128, instructions=8.0, loads=3.1),
    "conv::tap_sum_kernel<double, *>": Budget(240),
    "conv::tap_sum_mma_kernel<*, false>": Budget(255, instructions=0.55, loads=0.12),
    "conv::tap_sum_mma_kernel<*, true>": Budget(255, instructions=0.4, loads=0.04),
    # Outputs, cells of a lane.
    "conv::weight_grad_kernel<float, 4, 8>": Budget(128, instructions=2.2, loads=0.33),
    "conv::weight_grad_kernel<float, 4, 2>": Budget(128, instructions=5.2, loads=0.62),
    "conv::weight_grad_kernel<float, 1, 8>": Budget(128, instructions=3.7, loads=1.3),
    "conv::weight_grad_kernel<float, 1, 2>": Budget(128, instructions=9.2, loads=1.75),
    "conv::weight_grad_kernel<double, *>": Budget(240),
    "conv::weight_grad_mma_kernel<*, false>": Budget(128, instructions=0.65, loads=0.11),
    "conv::weight_grad_mma_kernel<*, true>": Budget(128, instructions=0.42, loads=0.04),
    "norm::norm_pass_kernel<*>": Budget(64),
    "mask::random_bits_kernel": Budget(32),
    "mask::logistic_from_bits_kernel<*>": Budget(48),
    "mask::gumbel_mask_kernel<float>": Budget(48),
    "mask::gumbel_mask_kernel<double>": Budget(64),
    "mask::gumbel_mask_backward_kernel<float>": Budget(48),
    "mask::gumbel_mask_backward_kernel<double>": Budget(72),
    "mask::mask_update_kernel<float, (mask::Kl)2>": Budget(80),  # with the KL value
    "mask::mask_update_kernel<float, *>": Budget(64),
    "mask::mask_update_kernel<double, *>": Budget(128),
    "mask::masked_adam_kernel<float>": Budget(48),
    "mask::masked_adam_kernel<double>": Budget(72),
}
COMPILED = {
    row: of for row, of in BUDGET.items() if not row.startswith(tuple(SLOW[name] for name in LEFT_OUT))
}

MADE_UP = """
#include <cuda_runtime.h>
namespace oes::cuda::conv {
namespace {
struct Args { const float* values; const float* weights; float* out; int taps; };

template <typename T, int G>
__global__ void __launch_bounds__(128) tap_sum(const Args a) {
  extern __shared__ unsigned char shared[];
  T* tile = reinterpret_cast<T*>(shared);
  T sums[G] = {};
  for (int i = threadIdx.x; i < 512; i += 128) {
    tile[i] = T(a.values[i]);
  }
  __syncthreads();
#pragma unroll 1
  for (int tap = 0; tap < a.taps; ++tap) {
    const T pixel = tile[threadIdx.x + tap];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      sums[g] += pixel * T(a.weights[tap * G + g]);
    }
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    a.out[threadIdx.x * G + g] = float(sums[g]);
  }
}

__global__ void __launch_bounds__(1024) spilling(const Args a) {
  float held[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) {
    held[i] = static_cast<const volatile float*>(a.values)[threadIdx.x + i * 1024];
  }
  __syncthreads();
  const float by = static_cast<const volatile float*>(a.weights)[0];
#pragma unroll
  for (int i = 0; i < 96; ++i) {
    a.out[threadIdx.x + i * 1024] = by * held[i];
  }
}

__global__ void __launch_bounds__(32) tensor_cores(const Args a) {
  __shared__ unsigned words[256];
  float d[4] = {};
#pragma unroll 1
  for (int k = 0; k < a.taps; ++k) {
    __syncthreads();
    words[threadIdx.x] = __float_as_uint(a.values[k * 32 + threadIdx.x]);
    __syncthreads();
    const unsigned* w = words + 4 * (threadIdx.x & 7);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(w[0]), "r"(w[1]));
  }
  a.out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
} // namespace

void launch_all(const Args& a) {
  tap_sum<float, 4><<<1, 128, 4096>>>(a);
  tap_sum<double, 2><<<1, 128, 4096>>>(a);
  spilling<<<1, 1024>>>(a);
  tensor_cores<<<1, 32>>>(a);
}
} // namespace oes::cuda::conv
"""


def require_compiler() -> None:
    """Skip where nvcc or what reads its machine code is not there."""
    try:
        sass.find_tool("nvdisasm", find_toolkit())
    except ToolkitError as error:
        pytest.skip(str(error))
    if shutil.which("c++filt") is None:
        pytest.skip("there is no c++filt")


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, sass.Kernel]]:
    """Every kernel by its name, for each GPU."""
    require_compiler()
    return sass.kernels(ARCHS, without=LEFT_OUT)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> dict[str, sass.Kernel]:
    """Kernels of which it is known what to find in them."""
    require_compiler()
    root = tmp_path_factory.mktemp("made up")
    (root / "csrc" / "cuda" / "conv").mkdir(parents=True)
    (root / "csrc" / "cuda" / "conv" / "made_up.cu").write_text(MADE_UP)
    return sass.kernels(root=root, cache=root / "build")[sass.DETAILED]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_slow_files_have_no_errors(name):
    require_compiler()
    (path,) = (REPO / "csrc" / "cuda").rglob(name)
    flags = [*CUDA.flags_of_kernels(), "-arch=sm_90", "-I", str(REPO / "csrc"), "-Werror", "all-warnings"]
    command = [find_toolkit().nvcc, *flags, "-fdevice-syntax-only", "-ptx", str(path), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_host_files_compile():
    """Those that nvcc does not see, without what only nvcc understands.

    What binds them to Python takes four fifths of the time, and is compiled for the emulation as it is here.
    """
    require_compiler()
    compiler = shutil.which("g++")
    pybind11 = pytest.importorskip("pybind11")
    toolkit = find_toolkit()
    python = sysconfig.get_paths()["include"]
    folders = [str(REPO / "csrc"), pybind11.get_include(), toolkit.include, python]
    command = [
        compiler,
        *CUDA.compile_flags,
        *(f"-I{folder}" for folder in folders),
        "-Werror",
        "-fsyntax-only",
    ]
    seen = REPO / "build" / "sass"
    seen.mkdir(parents=True, exist_ok=True)

    def problem(path: Path) -> str:
        mark = seen / f"{path.stem}-{sass.fingerprint(path, REPO, command)}.compiles"
        if mark.exists():
            return ""
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            mark.touch()
        return done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = [path for path in CUDA.sources(REPO) if path.suffix == ".cpp"]
        problems = pool.map(problem, files if EVERYTHING else (f for f in files if f.stem not in BINDINGS))
        assert [said for said in problems if said] == []


def row_of(name: str) -> str | None:
    """The row of the table for a kernel."""
    return next((row for row in BUDGET if fnmatch.fnmatchcase(name, row)), None)


def of_row(compiled: dict[str, dict[str, sass.Kernel]], row: str, arch: str) -> dict[str, sass.Kernel]:
    """The kernels of a row for a GPU."""
    found = {name: kernel for name, kernel in compiled[arch].items() if row_of(name) == row}
    assert found, f"no kernel {row} on {arch}"
    return found


def test_every_kernel_has_a_budget(compiled):
    for arch, kernels in compiled.items():
        assert [name for name in kernels if row_of(name) is None] == [], arch


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_spills(compiled, arch):
    for name, kernel in compiled[arch].items():
        assert kernel.spills == 0, name
        assert kernel.stack == 0, name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("row", COMPILED)
def test_kernel_fits(compiled, row, arch):
    for name, kernel in of_row(compiled, row, arch).items():
        assert 0 < kernel.registers <= BUDGET[row].registers, name
        assert kernel.shared <= BUDGET[row].shared, name


@pytest.mark.parametrize("row", [row for row, budget in COMPILED.items() if budget.instructions is not None])
def test_inner_loop(compiled, row):
    budget = BUDGET[row]
    for name, kernel in of_row(compiled, row, sass.DETAILED).items():
        assert kernel.inner is not None, name
        assert kernel.inner.instructions_per_mac <= budget.instructions, name
        assert budget.loads is None or kernel.inner.loads_per_mac <= budget.loads, name
        assert kernel.inner.barriers <= budget.barriers, name


MASKS = sorted((REPO / "csrc" / "cuda" / "mask").glob("*.cu"))


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_masks_round_as_the_cpu(path, tmp_path):
    """No product is fused with a sum (csrc/cuda/core/rounded.h); what divisions are made of comes later."""
    require_compiler()
    nvcc, code = find_toolkit().nvcc, tmp_path / "code.ptx"
    arguments = [*CUDA.flags_of_kernels(), "-arch=sm_90", "-I", str(REPO / "csrc"), "-ptx", str(path)]
    subprocess.run([nvcc, *arguments, "-o", str(code)], check=True)
    assert "mul.rn.f32" in code.read_text()
    assert "fma." not in code.read_text()


class TestReading:
    def test_names(self, made_up):
        tap_sums = ["conv::tap_sum<double, 2>", "conv::tap_sum<float, 4>"]
        assert sorted(made_up) == ["conv::spilling", *tap_sums, "conv::tensor_cores"]

    def test_inner_loop(self, made_up):
        loop = made_up["conv::tap_sum<float, 4>"].inner
        assert (loop.macs, loop.shared_loads, loop.shared_bytes, loop.barriers) == (4, 1, 4, 0)
        assert loop.global_loads == 4
        assert loop.loads_per_mac == 1.25
        assert 9 <= loop.instructions <= 30
        loop = made_up["conv::tap_sum<double, 2>"].inner
        assert (loop.macs, loop.shared_loads, loop.shared_bytes) == (2, 1, 8)

    def test_loops_without_products(self, made_up):
        kernel = made_up["conv::tap_sum<float, 4>"]
        assert sum(loop.instructions for loop in kernel.loops) < kernel.instructions
        assert sum(loop.macs for loop in kernel.loops) == 4

    def test_tensor_cores(self, made_up):
        loop = made_up["conv::tensor_cores"].inner
        assert loop.macs == 32
        assert loop.barriers >= 1  # two, or one and one of the warp: the block is a warp
        assert made_up["conv::tensor_cores"].shared == 1024

    def test_spills(self, made_up):
        assert made_up["conv::spilling"].spills > 0
        assert made_up["conv::spilling"].stack > 0
        assert made_up["conv::spilling"].registers <= 64
        assert made_up["conv::tap_sum<float, 4>"].spills == 0

    def test_nested_loops_count_their_own(self):
        said = (
            "ptxas info    : Compiling entry function 'k' for 'sm_90'\n"
            "    0 bytes stack frame, 0 bytes spill stores, 8 bytes spill loads\n"
            "ptxas info    : Used 20 registers, used 1 barriers, 64 bytes smem\n"
        )
        code = """
	.section	.text.k,"ax",@progbits
k:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_0:
        /*0020*/                   LDS.128 R4, [R2+0x10] ;
        /*0030*/               @P1 FFMA R8, R4, R5, R8 ;
        /*0040*/                   NOP ;
        /*0050*/              @!P0 BRA `(.L_x_0) ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64] ;
        /*0070*/                   FFMA R8, R4, R5, R8 ;
        /*0080*/                   FFMA R8, R4, R5, R8 ;
        /*0090*/              @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   FFMA R8, R4, R5, R8 ;
        /*00b0*/                   MUFU.EX2 R8, R8 ;
        /*00c0*/              @P2 BRA `(.L_x_3) ;
        /*00d0*/                   EXIT ;
.L_x_2:
        /*00e0*/                   BRA `(.L_x_2);
"""
        (kernel,) = sass.described(said, code).values()
        assert (kernel.registers, kernel.spills, kernel.shared, kernel.instructions) == (20, 8, 64, 14)
        outer, inner, exponential = kernel.loops
        assert (outer.instructions, outer.macs, outer.barriers, outer.copies) == (5, 2, 1, 1)
        assert (inner.instructions, inner.macs, inner.shared_bytes) == (3, 1, 16)
        assert (exponential.macs, exponential.special) == (1, 1)
        assert kernel.inner == outer
        assert kernel.inner.instructions_per_mac == 2.5

    def test_a_file_is_compiled_once(self, made_up, tmp_path, monkeypatch):
        source = tmp_path / "csrc" / "cuda" / "norm" / "small.cu"
        source.parent.mkdir(parents=True)
        header = tmp_path / "csrc" / "common" / "small.h"
        header.parent.mkdir()
        header.write_text("#define BY 2.0f\n")
        source.write_text(
            '#include "common/small.h"\n__global__ void scale(float* x) { x[threadIdx.x] *= BY; }\n'
        )
        assert sass.included(source, tmp_path) == [header]
        found = sass.kernels(root=tmp_path, cache=tmp_path / "build")
        with monkeypatch.context() as patch:
            patch.setattr(sass, "described", lambda *_: pytest.fail("compiled again"))
            assert sass.kernels(root=tmp_path, cache=tmp_path / "build") == found
        header.write_text("#define BY sinf(x[0])\n")
        changed = sass.kernels(root=tmp_path, cache=tmp_path / "build")
        assert changed["9.0"]["scale"].instructions > found["9.0"]["scale"].instructions

    def test_what_does_not_compile_is_an_error(self, made_up, tmp_path):
        source: Path = tmp_path / "csrc" / "cuda" / "broken.cu"
        source.parent.mkdir(parents=True)
        source.write_text("__global__ void broken() { missing(); }\n")
        with pytest.raises(ToolkitError, match=r"broken\.cu.*fails:\n(.|\n)*missing"):
            sass.kernels(root=tmp_path, cache=tmp_path / "build")
