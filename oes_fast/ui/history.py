"""What a page shows of a run's past, in the run's folder: it outlives the server.

Curves, kept frames and the picture that a run begins with are safetensors files, written atomically. A file
that is missing or damaged is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oes_fast.errors import InputError, OutputError
from oes_fast.io.files import load_tensors, save_tensors
from oes_fast.ui.worker import Frame, Picture

FOLDER = ".history"  # no upload's name begins with a dot
PHASES = ("search", "train")
MOST_KEPT = 100  # frames of a run
MOST_KEPT_BYTES = 2**30  # of their pictures

Layers = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Point:
    """A point of the curves: the figures of :class:`oes_fast.ui.worker.Frame`."""

    phase: str
    step: int
    loss: float
    psnr: float | None
    psnr_average: float | None

    @property
    def order(self) -> tuple[int, int]:
        """Grows with the steps of a run."""
        return PHASES.index(self.phase), self.step


def frame_bytes(frame: Frame) -> int:
    """Of a frame's pictures."""
    return frame.output.nbytes + (0 if frame.average is None else frame.average.nbytes)


def write_curves(folder: Path, points: Sequence[Point], layers: Layers) -> None:
    """Write the curves and the densities of layers into a run's folder; a full disk ends no run."""
    rows = [(*point.order, point.loss, _number(point.psnr), _number(point.psnr_average)) for point in points]
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 5)
    with suppress(OutputError):
        _write(folder, "curves", {"points": table}, {"layers": layers})


def read_curves(folder: Path) -> tuple[list[Point], Layers]:
    """What :func:`write_curves` wrote, nothing where there is no such file."""
    try:
        tensors, said = load_tensors(_path(folder, "curves"))
        points = [
            Point(PHASES[int(phase)], int(step), loss, _or_none(psnr), _or_none(psnr_average))
            for phase, step, loss, psnr, psnr_average in tensors["points"].tolist()
        ]
        layers = tuple((str(name), float(kept)) for name, kept in said["layers"])
    except (InputError, LookupError, TypeError, ValueError, OverflowError):
        return [], ()
    return points, layers


def write_first(folder: Path, first: Picture) -> None:
    """Write what a run begins with; a full disk ends no run."""
    with suppress(OutputError):
        _write(folder, "first", {"first": torch.from_numpy(first)}, {})


def read_first(folder: Path) -> Picture | None:
    """What :func:`write_first` wrote, None where there is no such file."""
    try:
        return _picture(load_tensors(_path(folder, "first"))[0]["first"])
    except (InputError, LookupError, ValueError):
        return None


def write_kept(folder: Path, frame: Frame) -> None:
    """Write a frame that was kept.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {"output": torch.from_numpy(frame.output)}
    if frame.average is not None:
        tensors["average"] = torch.from_numpy(frame.average)
    names = ("phase", "step", "steps", "loss", "psnr", "psnr_average", "rate")
    said = {name: getattr(frame, name) for name in names}
    _write(folder, f"{frame.phase}_{frame.step}", tensors, said)


def read_kept(folder: Path) -> list[Frame]:
    """The kept frames of a run by their steps, no more of them than may be kept."""
    found, size = [], 0
    for path in (folder / FOLDER).glob("*_*.safetensors"):
        if (frame := _frame(path)) is not None:
            found.append(frame)
            size += frame_bytes(frame)
        if len(found) == MOST_KEPT or size > MOST_KEPT_BYTES:
            break
    return sorted(found, key=lambda frame: (PHASES.index(frame.phase), frame.step))


def _frame(path: Path) -> Frame | None:
    try:
        tensors, said = load_tensors(path)
        phase, step, loss = said["phase"], int(said["step"]), said["loss"]
        psnr, psnr_average, rate = (
            None if said[name] is None else float(said[name]) for name in ("psnr", "psnr_average", "rate")
        )
        if path.stem != f"{phase}_{step}" or phase not in PHASES:
            return None
        return Frame(
            phase,
            step,
            int(said["steps"]),
            _picture(tensors["output"]),
            _picture(tensors["average"]) if "average" in tensors else None,
            math.nan if loss is None else float(loss),
            psnr,
            psnr_average,
            rate,
            None,
        )
    except (InputError, LookupError, TypeError, ValueError, OverflowError):
        return None


def _picture(levels: Tensor) -> Picture:
    shape = tuple(levels.shape)
    if levels.dtype != torch.uint8 or len(shape) < 2 or shape[2:] not in ((), (3,)) or 0 in shape:
        raise ValueError(f"expected uint8 [H, W] or [H, W, 3], got {levels.dtype} {shape}")
    pixels: Picture = levels.numpy()
    return pixels


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.safetensors"


def _write(folder: Path, name: str, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
    with suppress(OSError):  # that it is not there is said by who writes into it
        (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
    save_tensors(_path(folder, name), tensors, said)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
