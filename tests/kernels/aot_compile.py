"""Compiles every Triton kernel for GPUs that need not be there; prints what each needs as JSON.

python aot_compile.py some|all

A program of its own, since one process either interprets or compiles.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from aot_kernels import Case, all_cases
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

MEASURED = ("sm_80", "sm_90", "sm_100")  # held to a budget
DETAILED = "sm_90"
COMPILED = ("sm_75", "sm_86", "sm_89", "sm_120", "gfx942")  # only that
FEW = {
    "sm_75": True,
    "gfx942": False,
}  # whether with ones: integers that are no constants are compiled for DETAILED


class Device:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, target: str) -> None:
        self._name = target
        cuda = target.startswith("sm_")
        self._target = GPUTarget("cuda", int(target[3:]), 32) if cuda else GPUTarget("hip", target, 64)

    def get_current_target(self) -> GPUTarget:
        """The one that is wanted."""
        return self._target

    def get_current_device(self) -> str:
        """By which Triton keeps what it has compiled."""
        return self._name

    def get_current_stream(self, device: str) -> int:
        """Nothing runs."""
        return 0


class Job(NamedTuple):
    """A case to compile for a target, in general or with 1 for every integer."""

    place: int
    target: str
    ones: bool = False

    @property
    def name(self) -> str:
        """Of its result."""
        return f"{cases()[self.place].name} {self.target}{' ones' if self.ones else ''}"


@functools.cache
def cases() -> list[Case]:
    """All of them, always in the same order."""
    return all_cases()


def jobs(everything: bool) -> list[Job]:
    """The first configuration of each variant for sm_90.

    For the targets that have no budget, one variant of each kernel: for the oldest of NVIDIA's, with integers
    that are 1, and for AMD's. With ``everything`` all configurations for all that have a budget, and all
    variants for the others, both ways.
    """
    found: list[Job] = []
    variants: set[str] = set()
    kernels: set[Any] = set()
    for place, case in enumerate(cases()):
        first, alone = case.variant not in variants, case.kernel not in kernels
        variants.add(case.variant)
        kernels.add(case.kernel)
        if everything:
            found += [Job(place, target) for target in MEASURED]
        elif first:
            found.append(Job(place, DETAILED))
        if everything and first:
            found += [Job(place, target, ones) for target in COMPILED for ones in (False, True)]
        elif alone:
            found += [Job(place, target, ones) for target, ones in FEW.items()]
    return found


def with_ones(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with 1 for every integer that is no constant of the kernel."""
    general = {parameter.name for parameter in kernel.params if not parameter.is_constexpr}
    return {name: 1 if name in general and type(value) is int else value for name, value in arguments.items()}


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers a thread, bytes of stack a thread) as the compiler reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1]), int(found[2])


def compiled(job: Job) -> dict[str, int]:
    """What the machine code needs, or how long it is where there is no budget."""
    case = cases()[job.place]
    arguments = with_ones(case.kernel, case.arguments) if job.ones else case.arguments
    driver.set_active(Device(job.target))
    done = case.kernel.warmup(*arguments.values(), **case.options, grid=(1,))
    if job.target not in MEASURED:
        return {"bytes": len(done.asm["cubin" if job.target.startswith("sm_") else "hsaco"])}
    ptx = done.asm["ptx"]
    registers, stack = resources(done.asm["cubin"])
    return {
        "registers": registers,
        "stack": stack,
        "shared": done.metadata.shared,
        "threads": case.options["num_warps"] * 32,
        "fused": len(re.findall(r"\bfma\.rn\.f32", ptx)),
        "inexact": len(re.findall(r"\bdiv\.full|\bdiv\.approx|\bsqrt\.approx", ptx)),
        "wide_loads": len(re.findall(r"ld\.global[.\w]*\.v4", ptx)),
    }


def main(everything: bool) -> None:
    """Compile, two at a time."""
    wanted = jobs(everything)
    with ProcessPoolExecutor(2) as pool:
        found = pool.map(compiled, wanted)
        print(json.dumps({job.name: result for job, result in zip(wanted, found, strict=True)}))


if __name__ == "__main__":
    main({"some": False, "all": True}[sys.argv[1]])
