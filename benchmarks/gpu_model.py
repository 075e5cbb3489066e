"""What a step of the CUDA engine should take on an H100, from its launches and the kernels' machine code.

    python -m benchmarks.gpu_model                    # a drawn mask of the published masks' shares
    python -m benchmarks.gpu_model --mask mask.npz    # a published mask
    python -m benchmarks.gpu_model --beside gpu.json  # and what benchmarks.gpu_trace measured, by launches

Nothing is run: the engine binds the published network at 512 x 512 and says what it would launch, and each
kernel's inner loop is read from its machine code. A launch takes the longest of five times: to start its
instructions, to load from shared memory, for its products on tensor cores, to move its bytes, and for one
block after the other on the processor that has most of them. Everything else is in :data:`ASSUMED`. The
result is written to benchmarks/results/gpu-model-h100.json, for the day when a device measures it.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import oes_fast as oes
from benchmarks import sass
from benchmarks.gpu_trace import key_of
from benchmarks.report import write_result
from oes_fast import _cuda_extension, _extension
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import drawn_mask
from oes_fast.precision import PRECISIONS
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.run.chain_cuda import CudaChain
from oes_fast.rewrite.run.chain_find import find_chains

if not torch.cuda.is_available():  # read when the engine is asked for; on a GPU that is the real one
    os.environ.setdefault(_cuda_extension.EMULATE, "1")

RESULT = Path(__file__).resolve().parent / "results" / "gpu-model-h100.json"
TARGET = {"training": 0.3, "search": 0.6}  # ms of one network
NETWORKS = (1, 8, 32)
# Measured on an H100: benchmarks/results/kernels-h100-2026-11-26.json. The rest is from NVIDIA's descriptions
# of it or, where it says so, a guess.
ASSUMED: dict[str, float] = {
    "processors": 132,
    "clock, GHz": 1.7,  # under load; at most 1.98
    "node of a graph, us": 0.9,  # measured: 0.78 to 0.97 between two empty kernels
    "start and end of a kernel, us": 1.2,  # guess: until all blocks run, and from the first done to the last
    "last block's sums, us": 4.0,  # measured: passes over small images take 5 to 6 in all
    "warps that start an instruction a cycle": 8,  # measured: one warp waits 7 to 10 cycles for each
    "instructions of a cycle, at most": 1.7,  # measured, with 11 to 15 warps on a processor
    "share of cycles that load from shared memory": 0.6,  # guess
    "cycles of a product of 16 x 8 x 8": 2,  # 512 multiply-accumulates a cycle; wgmma has twice as many
    "instructions of a staged pixel": 14,  # counted in the machine code of the loops of plane_reader.h
    "instructions of a written pixel": 30,  # guess, from those of epilogue.h's
    "cycles of a round of staging": 1500,  # guess: two dependent loads from the L2 cache, and two barriers
    "cycles of a tap alone": 12,  # guess: a part of a warp's latency that eight warps do not hide
    "bytes a cycle of the L2 cache": 3200,  # 5.5 TB/s
    "bytes a cycle of memory": 1700,  # 2.9 TB/s of 3.35
    "registers": 65536,
    "shared memory, KB": 227,
    "threads": 2048,
}
FLAT = ("pack_weights", "unpack_weight_grads", "norm_pass")
ZEROS, TICK = "zeros of the gradient", "tick"
KEYS = {ZEROS: "memset", TICK: "elementwise"}  # what PyTorch and CUDA call them


class _Planned:
    """A chain that takes no memory: it is never finished."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    def finish(self, act: object, slope: float) -> None:
        """Nothing."""


class _PlannedChain(CudaChain):
    def _made(self, image: tuple[int, int, int]) -> Any:
        return _Planned(super()._made(image))


