"""Memory and time of planning long sets of images, with a stub in place of the training.

python -m benchmarks.batch_manifest --counts 10000 100000 --json benchmarks/results/batch-manifest-cpu.json
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.report import write_result
from benchmarks.table_text import caption, load, table
from oes_fast.batch import Job, MaskSearch, Options, Outcome, Settings, SharedMask, Watcher, restore_all
from oes_fast.bench.environment import environment

NAME = "batch-manifest-cpu"
MARKS = (1_000, 10_000, 50_000, 100_000, 1_000_000)
_AHEAD = 64  # jobs that the stub has at once
_FIGURES = {"channels": 3, "width": 512, "height": 512, "psnr_noisy": 20.0, "psnr": 30.0, "seconds": 1.0}


def stub(jobs: Iterator[Job | MaskSearch], options: Options, **more: Any) -> Iterator[Outcome]:
    """In the place of workers: many jobs at once, which end in another order than they began in."""
    running: list[str] = []
    for number, job in enumerate(jobs):
        running.append(job.name)
        if len(running) == _AHEAD:
            yield Outcome(running.pop(37 * number % _AHEAD), "done", _FIGURES)
    yield from (Outcome(name, "done", _FIGURES) for name in running)


class Memory(Watcher):
    """Notes the memory of this process as images end."""

    def __init__(self) -> None:
        self.ended_so_far = 0
        self.mib: dict[int, float] = {}

    def ended(self, outcome: Outcome) -> None:
        """Note it at some numbers."""
        self.ended_so_far += 1
        if self.ended_so_far in MARKS:
            self.mib[self.ended_so_far] = resident()


def resident() -> float:
    """MiB of this process in memory, now on Linux, at most elsewhere."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan(count: int) -> dict[str, Any]:
    """Plan a list of so many images, in this process."""
    watcher, first = Memory(), resident()
    with tempfile.TemporaryDirectory() as folder:
        paths = (f"/data/photos/{k // 1000:04}/image_{k:07}.png\n" for k in range(count))
        with (Path(folder) / "list.txt").open("w") as file:
            file.writelines(paths)
        began = time.monotonic()
        with patch("oes_fast.batch.image_set.found_masks", return_value=(SharedMask(3, 1),)):
            done = restore_all(
                Path(folder) / "list.txt", Path(folder) / "out", Settings(), engine=stub, watcher=watcher
            )
        seconds = time.monotonic() - began
        if done.counts["done"] != count:
            raise SystemExit(f"{count} images: {done.counts}")
        size = (Path(folder) / "out" / "batch.sqlite").stat().st_size
    return {
        "count": count,
        "MiB before": first,
        "MiB": watcher.mib,
        "seconds": seconds,
        "manifest MB": size / 1e6,
    }


def tables() -> str:
    """For docs/many-images.md."""
    result = load(NAME)
    marks = [mark for mark in MARKS if any(str(mark) in row["MiB"] for row in result["sets"])]
    rows = []
    for row in result["sets"]:
        memory = [f"{row['MiB'][str(m)]:.0f} MiB" if str(m) in row["MiB"] else "" for m in marks]
        rows.append(
            [
                f"{row['count']:,}",
                f"{row['MiB before']:.0f} MiB",
                *memory,
                f"{row['seconds']:.0f} s",
                f"{row['manifest MB']:.0f} MB",
            ]
        )
    header = ["images listed", "before", *(f"after {mark:,}" for mark in marks), "whole set", "manifest"]
    return f"{caption(NAME, result)}\n{table(header, rows)}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[10_000, 100_000], help="images of each list"
    )
    parser.add_argument("--one", type=int, help="plan one list and print the figures, in this process")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(plan(options.one)))
        return
    sets = []
    for count in options.counts:
        command = [sys.executable, "-m", "benchmarks.batch_manifest", "--one", str(count)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sets.append(json.loads(made.stdout.splitlines()[-1]))
        print(sets[-1], flush=True)
    if options.json:
        write_result(options.json, {"environment": environment(), "sets": sets})


if __name__ == "__main__":
    main()
