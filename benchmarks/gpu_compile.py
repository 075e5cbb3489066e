"""Compiles the kernels of a training and a search ahead, on all cores: what a first step waits for otherwise.

python -m benchmarks.gpu_compile [--mask mask.npz] [--workers 8]

Triton compiles a kernel where it is launched first, one after the other, and keeps the result on disk. Here
several processes make the same step without running its kernels; each variant of a kernel, in every
configuration that tuning tries, is compiled by one of them. The last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import oes_fast as oes
from benchmarks.triton_launches import SEARCH, Launch, launches, variant

REPO = Path(__file__).resolve().parents[1]
MOST_WORKERS = 16


def is_mine(which: str, share: int, shares: int) -> bool:
    """Whether worker ``share`` of ``shares`` compiles a variant."""
    return zlib.crc32(which.encode()) % shares == share


def make_steps(
    mask: str | None,
    device: str = "cuda",
    *,
    sizes: tuple[int, int] | None = None,
    channels: tuple[int, ...] | None = None,
) -> None:
    """One step of everything that benchmarks.gpu times or checks, of images of its two sizes or others."""
    from benchmarks.gpu_parts import SIZE, problem
    from oes_fast.pipelines.functions import make_function
    from oes_fast.pipelines.objective import SquaredError
    from oes_fast.pipelines.search import SearchRun
    from oes_fast.pipelines.train_run import TrainRun

    large, small = sizes or (SIZE, 128)
    for size, precision in ((large, "float32"), (large, "tf32"), (small, "float32")):
        with oes.precision(precision):
            net, kept, z, noisy = problem(mask, size, device, channels)
            objective = SquaredError(noisy)
            function, chosen = make_function(net, z, kept, "triton", verify=False)
            runs: list[Any] = [TrainRun(function, objective, 1e-2, None, chosen)]
            if size == large:
                function, chosen = make_function(net, z, None, "triton", verify=False)
                runs.append(SearchRun(function, objective, chosen, **SEARCH))
            for run in runs:
                clock = run.clock()
                clock.show(0)
                for step in (0, clock):  # numbers by value, and those of recorded steps
                    run.forward(step, final=False)
                    run.update(step)


def work(mask: str | None, share: int, shares: int, **options: Any) -> int:
    """Compile one worker's variants; how many. ``options``: of :func:`make_steps`."""
    compile_it = importlib.import_module("triton.runtime.jit").JITFunction.run
    done: set[str] = set()

    def seen(launch: Launch) -> None:
        which = variant(launch)
        if which not in done and is_mine(which, share, shares):
            compile_it(launch.kernel, grid=launch.grid, warmup=True, **launch.arguments, **launch.options)
            done.add(which)

    with launches(seen, every_config=True):
        make_steps(mask, **options)
    return len(done)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file, see benchmarks.gpu")
    parser.add_argument("--workers", type=int, default=min(MOST_WORKERS, os.cpu_count() or 1))
    parser.add_argument("--share", type=int, help="work as this one of the workers")
    options = parser.parse_args()
    if options.share is not None:
        print(json.dumps(work(options.mask, options.share, options.workers)))
        return
    if not (status := oes.backends()["triton"]):
        print(json.dumps({"left out": f"backend triton is {status}"}))
        return
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_compile", "--workers", str(options.workers)]
    command += [] if options.mask is None else ["--mask", options.mask]
    workers = [
        subprocess.Popen([*command, "--share", str(share)], cwd=REPO, stdout=subprocess.PIPE, text=True)
        for share in range(options.workers)
    ]
    said = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit(f"workers ended with {[worker.returncode for worker in workers]}")
    variants = [int(text.splitlines()[-1]) for text in said]
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"variants": sum(variants), "workers": options.workers, "seconds": seconds}))


if __name__ == "__main__":
    main()
