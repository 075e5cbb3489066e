"""Steps of the published network on Triton's chains, recorded once for all tests of a process."""

from __future__ import annotations

import functools
import math

from benchmarks import triton_launches
from benchmarks.sass import Kernel, Loop
from benchmarks.triton_launches import Launch, Node

SHAPES = {"tap_sum_kernel": ("GROUP", "TAPS", "BLOCK"), "weight_grad_kernel": ("OUTPUTS", "PLACES", "TAPS")}
CHAIN = "oes_fast.kernels.chain."


@functools.cache
def nodes_of(case: str) -> tuple[Node, ...]:
    """The nodes of a step at 512 x 512, in float32, with a drawn mask."""
    return tuple(triton_launches.step(case))


def launches_of(*cases: str) -> list[Launch]:
    """The launches of chains in these steps."""
    nodes = [node for case in cases for node in nodes_of(case)]
    return [n for n in nodes if isinstance(n, Launch) and n.kernel.__module__.startswith(CHAIN)]


def label_of(launch: Launch) -> str:
    """The kernel and what its tile is: "tap_sum 16x16x256"."""
    tile = "x".join(str(launch.arguments[name]) for name in SHAPES.get(launch.name, ()))
    return f"{launch.name.removesuffix('_kernel')} {tile}".strip()


def heaviest(launches: list[Launch]) -> dict[str, Launch]:
    """Of each tile the launch that does most with what it reads and sums, by its label."""
    found: dict[str, Launch] = {}
    for launch in sorted(launches, key=_weight):
        found[label_of(launch)] = launch
    return found


def _weight(launch: Launch) -> tuple[int, ...]:
    names = ("BLOCK", "ROWS", "READ", "EPILOGUE", "SPLITS", "FINALISE", "KIND")
    return tuple(int(launch.arguments.get(name) or 0) for name in names)


def inner_loop(launch: Launch, kernel: Kernel) -> tuple[Loop | None, float]:
    """(where most of the time goes, multiply-accumulates or else pixels of a thread in a round of it)."""
    a, threads = launch.arguments, 32 * launch.options["num_warps"]
    if launch.name == "tap_sum_kernel":
        return kernel.inner, a["GROUP"] * a["TAPS"] * a["BLOCK"] / threads
    if launch.name == "weight_grad_kernel":
        sizes = ("OUTPUTS", "PLACES", "TAPS", "ROWS", "COLUMNS")
        return kernel.inner, math.prod(a[name] for name in sizes) / threads
    pixels = a["BLOCK"] if "BLOCK" in a else a["ROWS"] * a["COLUMNS"]
    return next((loop for loop in kernel.loops if loop.global_loads), None), pixels / threads
