"""What a machine with a GPU is asked for, in under eight minutes: tests, timings, profiles, trainings.

    python -m benchmarks.gpu                  # or: make gpu
    python -m benchmarks.gpu --mask mask.npz  # a published mask in place of a drawn one of the same shares

Every part runs in a process of its own under a time limit, and what it found, or the error that ended it,
goes into benchmarks/results/gpu-DEVICE-DATE.json after each of them. A part that needs what is not here, such
as ncu or a backend, is left out with the reason. Exit code 0: no part failed; 1: one did; 2: there is no GPU
here, and nothing was done.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_tools import find_tool
from benchmarks.report import write_result
from oes_fast.bench.environment import environment
from oes_fast.precision import PRECISIONS

REPO = Path(__file__).resolve().parents[1]
SECONDS = 478.0  # for all parts together
MOST_WORKERS = 12  # of the tests: most of their time is compilation
TESTS = ("tests/ops", "tests/kernels", "tests/rewrite", "tests/pipelines")
EACH_TOOL = 25  # seconds of each of the sanitizer's tools, which run at the same time
NCU = 15


class Part(NamedTuple):
    """One thing to do.

    Attributes:
        name: in the JSON.
        command: whose exit code says whether it passed, and the last line of whose standard output is its
            result where that is JSON.
        seconds: it may take, whatever the others took.
        longer: it may also take what those before it left of theirs.
    """

    name: str
    command: Sequence[str]
    seconds: float
    longer: bool = False


def limit_of(part: Part, later: Sequence[Part], left: float) -> float:
    """Seconds a part may take, of those that are left for it and for the later ones."""
    unused = left - part.seconds - sum(other.seconds for other in later)
    return min(part.seconds + (max(0.0, unused) if part.longer else 0.0), left)


def run_part(part: Part, limit: float) -> dict[str, Any]:
    """Run one part; what it found, or why there is nothing."""
    began = time.monotonic()
    if limit <= 1:
        return {"ok": False, "error": "no time was left for it", "seconds": 0.0}
    # Into files, and its whole group ended: what a killed command started may hold a pipe open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            part.command, cwd=REPO, stdout=output, stderr=errors, text=True, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        said, complained = (_text(file) for file in (output, errors))
    result: dict[str, Any] = {"ok": code == 0, "seconds": round(time.monotonic() - began, 1)}
    found = _last_json(said)
    if found is not None:
        result["result"] = found
    if code is None:
        result["error"] = f"stopped after {limit:.0f} s"
    elif code != 0:
        result["error"] = f"exit code {code}"
    if code != 0 or found is None:
        result["output"] = (said + complained)[-4000:]
    return result


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read())


def _last_json(text: str) -> Any:
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict | list) else None


def run_parts(parts: Sequence[Part], file: Path, about: dict[str, Any], seconds: float = SECONDS) -> int:
    """Run all parts, write the JSON after each, and return the exit code."""
    began = time.monotonic()
    results: dict[str, Any] = {}
    for number, part in enumerate(parts):
        left = seconds - (time.monotonic() - began)
        results[part.name] = outcome = run_part(part, limit_of(part, parts[number + 1 :], left))
        found = outcome.get("result")
        reason = found.get("left out") if isinstance(found, dict) else None
        if isinstance(reason, str):
            said = f"left out, {reason}"
        else:
            said = "passed" if outcome["ok"] else outcome["error"]
        print(f"{part.name}: {said}, {outcome['seconds']} s", flush=True)
        about["seconds"] = round(time.monotonic() - began, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        write_result(str(unfinished), {**about, "parts": results})
        unfinished.replace(file)
    return 0 if all(result["ok"] for result in results.values()) else 1


def all_parts(mask: str | None, file: str) -> list[Part]:
    """The parts, what matters most first; their limits add up to less than :data:`SECONDS`.

    Args:
        mask: mask file.
        file: where the results of the parts are written, for the one that reads those of another.
    """
    pytest = (sys.executable, "-m", "pytest", "--tb", "short", "-p", "no:cacheprovider", "-p", "no:benchmark")
    workers = ("-n", str(max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))))
    chosen = () if mask is None else ("--mask", mask)

    def module(name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"benchmarks.{name}", *arguments, *chosen)

    def measure(name: str, *arguments: str) -> tuple[str, ...]:
        return module("gpu_parts", name, *arguments)

    def tool(name: str, seconds: int) -> tuple[str, ...]:
        return module("gpu_tools", name, "--seconds", str(seconds))

    # The ratios come before all else but what they would wait for, of both engines; then the CUDA engine's
    # tests, and each launch. torch.compile, the slowest, comes last. The limits are for a machine with an
    # H100 and 16 cores.
    cuda, triton = ("-k", "cuda and not triton"), ("-k", "triton or recorded", "-m", "device or cuda_graph")
    limits = {"float32": 50, "tf32": 50, "tf32x3": 20}
    return [
        Part("build", (sys.executable, "-m", "benchmarks.gpu_build"), 90, longer=True),
        Part("compile ahead", module("gpu_compile"), 60, longer=True),
        *(
            Part(f"steps {name}", measure("steps", "--precision", name), limits[name], longer=True)
            for name in PRECISIONS
        ),
        Part("tests of cuda", (*pytest, *workers, *cuda, *TESTS), 60, longer=True),
        Part("batches", module("gpu_batches", "--counts", "1", "8", "32"), 20, longer=True),
        Part("launches", module("gpu_trace"), 15, longer=True),
        Part("model", module("gpu_model", "--beside", file), 10, longer=True),
        Part("sanitizer", tool("sanitizer", EACH_TOOL), EACH_TOOL + 5),
        Part("ncu", tool("ncu", NCU), NCU + 5),
        Part("training", measure("training"), 15, longer=True),
        Part("memory", measure("memory"), 10, longer=True),
        Part("tests", (*pytest, *workers, *triton, *TESTS), 15, longer=True),
        Part("kernels", measure("kernels"), 5, longer=True),
        Part("steps compiled", measure("compiled"), 5, longer=True),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.steps; a drawn mask without it")
    parser.add_argument("--parts", nargs="+", help="names of the parts to run, by default all")
    parser.add_argument("--out", default=str(REPO / "benchmarks" / "results"), help="folder of the JSON")
    parser.add_argument(
        "--began",
        type=float,
        help="when the installation before began, in seconds since 1970: it counts as well",
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        print(f"There is no GPU here: PyTorch {torch.__version__}, {built}, sees none. Nothing was measured.")
        return 2
    device = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-").lower()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    file = Path(options.out) / f"gpu-{device}-{date}.json"
    parts = all_parts(options.mask, str(file))
    if options.parts is not None:
        parts = [part for part in parts if part.name in options.parts]
    about: dict[str, Any] = {
        "environment": environment(),
        "date": date,
        "mask": "drawn" if options.mask is None else Path(options.mask).name,
        "tools": {name: find_tool(name) is not None for name in ("nvcc", "compute-sanitizer", "ncu")},
    }
    before = 0.0 if options.began is None else max(0.0, time.time() - options.began)
    if options.began is not None:
        about["seconds before the parts"] = round(before, 1)
    code = run_parts(parts, file, about, SECONDS - before)
    print(f"wrote {file}")
    return code


if __name__ == "__main__":
    sys.exit(main())
