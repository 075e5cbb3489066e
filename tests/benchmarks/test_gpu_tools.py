"""What a GPU's tools print: compute-sanitizer, ncu, torch.profiler; and the model beside a measurement."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import gpu_build, gpu_model, gpu_tools, gpu_trace, sass, tables
from benchmarks.gpu_tools import Ended
from oes_fast._cuda_toolkit import ToolkitError, find_toolkit
from oes_fast.backends import BackendStatus

CLEAN = """========= COMPUTE-SANITIZER
....................                                                     [100%]
20 passed, 300 deselected in 12.34s
========= ERROR SUMMARY: 0 errors
"""
HAZARD = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void oes::cuda::conv::tap_sum_kernel
=========     and Read access at the same [32 hazards]
=========
F
1 failed, 3 passed, 300 deselected in 9.87s
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
CONV = "void oes::cuda::conv::(anonymous namespace)"
TAP_SUM = f"{CONV}::tap_sum_kernel<float, 4, 2, 1>(oes::cuda::conv::TapSumArgs<T1>)"
NCU_HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
    '"Device","CC","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Type",'
    '"Rule Description","Estimated Speedup Type","Estimated Speedup"'
)


def ncu_line(number, kernel, section, metric, unit, value):
    return (
        f'"{number}","77","python3.12","127.0.0.1","{kernel}","1","7","(256, 1, 1)","(12, 3, 1)","0","9.0",'
        f'"{section}","{metric}","{unit}","{value}","","","","",""'
    )


def ncu_lines(number, kernel, duration, unit, compute, memory):
    light = "GPU Speed Of Light Throughput"
    return [
        ncu_line(number, kernel, light, "SM Frequency", "Ghz", "1.59"),
        ncu_line(number, kernel, light, "Memory Throughput", "%", memory),
        ncu_line(number, kernel, light, "DRAM Throughput", "%", "3.25"),
        ncu_line(number, kernel, light, "Duration", unit, duration),
        ncu_line(number, kernel, light, "Compute (SM) Throughput", "%", compute),
        ncu_line(number, kernel, "Memory Workload Analysis", "Memory Throughput", "Gbyte/s", "120.1"),
        ncu_line(number, kernel, "Launch Statistics", "Function Cache Configuration", "", "CachePreferNone"),
        ncu_line(number, kernel, "Launch Statistics", "Waves Per SM", "", "0.14"),
        ncu_line(number, kernel, "Occupancy", "Achieved Occupancy", "%", "41.80"),
    ]


NCU = "\n".join(
    [
        "==PROF== Connected to process 77 (/usr/bin/python3.12)",
        '==PROF== Profiling "tap_sum_kernel" - 0: 0%....50%....100% - 9 passes',
        '{"words": "of the program"}',
        "==PROF== Disconnected from process 77",
        NCU_HEAD,
        *ncu_lines(0, TAP_SUM, "6.46", "us", "71.5", "33.2"),
        *ncu_lines(
            1, "void oes::cuda::norm::(anonymous namespace)::norm_pass_kernel", "2,150", "ns", "12", "63.9"
        ),
        *ncu_lines(
            2, "void at::native::vectorized_elementwise_kernel<4, int>(int)", "0.002", "ms", "0.5", "1"
        ),
        '"2","77","python3.12","127.0.0.1","x","1","7","","","0","9.0","SpeedOfLight","","","","Bottleneck",'
        '"OPT","This kernel grid is too small, ""waves"" are 0.1","global","50"',
    ]
)


def test_what_the_sanitizer_says_is_read():
    row = gpu_tools.sanitized("memcheck", "cuda", Ended(0, 12.5, CLEAN), 25)
    assert row == {
        "tool": "memcheck",
        "tests of": "cuda",
        "seconds": 12.5,
        "tests": "20 passed, 300 deselected in 12.34s",
        "found": 0,
        "ok": True,
    }
    row = gpu_tools.sanitized("racecheck", "cuda", Ended(3, 9.9, HAZARD), 25)
    assert (row["ok"], row["found"], row["error"]) == (False, 1, "exit code 3")
    assert "Race reported" in row["output"]
    row = gpu_tools.sanitized("synccheck", "cuda", Ended(None, 25.0, "....."), 25)
    assert (row["ok"], row["error"], row["output"]) == (False, "stopped after 25 s", ".....")
    assert not gpu_tools.sanitized("memcheck", "cuda", Ended(0, 1.0, "no summary"), 25)["ok"]


def test_tools_run_at_the_same_time_each_within_its_limit():
    began = time.monotonic()
    sleeper = "import os, subprocess, sys, time; print(os.environ['SAID'], flush=True); time.sleep(60)"
    commands = [
        (sys.executable, "-c", "import sys; print('words', file=sys.stderr); sys.exit(3)"),
        (sys.executable, "-c", sleeper),
    ]
    quick, slow = gpu_tools.run_all(commands, 1.0, SAID="begun")
    assert (quick.code, quick.output) == (3, "words\n")
    assert (slow.code, slow.output) == (None, "begun\n")
    assert time.monotonic() - began < 20


def test_every_tool_is_started_on_tests_of_the_engine(monkeypatch):
    asked = []

    def run_all(commands, seconds, **environment):
        asked.extend(commands)
        assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        return [Ended(0, 1.0, CLEAN)] * len(commands)

    monkeypatch.setattr(gpu_tools, "left_out", lambda tool: None)
    monkeypatch.setattr(gpu_tools, "find_tool", lambda tool: tool)
    monkeypatch.setattr(gpu_tools, "run_all", run_all)
    rows = gpu_tools.sanitizer(20)
    assert [(row["tool"], row["tests of"]) for row in rows] == list(gpu_tools.CHECKS)
    assert {row["tool"] for row in rows if row["ok"]} == {"memcheck", "racecheck", "synccheck", "initcheck"}
    for command, (tool, _) in zip(asked, gpu_tools.CHECKS, strict=True):
        assert command[0] == "compute-sanitizer"
        assert command[command.index("--tool") + 1] == tool


def test_the_limiter_of_every_kernel_is_read_from_ncu():
    first, second, third = gpu_tools.kernel_limits(NCU)
    assert first == {
        "kernel": "conv::tap_sum_kernel<float, 4, 2, 1>",
        "grid": [12, 3, 1],
        "memory %": 33.2,
        "DRAM %": 3.25,
        "us": 6.46,
        "compute %": 71.5,
        "waves per sm": 0.14,
        "achieved occupancy": 41.8,
        "limiter": "compute",
    }
    assert (second["us"], second["limiter"]) == (2150 * 1e-3, "memory")
    assert (third["us"], third["limiter"]) == (2.0, "latency")
    with pytest.raises(ValueError, match="no table"):
        gpu_tools.kernel_limits("==ERROR== The application returned an error code (11).")


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", 0, "may not read"),
        ("==ERROR== it crashed", 9, None),
        (NCU, 0, None),
    ],
)
def test_ncu_gives_rows_or_says_why_not(output, code, said, monkeypatch):
    monkeypatch.setattr(gpu_tools, "left_out", lambda tool: None)
    monkeypatch.setattr(gpu_tools, "find_tool", lambda tool: tool)
    monkeypatch.setattr(gpu_tools, "run_all", lambda *_: [Ended(code, 1.0, output)])
    if said is None and code:
        with pytest.raises(SystemExit, match="it crashed"):
            gpu_tools.ncu(None, 10)
        return
    found = gpu_tools.ncu(None, 10)
    if said is None:
        assert found["launches by limiter"] == {"compute": 1, "memory": 1, "latency": 1}
    else:
        assert said in found["left out"]


def test_a_tool_or_a_backend_that_is_not_here_is_left_out(monkeypatch):
    status = BackendStatus(False, "was not built")
    monkeypatch.setattr(gpu_tools.oes, "backends", lambda: {"cuda": status})
    assert "was not built" in gpu_tools.sanitizer(10)["left out"]
    monkeypatch.setattr(gpu_tools.oes, "backends", lambda: {"cuda": BackendStatus(True)})
    monkeypatch.setattr(gpu_tools, "find_tool", lambda tool: None)
    assert gpu_tools.ncu(None, 10) == {"left out": "there is no ncu on this machine"}


def test_building_is_needed_where_the_backend_is_not_there(monkeypatch):
    said = ["not available: the CUDA extension was not built", "available"]
    asked = []

    def run(command, **options):
        asked.append((command, options["env"]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu_build, "status", lambda: said.pop(0))
    monkeypatch.setattr(gpu_build, "arch", lambda: "9.0")
    monkeypatch.setattr(gpu_build, "find_toolkit", lambda: SimpleNamespace(version="13.0"))
    monkeypatch.setattr(gpu_build.subprocess, "run", run)
    found = gpu_build.build()
    assert (found["built"], found["nvcc"]) == (True, "13.0")
    ((command, environment),) = asked
    assert command[1:] == ["setup.py", "-q", "build_ext", "--inplace"]
    assert (environment["FORCE_CUDA"], environment["TORCH_CUDA_ARCH_LIST"]) == ("1", "9.0")
    assert int(environment["MAX_JOBS"]) > 0
    said[:] = ["available"]
    assert not gpu_build.build()["built"]
    said[:] = ["not available: no reason", "not available: it does not load"]
    with pytest.raises(SystemExit, match="does not load"):
        gpu_build.build()

    def no_toolkit():
        raise ToolkitError("there is no nvcc")

    monkeypatch.setattr(gpu_build, "find_toolkit", no_toolkit)
    said[:] = ["not available: it was not built"]
    assert "there is no nvcc" in gpu_build.build()["left out"]


# launches


def event(name, begin, duration, kind="kernel", **about):
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": duration, "args": about}


def trace(*events):
    host = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 0.5, "dur": 30}
    return {"schemaVersion": 1, "traceEvents": [host, {"ph": "M", "name": "process_name"}, *events]}


KERNEL = {"grid": [12, 3, 1], "block": [256, 1, 1], "registers per thread": 88, "shared memory": 30720}


def test_launches_are_read_from_a_trace_in_order():
    rows = gpu_trace.launched(
        trace(
            event("Memset (Device)", 109.5, 1.25, kind="gpu_memset", stream=7),
            event(TAP_SUM, 100.0, 8.5, stream=7, **KERNEL),
        )
    )
    assert rows == [
        {
            "kernel": "conv::tap_sum_kernel<float, 4, 2, 1>",
            "us": 8.5,
            "grid": [12, 3, 1],
            "block": [256, 1, 1],
            "registers": 88,
            "shared bytes": 30720,
        },
        {"kernel": "Memset (Device)", "us": 1.25, "gap us": 1.0},
    ]
    other = [{**rows[0], "us": 8.0}, {**rows[1], "us": 2.0, "gap us": 0.5}]
    found = gpu_trace.shortest([rows, other])
    assert found["steps alike"]
    assert [row["us"] for row in found["launches"]] == [8.0, 1.25]
    assert (found["us in kernels"], found["us between"]) == (9.25, 0.5)
    found = gpu_trace.shortest([rows, rows[:1]])
    assert not found["steps alike"]
    assert len(found["launches"]) == 1


def test_names_of_launches_are_those_of_the_model():
    names = {
        TAP_SUM: "tap_sum",
        "Memset (Device)": "memset",
        "void at::native::vectorized_elementwise_kernel<2, at::native::AddFunctor<long>>(int)": "elementwise",
        "void oes::cuda::mask::(anonymous namespace)::mask_update_kernel<float, (oes::cuda::mask::Kl)1>"
        "(oes::cuda::mask::MaskUpdate<float>)": "mask_update",
    }
    assert [gpu_trace.key_of(sass.without_namespaces(name)) for name in names] == list(names.values())


@pytest.mark.parametrize("case", ["training", "search"])
def test_the_steps_that_are_measured_are_made(case):
    small = {"device": "cpu", "size": 32, "channels": (4, 6), "backend": "torch"}
    step = gpu_trace.step_of(case, None, recorded=False, **small)
    step()
    step()


# the model


CHAIN = ["pack_weights", "tap_sum", "norm_pass", "weight_grad", "tap_sum", "unpack_weight_grads"]


def modelled(*, search=False):
    rows = [{"kernel": f"{name}_kernel<4>", "blocks": 9, "us": 2.0, "limit": "bytes"} for name in CHAIN]
    rows = gpu_model.whole_step(rows, 1, search=search, kept=150_000)
    return {"ms": 0.03, "ms between the nodes": 0.008, "launches": rows}


STEP = {
    **modelled(),
    "ms a network": 0.03,
    "nodes": 9,
    "ms by limit": {},
}


def test_the_model_has_the_launches_beside_the_chain_in_their_places():
    names = [row["kernel"] for row in modelled()["launches"]]
    assert names == [
        *(f"{name}_kernel<4>" for name in CHAIN[:2]),
        gpu_model.ZEROS,
        *(f"{name}_kernel<4>" for name in CHAIN[2:]),
        "masked_adam_kernel",
        gpu_model.TICK,
    ]
    names = [row["kernel"] for row in modelled(search=True)["launches"]]
    assert names[0] == "gumbel_mask_kernel"
    assert names[-2:] == ["mask_update_kernel", gpu_model.TICK]


def test_measured_launches_stand_beside_those_of_the_model():
    of_ours = [f"conv::{name}_kernel<float, 4>" for name in CHAIN]
    adam, tick = "mask::masked_adam_kernel<float>", "at::native::vectorized_elementwise_kernel<2, long>"
    copied = "at::native::unrolled_copy_kernel<4>"  # of PyTorch's own, which the model does not know
    names = [*of_ours[:2], "Memset (Device)", copied, *of_ours[2:4], *of_ours[5:], adam, tick]
    launches = [{"kernel": name, "us": 4.0, "gap us": 1.0, "grid": [9, 1, 1]} for name in names]
    measured = {"launches": launches, "us in kernels": 40.0, "us between": 10.0}
    found = gpu_model.beside(modelled(), measured)
    assert (found["in both"], found["of the model alone"], found["measured alone"]) == (8, 1, 1)
    both = [row for row in found["rows"] if "measured / model" in row]
    assert [row["kernel"] for row in both] == [name for name in names if name != copied]
    assert both[0] == {
        "kernel": of_ours[0],
        "grid": [9, 1, 1],
        "blocks of the model": 9,
        "limit": "bytes",
        "model us": 2.0,
        "us": 4.0,
        "measured / model": 2.0,
    }
    assert [row["kernel"] for row in found["rows"] if "us" not in row] == ["tap_sum_kernel<4>"]
    assert (found["model ms"], found["measured ms"]) == (0.03, 0.05)
    assert (found["model ms in kernels"], found["measured ms in kernels"]) == (0.022, 0.04)
    assert set(found["by limit"]) == {"bytes", "start"}


def test_measurements_are_read_from_the_result_so_far(tmp_path):
    file = tmp_path / "gpu.json"

    def parts(**parts):
        file.write_text(json.dumps({"parts": parts}))
        return gpu_model.measured_in(str(file))

    row = {"case": "search", "precision": "tf32", "launches": []}
    assert parts(launches={"ok": True, "result": [row]}) == ({("search", "tf32"): row}, "")
    assert parts(launches={"ok": True, "result": {"left out": "no engine"}})[1] == "part launches: no engine"
    assert parts(launches={"ok": False, "error": "exit code 1"})[1] == "part launches: exit code 1"
    assert parts()[1] == "part launches: it was not run"


def test_every_step_of_the_model_is_held_to_its_own_measurement(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    monkeypatch.setattr(
        gpu_model, "step", lambda of, count, products: {**STEP, "precision": products, "networks": count}
    )
    launches = [{"kernel": row["kernel"], "us": row["us"]} for row in STEP["launches"]]
    rows = [
        {"case": case, "precision": precision, "launches": launches, "us in kernels": 18.0, "us between": 9.0}
        for case, precision in gpu_trace.CASES
        if precision != "tf32"
    ]
    file.write_text(json.dumps({"parts": {"launches": {"ok": True, "result": rows}}}))
    steps = gpu_model.held_to(str(file), "a mask")["steps"]
    assert [(each["case"], each["precision"]) for each in steps] == list(gpu_trace.CASES)
    for each in steps:
        assert each["model ms"] == 0.03
        assert each.get("in both") == (None if each["precision"] == "tf32" else 7)
    file.write_text(json.dumps({"parts": {}}))
    found = gpu_model.held_to(str(file), "a mask")
    assert found["left out"] == "part launches: it was not run"
    assert [each["model ms"] for each in found["steps"]] == [0.03] * 4


def test_the_model_takes_the_real_engine_where_there_is_a_gpu():
    code = "import torch; torch.cuda.is_available = lambda: True; from benchmarks import gpu_model\n"
    code += "from oes_fast import _cuda_extension; print(_cuda_extension.emulated())"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_kernels_are_read_from_what_was_built(tmp_path):
    source = tmp_path / "add.cu"
    source.write_text(
        "namespace oes { namespace { template <typename T> __global__ void add_kernel(T* x, int n) {\n"
        "  T sum = 0;\n  for (int i = 0; i < n; ++i) sum = sum * x[i] + x[i + n];\n"
        "  x[threadIdx.x] = sum;\n} }\n"
        "void add(float* x) { add_kernel<float><<<1, 32>>>(x, 7); } }\n"
    )
    built = tmp_path / "add.o"
    try:
        toolkit = find_toolkit()
        sass.find_tool("cuobjdump", toolkit)
        sass.find_tool("nvdisasm", toolkit)
    except ToolkitError as error:
        pytest.skip(str(error))
    command = [
        toolkit.nvcc,
        "-O3",
        "-gencode=arch=compute_90,code=sm_90",
        "-c",
        str(source),
        "-o",
        str(built),
    ]
    subprocess.run([*command, "-I", toolkit.include], check=True)
    found = sass.kernels_in(built)
    assert list(found) == ["add_kernel<float>"]
    kernel = found["add_kernel<float>"]
    assert kernel.registers > 0
    assert kernel.inner is not None
    assert kernel.inner.macs > 0
    with pytest.raises(ToolkitError, match="sm_80"):
        sass.kernels_in(built, "8.0")


def test_the_model_is_a_table_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert "Not computed yet" in tables.gpu_model()
    rows = [
        {
            "networks": n,
            "precision": p,
            "ms a network": 1 / n,
            "nodes": 74,
            "ms by limit": {"start": 9, "bytes": 1},
        }
        for p in ("float32", "tf32")
        for n in (1, 8)
    ]
    result = {
        "date": "2026-01-01",
        "command": "python -m benchmarks.gpu_model",
        "mask": "drawn",
        "target, ms a network at N = 1": {"training": 0.3, "search": 0.6},
        "training": rows[:2],
        "search": rows,
    }
    (tmp_path / f"{tables.MODEL}.json").write_text(json.dumps(result))
    lines = tables.gpu_model().splitlines()
    assert "not measured" in lines[0]
    assert lines[-3:] == [
        "| training | float32 | 1.00 | 0.12 | 0.3 | 74 | bytes |",
        "| search | float32 | 1.00 | 0.12 | 0.6 | 74 | bytes |",
        "| search | tf32 | 1.00 | 0.12 | 0.6 | 74 | bytes |",
    ]
    assert tables.measured_gpus() == []


def test_a_device_with_both_engines_is_in_the_tables(tmp_path, monkeypatch):
    times = {
        way: {"min": ms, "median": ms} for way, ms in (("published", 9.0), ("triton", 3.0), ("cuda", 1.0))
    }
    faster = {way: {"min": 9 / t["min"], "median": 9 / t["min"]} for way, t in times.items()}
    row = {"size": 512, "ms": times, "times faster": faster, "precision": dict.fromkeys(times, "float32")}
    three = {key: {way: value for way, value in row[key].items() if way != "triton"} for key in list(row)[1:]}
    parts = {
        "steps float32": {"result": {"training": [row], "search": [row], "warnings": ["one"]}},
        "steps tf32x3": {"result": {"search": [{"size": 512, **three}]}},
        "steps tf32": {"result": {"left out": "no"}},
        "memory": {
            "result": [{"way": "cuda", "case": "search", "peak MB": 5.0}, {"way": "triton", "error": "no"}]
        },
    }
    where = {"gpu": "some GPU", "torch": "2.11"}
    result = {"date": "2026-01-01", "command": "make gpu", "environment": where, "parts": parts}
    (tmp_path / "gpu-some.json").write_text(json.dumps(result))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.gpu()
    assert (
        "| search | 512 | float32 | published code | 9.0 (9.0) | 3.0 (3.0) | 1.0 (1.0) | 9.0 (9.0) x |"
        in text
    )
    assert "| search | 512 | float32 | published code | 9.0 (9.0) |  | 1.0 (1.0) | 9.0 (9.0) x |" in text
    assert "| search | oes_fast, CUDA C++ | 5 MB |" in text
    assert "9.0 to 9.0 x" in tables.gain()
