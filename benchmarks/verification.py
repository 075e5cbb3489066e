"""What the comparison of the rewritten network with the dense one costs, once a run.

    python -m benchmarks.verification --mask pepper_mask.npz --json benchmarks/results/verification.json

Every case is measured in a process of its own: peak memory is that of a process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
from typing import Any

import torch

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.timer import interleave
from oes_fast.bench.environment import environment


def peak_mb() -> float:
    """Peak memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(path: str | None, size: int, threads: int) -> dict[str, Any]:
    """One case: a training with the mask of ``path``, or a search without one."""
    torch.set_num_threads(threads)
    net = oes.models.skip(seed=0)
    z = oes.noise_input(32, (size, size), seed=0)
    mask = None if path is None else oes.Mask.load(path, net)
    dense = interleave({"dense": lambda: net(z).square().mean().backward()}, rounds=4, warmup=0)["dense"]
    before = peak_mb()

    def bind(verify: bool) -> None:
        oes.sparsify(net, mask, verify=verify).train().plan(z)

    # Once each, as a run does: whatever the first call has to load and to choose is part of it.
    once = interleave({"without": lambda: bind(False), "with": lambda: bind(True)}, rounds=1, warmup=0)
    return {
        "run": "search" if mask is None else "training",
        "size": size,
        "threads": threads,
        "dense step s": dense["min"] / 1e3,
        "binding s": once["without"]["min"] / 1e3,
        "comparison s": once["with"]["min"] / 1e3,
        "dense peak MB": before,
        "comparison peak MB": peak_mb(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file, for the training")
    parser.add_argument("--size", nargs="+", type=int, default=[256, 512], help="image sides")
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    rows = []
    for size in options.size:
        for threads in options.threads:
            for path in (options.mask, None):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row = pool.apply(measure, (path, size, threads))
                rows.append(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.json:
        write_result(options.json, {"environment": environment(), "verification": rows})


if __name__ == "__main__":
    main()
