"""Compiles every Triton kernel for GPUs that need not be there; prints what each needs as JSON.

A program of its own, since one process either interprets or compiles.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton
from aot_kernels import all_cases
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

INT32 = (
    "places_ptr",
    "offsets_ptr",
    "order_ptr",
    "starts_ptr",
    "group_segments_ptr",
    "group_starts_ptr",
)
POINTERS = {
    "words_ptr": "*i64", "bits_ptr": "*i64", "kl_ptr": "*fp64", "mask_ptr": "*i1", "keep_ptr": "*i1",
    "channels_ptr": "*i64", "ticks_ptr": "*i64", **dict.fromkeys(INT32, "*i32"),
}  # fmt: skip
FLOATS = {
    "scale", "kl", "kl_offset", "log_density", "log_rest", "beta1", "beta1_rest", "beta2", "beta2_rest",
    "step_size", "second_scale", "eps", "slope", "momentum", "correction", "loss_scale",
}  # fmt: skip


def signature(case):
    """Type of every argument by its name."""
    types = {}
    for name in inspect.signature(case.kernel.fn).parameters:
        kind = re.sub(r"_\d(?=_ptr$|$)", "", name)  # the same of several layers
        if name in case.constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = (POINTERS | (case.pointers or {})).get(kind, "*fp32")
        else:
            types[name] = "fp32" if kind in FLOATS else "i64" if name == "numel" else "i32"
    return types


def resources(cubin):
    """(registers a thread, bytes of stack a thread) as the compiler reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    return int(found[1]), int(found[2])


def compiled(place, capability):
    """What one case needs on one architecture."""
    case = all_cases()[place]
    types = signature(case)
    pointers = [i for i, kind in enumerate(types.values()) if kind.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(case.kernel, types, case.constants, attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=case.options)
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


def main(capabilities):
    """Compile all kernels for all compute capabilities, two at a time."""
    cases = all_cases()
    jobs = [(place, capability) for place in range(len(cases)) for capability in capabilities]
    with ProcessPoolExecutor(2) as pool:
        found = pool.map(compiled, *zip(*jobs, strict=True))
        report = {
            f"{cases[place].name} sm_{capability}": result
            for (place, capability), result in zip(jobs, found, strict=True)
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
