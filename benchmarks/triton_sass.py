"""What Triton makes of a step's kernels, without a GPU: registers, stack, shared memory, and their loops.

    python -m benchmarks.triton_sass [--arch 9.0] [--case search] [--precision tf32]

prints what each variant of a kernel needs that a step launches (:mod:`benchmarks.triton_launches`), read from
its machine code as :mod:`benchmarks.sass` reads that of the CUDA kernels.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import sass
from benchmarks.triton_launches import CASES, Launch, Node, Variant, step, variant
from oes_fast._extension import ROOT
from oes_fast.precision import PRECISIONS

DETAILED = sass.DETAILED
CACHE = ROOT / "build" / "triton_sass"
WARP = 32


class _Job(NamedTuple):
    """One compilation: the module that has the kernel, the variant, the compute capability."""

    module: str
    variant: Variant
    arch: str


def variants(nodes: Iterable[Node]) -> dict[str, Launch]:
    """The first launch of each variant, by the variant's key."""
    found: dict[str, Launch] = {}
    for node in nodes:
        if isinstance(node, Launch):
            found.setdefault(variant(node).key, node)
    return found


def kernels(
    launches: Mapping[str, Launch],
    archs: Sequence[str] = (DETAILED,),
    *,
    cache: Path = CACHE,
    workers: int = 0,
) -> dict[str, dict[str, sass.Kernel]]:
    """What each variant compiles to, by its key, for each compute capability.

    Variants are compiled in parallel, and not again while nothing changes.

    Args:
        launches: what :func:`variants` gives.
        archs: compute capabilities.
        cache: the folder that keeps what was found.
        workers: processes, 0 for one a core.

    Returns:
        Shared memory is what a launch takes. Spills are not known and 0; :attr:`benchmarks.sass.Loop.spilled`
        has those of loops.

    Raises:
        ToolkitError: a tool that reads machine code is not there.
    """
    cache.mkdir(parents=True, exist_ok=True)
    jobs, files = [], []
    found: dict[str, dict[str, sass.Kernel]] = {arch: {} for arch in archs}
    for arch in archs:
        for key, launch in launches.items():
            file = cache / f"{launch.name}-{_fingerprint(launch, key, arch)}.json"
            if file.is_file():
                found[arch][key] = _kernel(json.loads(file.read_text("utf-8")))
            else:
                jobs.append(_Job(launch.kernel.fn.__module__, variant(launch), arch))
                files.append(file)
    if jobs:
        count = min(workers or os.cpu_count() or 1, len(jobs))
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            for job, file, kernel in zip(jobs, files, pool.map(compiled, jobs), strict=True):
                new = file.with_suffix(f".{os.getpid()}")
                new.write_text(json.dumps(asdict(kernel)), "utf-8")
                new.replace(file)
                found[job.arch][job.variant.key] = kernel
    return found


def compiled(job: _Job) -> sass.Kernel:
    """Compile one variant and read its machine code."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget
    kernel = getattr(importlib.import_module(job.module), job.variant.kernel)
    v = job.variant
    source = compiler.ASTSource(kernel, v.signature, v.constants, v.attributes)
    done = triton.compile(
        source, target=target("cuda", int(job.arch.replace(".", "")), WARP), options=v.options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(done.asm["cubin"])
        file.flush()
        registers, stack = sass.resources_in(file.name)
        code = sass.disassembled(file.name)
    return sass.kernel_of((registers, stack, 0, int(done.metadata.shared)), code)


def _kernel(row: dict[str, Any]) -> sass.Kernel:
    return sass.Kernel(**{**row, "loops": tuple(sass.Loop(**loop) for loop in row["loops"])})


def _fingerprint(launch: Launch, key: str, arch: str) -> str:
    """Of the kernel's source and all that it calls, of what it is compiled for, and of how it is read."""
    version = importlib.import_module("triton").__version__
    return hashlib.sha256(
        repr((launch.kernel.cache_key, key, arch, version, _reader())).encode()
    ).hexdigest()[:20]


@functools.cache
def _reader() -> bytes:
    return Path(sass.__file__).read_bytes()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=DETAILED, help="compute capability")
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    given = parser.parse_args()
    found = variants(node for case in given.case for node in step(case, precision=given.precision))
    for key, kernel in kernels(found, [given.arch])[given.arch].items():
        constants = {p.name: found[key].arguments[p.name] for p in found[key].kernel.params if p.is_constexpr}
        said = f"{found[key].name} {constants}\n    "
        said += ", ".join(f"{figure} {getattr(kernel, figure)}" for figure in sass.PRINTED)
        if loop := kernel.inner or max(kernel.loops, key=lambda loop: loop.instructions, default=None):
            said += (
                f", loop: {loop.instructions} instructions, {loop.macs} macs, {loop.shared_loads} loads from "
                f"shared and {loop.global_loads} from global memory, {loop.copies} copies, "
                f"{loop.barriers} barriers, {loop.spilled} spills"
            )
        print(said)


if __name__ == "__main__":
    main()
