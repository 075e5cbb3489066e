"""Compiles the kernels of a training and a search ahead, on all cores: what a first step waits for otherwise.

python -m benchmarks.gpu_compile [--mask mask.npz] [--workers 8]

Triton compiles a kernel where it is launched first, one after the other, and keeps the result on disk. Here
several processes make the same step without running its kernels; each variant of a kernel, in every
configuration that tuning tries, is compiled by one of them. The last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import oes_fast as oes

REPO = Path(__file__).resolve().parents[1]
MOST_WORKERS = 16
TUNED = (
    "batch_norm_act", "masked_conv2d", "output_head", "sparse_conv2d", "sparse_taps", "sparse_up_conv2d",
)  # fmt: skip


def variant(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What Triton compiles one launch of a kernel for: types, alignments, integers that are 1, constants.

    Args:
        kernel: decorated with triton.jit, or what the interpreter makes of it.
        arguments: by position, as at the launch.
        options: by name: constants and options of the compiler.
    """
    kept = _kept_general(kernel)

    def described(name: str, value: Any, general: bool) -> Iterator[str]:
        if isinstance(value, torch.Tensor):
            aligned = value.data_ptr() % 16 == 0 and not general
            yield f"{name}:{value.dtype}{':16' if aligned else ''}"
        elif isinstance(value, int) and not isinstance(value, bool):
            special = "" if general else "1" if value == 1 else "16" if value % 16 == 0 else ""
            yield f"{name}:i{32 if -(2**31) <= value < 2**31 else 64}:{special}"
        elif isinstance(value, tuple):  # whose parts are specialised whatever the kernel says of the whole
            for field, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
                yield from described(f"{name}.{field}", part, False)
        elif type(value).__name__ == "constexpr":
            yield f"{name}={value.value}"
        else:
            yield f"{name}:{type(value).__name__}"

    parts = [kernel.__name__]
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        parts += described(name, value, name in kept)
    return " ".join([*parts, *(f"{name}={value}" for name, value in sorted(options.items()))])


def _kept_general(kernel: Any) -> set[str]:
    """Arguments whose value the kernel is not specialised to."""
    if hasattr(kernel, "params"):
        return {p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    names = ("do_not_specialize", "do_not_specialize_on_alignment")
    return {name for key in names for name in kernel.kwargs.get(key) or ()}


@contextlib.contextmanager
def launches(seen: Callable[..., None], function: type | None = None) -> Iterator[None]:
    """Inside, kernels are not run: ``seen`` is called with kernel, grid, arguments and options instead.

    Whatever tuning would choose from is launched, so that a step shows every variant there may be.

    Args:
        seen: called in place of every launch.
        function: Triton's class of kernels; None for that of compiled ones.
    """
    patched: Any = function
    if patched is None:
        patched = importlib.import_module("triton.runtime.jit").JITFunction

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        seen(self, grid, arguments, options)

    def every(name: str, problem: Any, configs: tuple[Any, ...], launch: Callable[[Any], None]) -> None:
        for config in configs:
            launch(config)

    files = [importlib.import_module(f"oes_fast.kernels.{name}") for name in TUNED]
    before = [(file, file.run) for file in files]
    plain = patched.run
    try:
        patched.run = run
        for file in files:
            file.run = every  # type: ignore[attr-defined]
        yield
    finally:
        patched.run = plain
        for file, was in before:
            file.run = was  # type: ignore[attr-defined]


def is_mine(which: str, share: int, shares: int) -> bool:
    """Whether worker ``share`` of ``shares`` compiles a variant."""
    return zlib.crc32(which.encode()) % shares == share


def make_steps(mask: str | None) -> None:
    """One step of everything that benchmarks.gpu times or checks."""
    from benchmarks.gpu_parts import SIZE, problem
    from oes_fast.pipelines.functions import make_function
    from oes_fast.pipelines.objective import SquaredError
    from oes_fast.pipelines.search import SearchRun
    from oes_fast.pipelines.train import TrainRun

    for size in (SIZE, 128):
        net, kept, z, noisy = problem(mask, size, "cuda")
        objective = SquaredError(noisy)
        runs: list[Any] = [
            TrainRun(make_function(net, z, kept, "triton", verify=False)[0], objective, 1e-2, None, "triton")
        ]
        if size == SIZE:
            function, _ = make_function(net, z, None, "triton", verify=False)
            options: dict[str, Any] = {"density": 0.05, "lr": 1e-2, "kl": 1e-9, "temperature": 0.2, "seed": 0}
            runs.append(SearchRun(function, objective, "triton", **options))
        for run in runs:
            clock = run.clock()
            clock.show(0)
            for step in (0, clock):  # numbers by value, and those of recorded steps
                run.forward(step, final=False)
                run.update(step)


def work(mask: str | None, share: int, shares: int) -> int:
    """Compile one worker's variants; how many."""
    compile_it = importlib.import_module("triton.runtime.jit").JITFunction.run
    done: set[str] = set()

    def seen(kernel: Any, grid: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        which = variant(kernel, arguments, options)
        if which not in done and is_mine(which, share, shares):
            compile_it(kernel, *arguments, grid=grid, warmup=True, **options)
            done.add(which)

    with launches(seen):
        make_steps(mask)
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
