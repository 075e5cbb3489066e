"""What a run came to: the JSON result for programs, a small table for people."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oes_fast.cli.console import warn
from oes_fast.cli.display import lost_output
from oes_fast.cli.problem import Problem
from oes_fast.cli.settings import RunSettings
from oes_fast.io.image import psnr
from oes_fast.mask import Mask
from oes_fast.pipelines.clean import clean_pixels, compared
from oes_fast.pipelines.history import History
from oes_fast.pipelines.search import SearchResult
from oes_fast.pipelines.stop_rule import StopReport
from oes_fast.pipelines.train import TrainResult
from oes_fast.version import __version__


def versions() -> dict[str, str]:
    """Of the package, PyTorch and Python."""
    return {"oes_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name and kind of the device, and the CPU threads in use."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads()}


def describe_mask(mask: Mask) -> dict[str, Any]:
    """Density, number of weights kept, network and settings of a mask."""
    return {
        "density": mask.density,
        "kept": mask.kept,
        "fingerprint": mask.fingerprint,
        "settings": dict(mask.settings),
    }


def describe_run(
    command: str,
    problem: Problem,
    run: RunSettings,
    seed: int,
    results: Iterable[SearchResult | TrainResult],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The part of the JSON result that every command writes.

    Args:
        command: its name.
        problem: what was restored.
        run: how.
        seed: of network and search.
        results: of the phases that ran.
        settings: of the phases, by name.
    """
    phases = {"search" if isinstance(r, SearchResult) else "train": r for r in results}
    last = list(phases.values())[-1]
    seconds = {name: result.seconds for name, result in phases.items()}
    return {
        "command": command,
        "versions": versions(),
        **describe_device(run.device),
        "backend": last.backend,
        "precision": run.precision,
        "image": problem.describe(),
        "seeds": {"seed": seed, "noise": problem.noise_seed},
        "settings": {
            **settings,
            "backend": run.backend,
            "precision": run.precision,
            "verify": run.verify,
            "checkpoint_seconds": run.checkpoint_seconds,
        },
        "resumed": run.resume is True,
        "collapsed": last.collapsed,
        "diverged": any(result.diverged for result in phases.values()),
        "steps": {name: result.steps for name, result in phases.items()},
        "seconds": {**seconds, "total": sum(seconds.values())},  # of this call, where it was resumed
        "mask": describe_mask(last.mask),
        "history": {name: columns(result.history) for name, result in phases.items()},
    }


def columns(history: History) -> dict[str, list[Any]]:
    """The history by columns; NaN, for what is not known, becomes null in JSON."""
    records = [record._asdict() for record in history]
    return {name: [record[name] for record in records] for name in (records[0] if records else ())}


def describe_stop(stop: StopReport | None) -> dict[str, Any] | None:
    """Where and why a training stopped, for the JSON result; None without a rule."""
    if stop is None:
        return None
    curve = {"step": [step for step, _ in stop.curve], "criterion": [value for _, value in stop.curve]}
    said = {"rule": stop.rule, "step": stop.step, "stopped": stop.stopped, "reason": stop.reason}
    return {**said, "curve": curve}


def stop_row(stop: StopReport) -> str:
    """The same for the table."""
    return f"{stop.rule}: image of step {stop.step}; {stop.reason}"


def measure(problem: Problem, found: SearchResult | None, fit: TrainResult | None) -> dict[str, Any] | None:
    """Every PSNR in dB, None without a clean image.

    Returns:
        noisy (what the measurement shows), masked (initial weights under the mask; None where the search was
        on a smaller image), restored (the image written), last (output of the last step, with a stopping rule
        of the step it has found), average (of the outputs), and for outputs and average the peak and its
        step; None for what was not computed.
    """
    clean = problem.clean
    if clean is None:
        return None

    def of(image: Tensor | None) -> float | None:
        return None if image is None else float(psnr(*compared(image, clean)))

    last = None if fit is None else fit.output
    average = None if fit is None else fit.average
    run = (History() if fit is None else fit.history).report()
    masked = None if found is None else found.output
    if masked is not None and isinstance(clean, Tensor) and masked.shape != clean.shape:
        masked = None  # of a search on a smaller image
    return {
        "noisy": float(psnr(problem.measured, clean_pixels(clean))),
        "masked": of(masked),
        "restored": of(last if average is None else average),
        "last": of(last),
        "average": of(average),
        **{name: run[name] for name in ("peak", "peak_step", "peak_average", "peak_average_step")},
    }


def print_table(rows: Iterable[tuple[str, str]], files: Iterable[Path]) -> None:
    """Print rows of name and value, and the files written, on stdout."""
    written = [("Written" if index == 0 else "", str(path)) for index, path in enumerate(files)]
    table = [*rows, *written]
    width = max((len(name) for name, _ in table), default=0)
    for name, value in table:
        print(f"{name:<{width}}  {value}")
    if (reason := lost_output()) is not None:
        warn(f"standard output: cannot write: {reason}")


def decibels(value: float | None) -> str:
    """ "27.88 dB", or a dash for what is not known."""
    return "-" if value is None else f"{value:.2f} dB"


def plain(settings: object) -> dict[str, Any]:
    """The fields of a settings class, for JSON."""
    return asdict(settings)  # type: ignore[call-overload]
