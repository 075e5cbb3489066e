"""Timing of alternatives against each other: one call of each in turn, so that a busy machine hits all."""

from __future__ import annotations

import datetime
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

import oes_fast
from oes_fast.autotune_cache import processor


def interleave(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Time every contestant ``rounds`` times in turn.

    Args:
        contestants: calls to time, by name.
        rounds: how often.
        warmup: rounds before the first that counts.

    Returns:
        For each name minimum, median and maximum in milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmup + rounds):
        for name, call in contestants.items():
            gc.collect()
            _synchronize()
            begin = time.perf_counter()
            call()
            _synchronize()
            if turn >= warmup:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: {"min": min(t), "median": statistics.median(t), "max": max(t)} for name, t in times.items()}


def ratios(times: Mapping[str, Mapping[str, float]], baseline: str) -> dict[str, dict[str, float]]:
    """How many times faster than ``baseline`` each contestant is, by minimum and by median."""
    base = times[baseline]
    return {name: {key: base[key] / t[key] for key in ("min", "median")} for name, t in times.items()}


def compared(
    contestants: Mapping[str, Callable[[], object]],
    baseline: str,
    *,
    rounds: int,
    warmup: int = 2,
    precision: str = "float32",
) -> dict[str, Any]:
    """:func:`interleave` and :func:`ratios` as a row of a result, all contestants in one precision.

    Args:
        contestants, rounds, warmup: see there.
        baseline: one of the contestants.
        precision: of all of them, see :func:`oes_fast.precision`.

    Returns:
        "ms" and "times faster" by contestant, and "precision", the setting of each.
    """
    with oes_fast.precision(precision):
        times = interleave(contestants, rounds=rounds, warmup=warmup)
    return {
        "ms": times,
        "times faster": ratios(times, baseline),
        "precision": dict.fromkeys(contestants, precision),
    }


def environment() -> dict[str, Any]:
    """What a figure depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "oes_fast": oes_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "backends": {name: str(status) for name, status in oes_fast.backends().items()},
    }


def write_result(path: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, indented for reading and for diffs, with today's date (UTC) and the command."""
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"date": date, "command": _command(), **result}, file, indent=1)
        file.write("\n")


def _command() -> str:
    """What this process was started with, without the folders of its files and without --json."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = [os.path.basename(sys.argv[0])] if spec is None else ["python", "-m", spec.name]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--json":
            next(arguments, None)
        elif not word.startswith("--json="):
            words.append(os.path.basename(word))
    return shlex.join(words)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
