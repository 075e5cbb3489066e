"""Compiles every Triton kernel for GPUs that need not be there; prints registers and stack as JSON.

A program of its own, since one process either interprets or compiles.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from oes_fast.kernels import gumbel_mask, mask_update, philox
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

BLOCK = 512
NUM_WARPS = 4
WORDS = {"seed_low": "i32", "seed_high": "i32", "step": "i32", "stream": "i32", "numel": "i64"}
INT64 = ("words_ptr", "bits_ptr")
DOUBLE = ("kl_ptr",)


def signature(kernel, constants):
    """Type of every argument by its name."""
    types = {}
    for name in inspect.signature(kernel.fn).parameters:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = "*i64" if name in INT64 else "*fp64" if name in DOUBLE else "*fp32"
        else:
            types[name] = WORDS.get(name, "fp32")
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


def main(capabilities):
    """Compile all kernels for all compute capabilities."""
    both = {"NEEDS_W0": True, "NEEDS_LOGITS": True}
    kernels = {
        "random_bits": (philox.random_bits_kernel, {}),
        "logistic_from_bits": (philox.logistic_from_bits_kernel, {}),
        "gumbel_mask": (gumbel_mask.forward_kernel, {}),
        "gumbel_mask_backward": (gumbel_mask.backward_kernel, both),
        "mask_update": (mask_update.update_kernel, {"HAS_GRADIENT": True, "HAS_VALUE": False}),
        "mask_update_kl_value": (mask_update.update_kernel, {"HAS_GRADIENT": True, "HAS_VALUE": True}),
    }
    report = {}
    for name, (kernel, flags) in kernels.items():
        constants = {**flags, "BLOCK": BLOCK}
        types = signature(kernel, constants)
        pointers = [i for i, kind in enumerate(types.values()) if kind.startswith("*")]
        attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
        for capability in capabilities:
            source = ASTSource(kernel, types, constants, attributes)
            compiled = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": NUM_WARPS, "enable_fp_fusion": False},
            )
            ptx = compiled.asm["ptx"]
            registers, stack = resources(compiled.asm["cubin"])
            report[f"{name} sm_{capability}"] = {
                "registers": registers,
                "stack": stack,
                "shared": compiled.metadata.shared,
                "fused": len(re.findall(r"\bfma\.rn\.f32", ptx)),
                "inexact": len(re.findall(r"\bdiv\.full|\bdiv\.approx|\bsqrt\.approx", ptx)),
                "wide_loads": len(re.findall(r"ld\.global[.\w]*\.v4", ptx)),
            }
    print(json.dumps(report))


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
