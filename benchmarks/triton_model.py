"""What a launch of a Triton kernel should take on an H100, from its arguments and its machine code.

:mod:`benchmarks.gpu_model` asks for it. A kernel's loops are read from its machine code, how often each is
run follows from the launch: rounds of taps from their lists, tiles of pixels from the grid. A launch takes
the longest of five times: to start its instructions, to move what it loads through its processors' load
units, for its products on tensor cores, to move its bytes, and for one program after the other on the
processor that has most of them.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import oes_fast as oes
from benchmarks import sass, triton_launches, triton_sass
from benchmarks.gpu_parts import SIZE
from benchmarks.triton_launches import Launch, Node, Operator, variant

# Beside those of benchmarks.gpu_model; no device has corrected the guesses.
ASSUMED: dict[str, float] = {
    "cycles of an instruction of a warp alone": 2.0,  # guess: half of them wait for the one before
    "cycles of a round that has its loads under way": 400,  # guess: barriers, and what is not hidden
    "cycles of a round that waits for its loads": 1000,  # guess: the L2 cache, and two barriers
    "bytes a cycle of a load unit": 128,  # a processor's; what threads load together counts for each
    "multiply-accumulates a cycle of wgmma": 1024,  # of a processor, TF32
    "share of a move's instructions that a program runs": 0.5,  # they are written twice, for whole blocks
    "instructions behind the loops": 60,  # guess: partial sums and a ticket
    "sums of split taps, us": 1.0,  # guess: where the last program of a tile adds the parts
}
WARP = 32
FLAT = ("pack_weights_kernel", "unpack_weight_grads_kernel", "norm_pass_kernel", "fold_pass_kernel")
WORDS = {"forward_kernel": 3, "update_kernel": 8}  # of an element of the mask's kernels that are moved


@dataclass(frozen=True)
class Work:
    """What a launch does.

    Attributes:
        instructions: of all warps.
        longest: instructions of a warp of the program that has most.
        rounds: of that program.
        waits: cycles of a round beside its instructions.
        loaded: bytes through load units.
        products: multiply-accumulates on tensor cores.
        moved: bytes from and to memory, or the L2 cache.
        extra: microseconds beside.
    """

    instructions: float
    longest: float
    rounds: float
    waits: float
    loaded: float
    products: float
    moved: float
    extra: float = 0.0


def modelled(
    node: Node, kernels: dict[str, sass.Kernel], assumed: dict[str, float], networks: int = 1
) -> dict[str, Any]:
    """Microseconds of a node, and what bounds it.

    Args:
        node: of a step.
        kernels: machine code by variant, see :func:`benchmarks.triton_sass.kernels`.
        assumed: :data:`benchmarks.gpu_model.ASSUMED` and :data:`ASSUMED`.
        networks: by how much more than recorded the nodes outside the chain move.
    """
    a = assumed
    start, hertz = a["start and end of a kernel, us"], a["clock, GHz"] * 1e3
    if isinstance(node, Operator):
        us = networks * node.moved / a["bytes a cycle of memory"] / hertz
        limit = "bytes" if us > start else "start"
        return {"kernel": node.name, "us": round(us + start, 2), "limit": limit}
    kernel = kernels[variant(node).key]
    work = work_of(node, kernel, a, networks)
    warps = node.options["num_warps"]
    programs, processors = math.prod(node.grid), a["processors"]
    resident = max(
        1,
        min(
            a["registers"] // (kernel.registers * warps * WARP),
            a["shared memory, KB"] * 1024 // (kernel.shared + 1024),
            a["threads"] // (warps * WARP),
        ),
    )
    waves = math.ceil(programs / (processors * resident))
    busy = a["share of cycles that start something"]
    # Programs are dealt out one by one: where there are few, some processors have one more than others.
    uneven = math.ceil(programs / processors) * processors / programs
    # A program's warps share four schedulers.
    of_instruction = max(a["cycles of an instruction of a warp alone"], warps / 4 / busy)
    alone = work.longest * of_instruction + work.rounds * work.waits
    wide = any(loop.wide_macs for loop in kernel.loops)
    macs = (
        a["multiply-accumulates a cycle of wgmma"] if wide else 1024 / a["cycles of a product of 16 x 8 x 8"]
    )
    flat = node.name in FLAT or node.name in WORDS
    cycles = {
        "instructions": uneven * work.instructions / 4 / busy / processors,
        "loads": uneven * work.loaded / a["bytes a cycle of a load unit"] / processors,
        "tensor cores": uneven * work.products / macs / processors,
        "bytes": work.moved / a["bytes a cycle of memory" if flat else "bytes a cycle of the L2 cache"],
        "programs one by one": waves * alone,
    }
    limit = max(cycles, key=lambda key: cycles[key])
    us = cycles[limit] / hertz + start + work.extra
    return {"kernel": said(node), "grid": list(node.grid), "us": round(us, 2), "limit": limit} | {
        "us by limit": {key: round(value / hertz, 2) for key, value in cycles.items()}
    }


def said(launch: Launch) -> str:
    """A kernel with the constants that tell one from another."""
    a = launch.arguments
    names = (
        "KIND",
        "EPILOGUE",
        "GROUP",
        "PLACES",
        "TAPS",
        "OUTPUTS",
        "BLOCK",
        "ROWS",
        "COLUMNS",
        "SPLITS",
        "READ",
    )
    shown = ", ".join(f"{name.lower()} {a[name]}" for name in names if name in a)
    return f"{launch.name}<{shown}>"


def work_of(launch: Launch, kernel: sass.Kernel, assumed: dict[str, float], networks: int = 1) -> Work:
    """What a launch does; ``networks``: see :func:`modelled`."""
    counted = {"tap_sum_kernel": _tap_sum, "weight_grad_kernel": _weight_grad}.get(launch.name)
    if counted is not None:
        return counted(launch, kernel, assumed)
    if launch.name in ("norm_pass_kernel", "fold_pass_kernel"):
        return _pass(launch, kernel, assumed)
    return _flat(launch, kernel, assumed, networks if launch.name in WORDS else 1)


def _main_loop(kernel: sass.Kernel, launch: Launch) -> sass.Loop:
    """That of most products."""
    if kernel.inner is None:
        raise SystemExit(f"{launch.name}: expected a loop with products in its machine code")
    return kernel.inner


def _after(launch: Launch, assumed: dict[str, float]) -> float:
    """Microseconds of what the last program of a launch, or of a tile, adds up."""
    split = launch.arguments.get("SPLITS", 1) > 1
    last = launch.arguments.get("FINALISE", 0) != 0
    return last * assumed["last block's sums, us"] + split * assumed["sums of split taps, us"]


def _elements(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _tap_sum(launch: Launch, kernel: sass.Kernel, assumed: dict[str, float]) -> Work:
    a, warps = launch.arguments, launch.options["num_warps"]
    group, taps, block, splits = a["GROUP"], a["TAPS"], a["BLOCK"], a["SPLITS"]
    inner = _main_loop(kernel, launch)
    outer = kernel.loops[inner.around] if inner.around >= 0 else None
    begins = a["begins_ptr"].tolist()
    lists = [end - begin for begin, end in itertools.pairwise(begins)]
    tiles, networks = a["tiles"], launch.grid[2]
    rounds_of = [math.ceil(math.ceil(length / taps) / splits) for length in lists]  # of a tile and part
    rounds = networks * tiles * sum(math.ceil(length / taps) for length in lists)
    programs, tiles_run = math.prod(launch.grid), networks * tiles * len(lists) * splits
    tile = 0 if outer is None else outer.instructions
    behind = assumed["instructions behind the loops"]
    instructions = programs * (kernel.before + behind) + tiles_run * tile + rounds * inner.instructions
    most = max(rounds_of, default=0) * a["program_tiles"]
    longest = kernel.before + behind + a["program_tiles"] * tile + most * inner.instructions
    of_round = inner.shared_bytes + inner.stored_bytes + inner.global_bytes
    of_tile = 0 if outer is None else outer.shared_bytes + outer.stored_bytes + outer.global_bytes
    threads = warps * WARP
    return Work(
        instructions=warps * instructions,
        longest=longest,
        rounds=most,
        waits=_waits(inner, assumed),
        loaded=threads * (rounds * of_round + tiles_run * of_tile),
        products=_products(launch) * rounds * group * taps * block,
        moved=_read_bytes(launch, lists)
        + 4 * networks * a["outputs"] * a["rows"] * a["columns"] * _written(launch),
        extra=_after(launch, assumed),
    )


def _waits(loop: sass.Loop, assumed: dict[str, float]) -> float:
    under_way = loop.copies > loop.global_loads
    return assumed[
        "cycles of a round that " + ("has its loads under way" if under_way else "waits for its loads")
    ]


def _products(launch: Launch) -> int:
    return 3 if launch.arguments["PRECISION"] == "tf32x3" else 1


def _written(launch: Launch) -> int:
    """Images of the size of the result that an epilogue reads and writes: MOMENTS 1, ACT_GRAD 2, IMAGE 3."""
    return {0: 1, 1: 1, 2: 2, 3: 2, 4: 3}[launch.arguments["EPILOGUE"]]


def _read_bytes(launch: Launch, lists: list[int]) -> int:
    """From the L2 cache by a sum over taps: a program's rows of a channel once, and the weights."""
    a = launch.arguments
    taps, begins = a["taps_ptr"].tolist(), a["begins_ptr"].tolist()
    images = 2 if a["READ"] == 3 else 1
    across = min(a["BLOCK"], a["cell_columns"]) * a["step"] + 4
    down = max(1, a["BLOCK"] // a["cell_columns"]) * a["step"]
    read = 0
    for begin, end in itertools.pairwise(begins):
        channels = {channel for channel, _ in taps[begin:end]}
        rows = {place // 256 for _, place in taps[begin:end]}
        read += len(channels) * across * (down + (max(rows) - min(rows) if rows else 0))
    weights = sum(lists) * a["GROUP"]
    return 4 * a["tiles"] * launch.grid[2] * (images * read + weights)


def _weight_grad(launch: Launch, kernel: sass.Kernel, assumed: dict[str, float]) -> Work:
    a, warps = launch.arguments, launch.options["num_warps"]
    inner = _main_loop(kernel, launch)
    programs, networks = math.prod(launch.grid), launch.grid[2]
    rounds = networks * a["blocks"] * a["tiles"]
    outside = kernel.before + assumed["instructions behind the loops"]
    threads, cells = warps * WARP, a["ROWS"] * a["COLUMNS"]
    macs = a.get("PLACES", 1) * a["TAPS"] * a.get("OUTPUTS", a["GROUP"]) * cells
    most = min(a["program_tiles"], a["tiles"])
    of_round = inner.shared_bytes + inner.stored_bytes + inner.global_bytes
    partials = 4 * programs * macs // cells
    return Work(
        instructions=warps * (programs * outside + rounds * inner.instructions),
        longest=outside + most * inner.instructions,
        rounds=most,
        waits=_waits(inner, assumed),
        loaded=threads * rounds * of_round,
        products=_products(launch) * rounds * macs,
        moved=threads * rounds * inner.global_bytes + partials,
    )


def _pass(launch: Launch, kernel: sass.Kernel, assumed: dict[str, float]) -> Work:
    a, warps = launch.arguments, launch.options["num_warps"]
    main = next((loop for loop in kernel.loops if loop.global_loads), None)
    if main is None:
        raise SystemExit(f"{launch.name}: expected a loop that loads in its machine code")
    programs = math.prod(launch.grid)
    if launch.name == "norm_pass_kernel":
        rounds, pixels = a["rounds"], a["pixels"]
    else:
        rounds = math.ceil(a["chunk_rows"] / a["ROWS"]) * math.ceil(a["columns"] / a["COLUMNS"])
        pixels = a["rows"] * a["columns"]
    images = sum(a.get(name) is not None for name in ("y_ptr", "grad_ptr", "out_ptr", "target_ptr"))
    outside = kernel.before + assumed["instructions behind the loops"]
    of_program = outside + rounds * main.instructions
    return Work(
        instructions=warps * programs * of_program,
        longest=of_program,
        rounds=rounds,
        waits=_waits(main, assumed),
        loaded=warps * WARP * programs * rounds * main.global_bytes,
        products=0,
        moved=4 * images * launch.grid[2] * a["channels"] * pixels,
        extra=_after(launch, assumed),
    )


def _flat(launch: Launch, kernel: sass.Kernel, assumed: dict[str, float], networks: int) -> Work:
    """One pass over memory: of weights that are packed, of gradients, of the mask."""
    a, warps, programs = launch.arguments, launch.options["num_warps"], math.prod(launch.grid) * networks
    of_program = kernel.instructions * assumed["share of a move's instructions that a program runs"]
    if launch.name in WORDS:
        words = WORDS[launch.name] - (launch.name == "update_kernel" and "w0_ptr" not in a)  # Adam has 7
        moved = 4 * words * a["numel"] * networks
    else:
        moved = sum(_elements(a[name]) for name in a if name.endswith("_ptr"))
    return Work(
        instructions=warps * programs * of_program,
        longest=of_program,
        rounds=1,
        waits=assumed["cycles of a round that waits for its loads"],
        loaded=moved,
        products=0,
        moved=moved,
    )


def step(
    case: str,
    mask: oes.Mask | str,
    networks: int,
    precision: str,
    assumed: dict[str, float],
    *,
    size: int = SIZE,
) -> list[dict[str, Any]]:
    """Every node of a step of N networks at once: :func:`modelled` of each, in order.

    Args:
        case: "training" or "search".
        mask: of the training, see :func:`benchmarks.triton_launches.step`.
        networks: N.
        precision: one of :data:`oes_fast.precision.PRECISIONS`.
        assumed: see :func:`modelled`.
        size: of the image.
    """
    nodes = triton_launches.step(case, mask, precision=precision, size=size)
    of_chain = set(range(len(nodes)))
    if networks > 1:
        places = [place for place, node in enumerate(nodes) if _in_chain(node)]
        chain = triton_launches.chain(
            mask if case == "training" else None, networks, precision=precision, size=size
        )
        before, behind = nodes[: places[0]], nodes[places[-1] + 1 :]
        inside = [
            node for node in nodes[places[0] : places[-1]] if not _in_chain(node) and node.name != "zero_"
        ]
        of_chain = set(range(len(before), len(before) + len(chain)))
        nodes = [*before, *chain, *inside, *behind]
    found = triton_sass.kernels(triton_sass.variants(nodes))[triton_sass.DETAILED]
    return [
        modelled(node, found, assumed, 1 if place in of_chain else networks)
        for place, node in enumerate(nodes)
    ]


def _in_chain(node: Node) -> bool:
    return isinstance(node, Launch) and node.kernel.__module__.startswith("oes_fast.kernels.chain.")
