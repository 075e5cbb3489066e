"""Peak memory of a step, every backend and the published way, each in a process of its own.

python -m benchmarks.memory --mask pepper_mask.npz --size 512 --json benchmarks/results/memory.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
import sys
from pathlib import Path

import torch

import oes_fast as oes
from benchmarks.report import write_result
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import search_steps, training_steps


def peak_of(case: str, way: str, path: str, size: int, steps: int) -> float:
    """Peak resident memory in MB of ``steps`` steps; includes the interpreter and its libraries."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (case, way, path, size, steps))


def _measure(case: str, way: str, path: str, size: int, steps: int) -> float:
    net = oes.models.skip(seed=0)
    z = oes.noise_input(32, (size, size), seed=0)
    noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    backends = [] if way == "published" else [way]
    if case == "search":
        made = search_steps(net, z, noisy, backends)
    else:
        made = training_steps(net, oes.Mask.load(path, net), z, noisy, backends)
    step = made[way]
    del made, net
    for _ in range(steps):
        step()
    return peak_of_this_process()


def peak_of_this_process() -> float:
    """Peak resident memory in MB."""
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # what getrusage says there begins with the peak of the process that started this one
        (kilobytes,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii"), re.MULTILINE)
        return int(kilobytes) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--backend", nargs="+", default=["reference", "torch", "auto"])
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    rows = []
    for case in ("training", "search"):
        for way in ("published", *options.backend):
            peak = peak_of(case, way, options.mask, options.size, options.steps)
            rows.append(
                {
                    "case": case,
                    "way": way,
                    "size": options.size,
                    "precision": "float32",
                    "peak MB": round(peak, 1),
                }
            )
            print(f"{case}, {way}: {peak:.0f} MB", flush=True)
    if options.json:
        write_result(options.json, {"environment": environment(), "memory": rows})


if __name__ == "__main__":
    main()
