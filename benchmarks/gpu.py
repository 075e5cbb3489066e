"""What a machine with a GPU is asked for, in under eight minutes: tests, sanitizer, timings, a training.

    python -m benchmarks.gpu                  # or: make gpu
    python -m benchmarks.gpu --mask mask.npz  # a published mask in place of a drawn one of the same shares

Every part runs in a process of its own under a time limit, and what it found, or the error that ended it,
goes into benchmarks/results/gpu-DEVICE-DATE.json after each of them. Exit code 0: all parts passed; 1: one
failed; 2: there is no GPU here, and nothing was done.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.report import environment, write_result

REPO = Path(__file__).resolve().parents[1]
SECONDS = 478.0  # for all parts together
MOST_WORKERS = 12  # of the tests: most of their time is compilation
TESTS = ("tests/ops", "tests/rewrite", "tests/pipelines")
MEMCHECK = ("-m", "memcheck", "tests/ops")


class Part(NamedTuple):
    """One thing to do.

    Attributes:
        name: in the JSON.
        command: whose exit code says whether it passed, and the last line of whose standard output is its
            result where that is JSON.
        seconds: it may take.
    """

    name: str
    command: Sequence[str]
    seconds: float


def run_part(part: Part, seconds: float) -> dict[str, Any]:
    """Run one part; what it found, or why there is nothing."""
    began = time.monotonic()
    limit = min(part.seconds, seconds)
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
    for part in parts:
        results[part.name] = run_part(part, seconds - (time.monotonic() - began))
        outcome = results[part.name]
        print(
            f"{part.name}: {'passed' if outcome['ok'] else outcome['error']}, {outcome['seconds']} s",
            flush=True,
        )
        about["seconds"] = round(time.monotonic() - began, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        write_result(str(unfinished), {**about, "parts": results})
        unfinished.replace(file)
    return 0 if all(result["ok"] for result in results.values()) else 1


def all_parts(mask: str | None) -> list[Part]:
    """The parts, what matters most first; their limits add up to less than :data:`SECONDS`."""
    pytest = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "triton or recorded")
    chosen = () if mask is None else ("--mask", mask)

    def measure(name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "benchmarks.gpu_parts", name, *chosen)

    # The ratios come before all else but what they would wait for; torch.compile, the slowest, comes last.
    # The limits are for a machine with an H100 and 16 cores.
    compile_ahead = (sys.executable, "-m", "benchmarks.gpu_compile", *chosen)
    workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))
    tests = (*pytest, "-n", str(workers), "-p", "no:benchmark", "-m", "device or cuda_graph", *TESTS)
    parts = [
        Part("compile ahead", compile_ahead, 75),
        *(
            Part(f"steps {name}", (*measure("steps"), "--precision", name), 60)
            for name in ("float32", "tf32")
        ),
        Part("training", measure("training"), 40),
        Part("tests", tests, 100),
        Part("memory", measure("memory"), 35),
        Part("kernels", measure("kernels"), 35),
    ]
    sanitizer = find_sanitizer()
    if sanitizer is not None:
        command = (sanitizer, "--error-exitcode", "3", "--target-processes", "all", *pytest, "-x", *MEMCHECK)
        parts.append(Part("sanitizer", command, 25))
    return [*parts, Part("steps compiled", measure("compiled"), 45)]


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path or in the toolkit, if it is there."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.steps; a drawn mask without it")
    parser.add_argument("--parts", nargs="+", help="names of the parts to run, by default all")
    parser.add_argument("--out", default=str(REPO / "benchmarks" / "results"), help="folder of the JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        print(f"There is no GPU here: PyTorch {torch.__version__}, {built}, sees none. Nothing was measured.")
        return 2
    device = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-").lower()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    file = Path(options.out) / f"gpu-{device}-{date}.json"
    parts = [part for part in all_parts(options.mask) if options.parts is None or part.name in options.parts]
    about = {
        "environment": environment(),
        "date": date,
        "mask": "drawn" if options.mask is None else Path(options.mask).name,
        "sanitizer": find_sanitizer() is not None,
    }
    code = run_parts(parts, file, about)
    print(f"wrote {file}")
    return code


if __name__ == "__main__":
    sys.exit(main())
