"""NVIDIA's tools on the CUDA engine: compute-sanitizer on its tests, ncu on a training step.

    python -m benchmarks.gpu_tools sanitizer [--seconds 30]
    python -m benchmarks.gpu_tools ncu [--mask mask.npz] [--seconds 20]

The last line printed is the result as JSON; exit code 1 where a tool found something or did not finish. A
tool that is not here is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import oes_fast as oes
from benchmarks.sass import without_namespaces

REPO = Path(__file__).resolve().parents[1]
# Tool and tests, by their names.
CHECKS = (
    ("memcheck", "cuda and not triton"),
    ("racecheck", "cuda and not triton"),
    ("synccheck", "cuda and not triton"),
    ("memcheck", "triton"),
    ("initcheck", "cuda and not triton"),
)
BESIDE = "initcheck"  # what it finds is reported, and nothing fails by it: PyTorch's own kernels read padding
TESTS = ("-m", "memcheck", "tests/rewrite", "tests/ops")
# Percentages of the peak. Below this share of both, NVIDIA's own rule says, a kernel waits.
BUSY = 60.0
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats")
MOST_LAUNCHES = 100  # a training step has about 75
UNITS = {
    "ns": 1e-3,
    "nsecond": 1e-3,
    "us": 1.0,
    "usecond": 1.0,
    "ms": 1e3,
    "msecond": 1e3,
    "s": 1e6,
    "second": 1e6,
}


class Ended(NamedTuple):
    """How a program ended: None as its code if its time was up."""

    code: int | None
    seconds: float
    output: str


def find_tool(name: str) -> str | None:
    """A tool on the path, in the toolkit, or where NVIDIA's packages put it."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [str(Path(home) / "bin") for home in homes if home]
    places += [str(path) for path in sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def left_out(tool: str) -> str | None:
    """Why a tool cannot run here."""
    status = oes.backends()["cuda"]
    if not status:
        return f"backend cuda is {status}"
    return None if find_tool(tool) else f"there is no {tool} on this machine"


def run_all(commands: Sequence[Sequence[str]], seconds: float, **environment: str) -> list[Ended]:
    """Run programs at the same time, each for so many seconds at most."""
    began = time.monotonic()
    ended: dict[int, Ended] = {}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in commands]
        running = [
            subprocess.Popen(
                command,
                cwd=REPO,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            for command, file in zip(commands, files, strict=True)
        ]
        while len(ended) < len(running):
            time.sleep(0.05)
            taken = time.monotonic() - began
            for number, (process, file) in enumerate(zip(running, files, strict=True)):
                late = process.poll() is None and taken > seconds
                if number in ended or (process.poll() is None and not late):
                    continue
                if late:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                file.seek(0)
                ended[number] = Ended(None if late else process.returncode, round(taken, 1), file.read())
    return [ended[number] for number in range(len(running))]


def sanitized(tool: str, tests_of: str, ended: Ended, seconds: float) -> dict[str, Any]:
    """What one tool of compute-sanitizer says: errors or hazards, their first lines, how the tests went."""
    row: dict[str, Any] = {"tool": tool, "tests of": tests_of, "seconds": ended.seconds}
    summaries = re.findall(r"=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", ended.output)
    tests = re.findall(r"^\d+ (?:passed|failed|skipped|error).*$", ended.output, re.MULTILINE)
    if tests:
        row["tests"] = tests[-1]
    if summaries:
        row["found"] = sum(int(errors or hazards) for errors, hazards in summaries)
    row["ok"] = ended.code == 0 and row.get("found") == 0
    if ended.code is None:
        row["error"] = f"stopped after {seconds:.0f} s"
    elif not row["ok"]:
        row["error"] = f"exit code {ended.code}"
    if not row["ok"]:
        reports = [line for line in ended.output.splitlines() if line.startswith("=====")]
        row["output"] = "\n".join(reports[:30]) or ended.output[-1500:]
    return row


def sanitizer(seconds: float) -> dict[str, Any] | list[dict[str, Any]]:
    """Every tool at the same time: they take minutes of one core each, and nothing is timed."""
    if reason := left_out("compute-sanitizer"):
        return {"left out": reason}
    program = find_tool("compute-sanitizer")
    assert program is not None
    pytest = (sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:benchmark", *TESTS)
    checked = (program, "--error-exitcode", "3", "--target-processes", "all", "--tool")
    commands = [(*checked, tool, *pytest, "-k", tests_of) for tool, tests_of in CHECKS]
    # Without PyTorch's cache every tensor has memory of its own, with an end that can be run over.
    ended = run_all(commands, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1", OMP_NUM_THREADS="1")
    return [sanitized(*check, one, seconds) for check, one in zip(CHECKS, ended, strict=True)]


def limiter(compute: float, memory: float) -> str:
    """What bounds a kernel: the busier of both, or latency where neither is busy."""
    if max(compute, memory) < BUSY:
        return "latency"
    return "compute" if compute >= memory else "memory"


def kernel_limits(text: str) -> list[dict[str, Any]]:
    """One row for each launch, from what ncu prints with --csv --page details.

    Raises:
        ValueError: there is no table in it.
    """
    lines = text.splitlines()
    head = next((number for number, line in enumerate(lines) if line.startswith('"ID",')), None)
    if head is None:
        raise ValueError("ncu printed no table")
    rows: dict[str, dict[str, Any]] = {}
    for cells in csv.DictReader(line for line in lines[head:] if line.startswith('"')):
        row = rows.setdefault(cells["ID"], {"kernel": without_namespaces(cells["Kernel Name"])})
        if cells.get("Grid Size"):
            row["grid"] = [int(number) for number in re.findall(r"\d+", cells["Grid Size"])]
        name, unit = cells.get("Metric Name") or "", cells.get("Metric Unit") or ""
        try:
            value = float((cells.get("Metric Value") or "").replace(",", ""))
        except ValueError:
            continue  # a text of ncu's, such as a cache configuration
        if name == "Duration" and unit in UNITS:
            row["us"] = round(value * UNITS[unit], 3)
        elif name in ("Compute (SM) Throughput", "Memory Throughput") and unit == "%":
            row["compute %" if name.startswith("Compute") else "memory %"] = value
        elif name in ("DRAM Throughput", "L1/TEX Cache Throughput", "L2 Cache Throughput"):
            row[name.removesuffix(" Throughput").removesuffix(" Cache") + " %"] = value
        elif name in ("Achieved Occupancy", "Waves Per SM", "Registers Per Thread"):
            row[name.lower()] = value
    for row in rows.values():
        if "compute %" in row and "memory %" in row:
            row["limiter"] = limiter(row["compute %"], row["memory %"])
    return list(rows.values())


def ncu(mask: str | None, seconds: float) -> dict[str, Any]:
    """What bounds each kernel of one training step of the CUDA engine.

    Raises:
        SystemExit: ncu gives nothing: it may not read the counters, or its time was up.
    """
    if reason := left_out("ncu"):
        return {"left out": reason}
    program = find_tool("ncu")
    assert program is not None
    sections = [word for section in SECTIONS for word in ("--section", section)]
    command = [
        program, "--csv", "--page", "details", *sections,
        "--clock-control", "none",  # the device's clocks stay as they are
        "--profile-from-start", "off", "--target-processes", "all",
        "--kernel-name-base", "demangled", "--launch-count", str(MOST_LAUNCHES),
        sys.executable, "-m", "benchmarks.gpu_trace", "--once", "training",
    ]  # fmt: skip
    (ended,) = run_all([command + ([] if mask is None else ["--mask", mask])], seconds)
    if "ERR_NVGPUCTRPERM" in ended.output:
        return {"left out": "ncu may not read the device's counters here (ERR_NVGPUCTRPERM)"}
    try:
        rows = kernel_limits(ended.output)
    except ValueError as error:
        how = f"stopped after {seconds:.0f} s" if ended.code is None else f"exit code {ended.code}"
        raise SystemExit(f"{error} ({how}): {ended.output[-1500:]}") from None
    counts = {
        kind: sum(row.get("limiter") == kind for row in rows) for kind in ("compute", "memory", "latency")
    }
    return {"case": "training", "seconds": ended.seconds, "launches by limiter": counts, "launches": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=["sanitizer", "ncu"])
    parser.add_argument("--mask", help="mask file, see benchmarks.gpu")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each tool")
    options = parser.parse_args()
    found = sanitizer(options.seconds) if options.tool == "sanitizer" else ncu(options.mask, options.seconds)
    print(json.dumps(found))
    if isinstance(found, list) and not all(row["ok"] for row in found if row["tool"] != BESIDE):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
