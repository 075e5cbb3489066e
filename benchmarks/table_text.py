"""What the tables of the measured pages are made of: committed results, and their figures as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Result = dict[str, Any]

NAMES = {
    "published": "published code",
    "compiled": "published code, torch.compile",
    "sparseprop": "SparseProp",
    "deepinv": "deepinv's loop, all weights",
    "torch": "torch",
    "auto": "oes_fast",
    "triton": "oes_fast, Triton",
    "cuda": "oes_fast, CUDA C++",
}


def measured(pattern: str) -> list[str]:
    """Names of the results that match, the newest first."""
    names = sorted(path.stem for path in RESULTS.glob(f"{pattern}.json"))
    return sorted(names, key=lambda name: load(name)["date"], reverse=True)


def load(name: str) -> Result:
    """A committed result."""
    result: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def machine(result: Result) -> str:
    """What it was measured on."""
    where = result["environment"]
    return where["gpu"] or f"{where['cpu']}, {where['cpu_capability']}, {where['cores']} cores"


def caption(name: str, result: Result, *, command: bool = True) -> str:
    """When, where and with what it was measured, and how to measure it again."""
    link = f"[{name}.json](../benchmarks/results/{name}.json)"
    said = f"{result['date']} · {machine(result)} · PyTorch {result['environment']['torch']} · {link}\n"
    return f"{said}\n    {result['command']}\n" if command else said


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def two(figures: dict[str, float], digits: int) -> str:
    """Minimum (median)."""
    return f"{figures['min']:.{digits}f} ({figures['median']:.{digits}f})"


def ms(figures: dict[str, float]) -> str:
    """Milliseconds, three digits at least."""
    return two(figures, 1 if figures["min"] < 100 else 0)