def launches(mask: oes.Mask | None, size: int, networks: int, products: str) -> list[Any]:
    """What a forward and a backward pass of the published network launch, in order."""
    net = oes.models.skip(seed=0)
    plan = Plan(
        oes.sparsify(net, mask, backend="torch", verify=False)
        .train()
        .plan(oes.noise_input(32, (size, size), seed=0))
        .graph,
        net,
        None if mask is None else mask.flat,
        device=torch.device("cpu"),
        kernels="torch",
    )
    (chain,) = find_chains(plan.graph, plan.alive, plan.input_only, CudaChain.takes)
    native = _PlannedChain(
        chain,
        plan.alive,
        plan.weights,
        torch.float32,
        torch.device("cpu"),
        constant=(True,),
        products=products,
        networks=networks,
    )
    return native.kernels.launches()


def modelled(work: Any, kernels: dict[str, sass.Kernel]) -> dict[str, Any]:
    """Microseconds of one launch, and what bounds it."""
    a = ASSUMED
    processors = a["processors"]
    name = work.kernel.replace("kernel<", "kernel<float, ") if "mma" not in work.kernel else work.kernel
    found = {key.rpartition("::")[2]: kernel for key, kernel in kernels.items() if "<" in key}
    found.update({key.partition("::")[2]: kernel for key, kernel in kernels.items()})
    kernel = found.get(name)
    pixels = (
        work.staged * a["instructions of a staged pixel"]
        + work.outputs * a["instructions of a written pixel"]
    )
    issued, loads, registers = pixels / 32, work.staged / 32 + work.outputs / 8, 64
    if kernel is not None and kernel.inner is not None and work.products:
        inner, registers = kernel.inner, kernel.registers
        macs = work.products * (16 * 8 * 8 / 32 if "mma" in name else 1)  # of the threads of a warp
        issued += macs / 32 * inner.instructions_per_mac
        loads += macs / 32 * inner.shared_loads / inner.macs
    elif work.products:
        raise SystemExit(f"{work.kernel}: expected its machine code, found {', '.join(sorted(found))}")
    resident = max(
        1,
        min(
            a["registers"] // (registers * work.threads),
            a["shared memory, KB"] * 1024 // max(work.shared_bytes + 1024, 1),
            a["threads"] // work.threads,
        ),
    )
    waves = math.ceil(work.blocks / (processors * resident))
    alone = work.chunks * a["cycles of a round of staging"] + work.alone * a["cycles of a tap alone"]
    moved = 4 * (work.staged + work.outputs)
    # Where there are fewer blocks than processors, some of these do nothing.
    busy = min(processors, work.blocks)
    warps = min(resident, max(1.0, work.blocks / processors)) * work.threads / 32
    started = min(a["instructions of a cycle, at most"], warps / a["warps that start an instruction a cycle"])
    flat = name.split("_kernel")[0] in FLAT
    cycles = {
        "instructions": issued / started / busy,
        "shared memory": loads / a["share of cycles that load from shared memory"] / busy,
        "tensor cores": work.products * a["cycles of a product of 16 x 8 x 8"] / busy
        if "mma" in name
        else 0.0,
        "bytes": moved / a["bytes a cycle of memory" if flat else "bytes a cycle of the L2 cache"],
        "blocks one by one": waves * alone,
    }
    limit = max(cycles, key=lambda key: cycles[key])
    took = cycles[limit] / a["clock, GHz"] / 1e3 + a["start and end of a kernel, us"]
    took += 0 if name.split("_kernel")[0] in FLAT[:2] or "grad_" in name else a["last block's sums, us"]
    return {"kernel": work.kernel, "blocks": work.blocks, "us": round(took, 2), "limit": limit}


