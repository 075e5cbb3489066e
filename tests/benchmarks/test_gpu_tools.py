"""What is built for a GPU, and what its tools print: compute-sanitizer and ncu."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import gpu_build, gpu_tools
from benchmarks.gpu_tools import Ended
from oes_fast._cuda_toolkit import ToolkitError
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