def whole_step(rows: list[dict[str, Any]], networks: int, *, search: bool, kept: int) -> list[dict[str, Any]]:
    """The chain's launches and those beside it, in order.

    These are the mask drawn and updated, or Adam on kept weights, the zeros of the gradient before the
    backward pass, and the step's count.
    """
    numel = (3_008_867 if search else kept) * networks
    per_us = ASSUMED["bytes a cycle of memory"] * ASSUMED["clock, GHz"] * 1e3
    start = ASSUMED["start and end of a kernel, us"]

    def mask(kernel: str, words: int) -> dict[str, Any]:
        return {"kernel": kernel, "us": round(4 * words * numel / per_us + start, 2), "limit": "bytes"}

    zeros, tick = ({"kernel": name, "us": start, "limit": "start"} for name in (ZEROS, TICK))
    # The gradient of the image, the backward pass's first launch, is the last one before a weight gradient.
    backward = next(n for n, row in enumerate(rows) if row["kernel"].startswith("weight_grad")) - 1
    rows = [*rows[:backward], zeros, *rows[backward:]]
    if search:
        return [mask("gumbel_mask_kernel", 3), *rows, mask("mask_update_kernel", 8), tick]
    return [*rows, mask("masked_adam_kernel", 7), tick]


def beside(model: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """A step of the model and of a measurement, launch by launch.

    Args:
        model: what :func:`step` gives.
        measured: of the same case, what benchmarks.gpu_trace gives.

    Returns:
        The launches in order: of the same kernel in the same place both, else one alone, as PyTorch's own.
        Then the totals in ms, and of launches that both have the microseconds and their ratio, by what limits
        them.
    """
    predicted, found_keys = (
        [KEYS.get(row["kernel"], key_of(row["kernel"])) for row in rows["launches"]]
        for rows in (model, measured)
    )
    rows: list[dict[str, Any]] = []
    matcher = difflib.SequenceMatcher(None, predicted, found_keys, autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        ours, theirs = model["launches"][first:last], measured["launches"][begin:end]
        if kind == "equal":
            rows += [
                {
                    "kernel": found["kernel"],
                    "grid": found.get("grid"),
                    "blocks of the model": row.get("blocks"),
                    "limit": row["limit"],
                    "model us": row["us"],
                    "us": found["us"],
                    "measured / model": round(found["us"] / row["us"], 2),
                }
                for row, found in zip(ours, theirs, strict=True)
            ]
        else:
            rows += [{"kernel": row["kernel"], "limit": row["limit"], "model us": row["us"]} for row in ours]
            rows += [{"kernel": found["kernel"], "us": found["us"]} for found in theirs]
    both = [row for row in rows if "us" in row and "model us" in row]
    by_limit = {}
    for limit in sorted({row["limit"] for row in both}):
        sums = [sum(row[key] for row in both if row["limit"] == limit) for key in ("model us", "us")]
        by_limit[limit] = {
            "model us": round(sums[0], 2),
            "us": round(sums[1], 2),
            "measured / model": round(sums[1] / sums[0], 2),
        }
    return {
        "rows": rows,
        "in both": len(both),
        "of the model alone": sum("us" not in row for row in rows),
        "measured alone": sum("model us" not in row for row in rows),
        "model ms": model["ms"],
        "measured ms": round((measured["us in kernels"] + measured["us between"]) / 1e3, 3),
        "model ms in kernels": round(model["ms"] - model["ms between the nodes"], 3),
        "measured ms in kernels": round(measured["us in kernels"] / 1e3, 3),
        "by limit": by_limit,
    }


def measured_in(file: str) -> tuple[dict[tuple[str, str], dict[str, Any]], str]:
    """(what benchmarks.gpu_trace measured of the engine, by case and precision; why there is nothing)."""
    part = json.loads(Path(file).read_text(encoding="utf-8"))["parts"].get("launches", {})
    result = part.get("result")
    if isinstance(result, list):
        rows = [row for row in result if row["backend"] == "cuda" and "launches" in row]
        if rows:
            return {(row["case"], row["precision"]): row for row in rows}, ""
        result = next((row for row in result if row["backend"] == "cuda"), {})
    reason = (result or {}).get("left out") or part.get("error") or "it was not run"
    return {}, f"part launches: {reason}"


@functools.cache
def kernels_of_the_engine() -> dict[str, sass.Kernel]:
    """Those in the extension where it is the real one, else of its sources, compiled for an H100."""
    path = None if _cuda_extension.emulated() else _extension.CUDA.find()
    if path is None:
        return sass.kernels([sass.DETAILED])[sass.DETAILED]
    archs = _extension.archs_of(_extension.read_identity(path))
    return sass.kernels_in(path, next(arch.removesuffix("+PTX") for arch in reversed(archs)))


def step(mask: oes.Mask | None, networks: int, products: str, size: int = 512) -> dict[str, Any]:
    """The model of one step of that many networks at once."""
    machine_code = kernels_of_the_engine()
    rows = [modelled(work, machine_code) for work in launches(mask, size, networks, products)]
    kept = 0 if mask is None else int(mask.flat.sum())
    rows = whole_step(rows, networks, search=mask is None, kept=kept)
    gaps = len(rows) * ASSUMED["node of a graph, us"]
    total = sum(row["us"] for row in rows) + gaps
    return {
        "networks": networks,
        "precision": products,
        "nodes": len(rows),
        "ms": round(total / 1e3, 3),
        "ms a network": round(total / 1e3 / networks, 3),
        "ms between the nodes": round(gaps / 1e3, 3),
        "ms by limit": {
            limit: round(sum(row["us"] for row in rows if row["limit"] == limit) / 1e3, 3)
            for limit in sorted({row["limit"] for row in rows})
        },
        "launches": rows,
    }


def cases(
    mask: oes.Mask, networks: Sequence[int], precisions: Sequence[str] = PRECISIONS
) -> dict[str, list[dict[str, Any]]]:
    """Every step, said as it is computed; the launches of one network's."""
    found: dict[str, list[dict[str, Any]]] = {"training": [], "search": []}
    for case, of in (("training", mask), ("search", None)):
        for products in precisions:
            for count in networks:
                row = step(of, count, products)
                found[case].append(row if count == 1 else {k: v for k, v in row.items() if k != "launches"})
                print(
                    f"{case}, {products}, {count} networks: {row['ms']} ms, {row['ms a network']} each, "
                    f"{row['nodes']} nodes; {row['ms by limit']}",
                    flush=True,
                )
    return found


def held_to(file: str, mask: oes.Mask) -> dict[str, Any]:
    """The model of one network's steps beside what was measured on this device."""
    measured, reason = measured_in(file)
    found = cases(mask, [1])
    result: dict[str, Any] = {"left out": reason} if reason else {}
    for case, rows in found.items():
        for row in rows:
            key = case, row["precision"]
            entry = {"case": case, "precision": row["precision"]}
            if key in measured:
                entry |= beside(row, measured[key])
            else:
                entry |= {"model ms": row["ms"]}
            result.setdefault("steps", []).append(entry)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", help="mask file; a drawn mask without it")
    parser.add_argument("--networks", nargs="+", type=int, default=list(NETWORKS))
    parser.add_argument("--json", default=str(RESULT), help="where to write the result")
    parser.add_argument(
        "--beside",
        help="a result of benchmarks.gpu: nothing is written, the comparison is the last line printed",
    )
    options = parser.parse_args()
    if not (status := oes.backends()["cuda"]):
        if options.beside is None:
            parser.error(f"backend cuda is {status}")
        print(json.dumps({"left out": f"backend cuda is {status}"}))
        return
    net = oes.models.skip(seed=0)
    mask = drawn_mask(net) if options.mask is None else oes.Mask.load(options.mask, net)
    if options.beside is not None:
        print(json.dumps(held_to(options.beside, mask)))
        return
    write_result(
        options.json,
        {
            "environment": environment(),
            "mask": "drawn" if options.mask is None else Path(options.mask).name,
            "size": 512,
            "assumed": ASSUMED,
            "target, ms a network at N = 1": TARGET,
            **cases(mask, options.networks),
        },
    )


if __name__ == "__main__":
    main()
