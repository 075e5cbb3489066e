"""What a set came to: a line for every image as CSV, and the whole as JSON."""

from __future__ import annotations

import csv
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oes_fast.batch.manifest import Manifest
from oes_fast.io.files import atomic_write, write_json
from oes_fast.version import __version__

if TYPE_CHECKING:
    from oes_fast.batch.image_set import Batch

FIGURES = (
    "channels", "width", "height", "bits", "psnr_noisy", "psnr", "psnr_last", "psnr_peak", "spread",
    "density", "steps", "stop_step", "seconds", "collapsed", "diverged",
)  # fmt: skip


def write_csv(path: Path, manifest: Manifest) -> None:
    """A line for every image of the folder: name, source, state, figures, and why it failed."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("name", "source", "state", *FIGURES, "failure"))
            for row in manifest.rows(everything=True):
                figures = [row.figures.get(name) for name in FIGURES]
                lines.writerow((row.entry.name, row.entry.source, row.state, *figures, row.failure))

    atomic_write(path, write)


def write_description(path: Path, batch: Batch, settings: dict[str, Any]) -> None:
    """Settings, counts, means and files of the set."""
    content = {
        "command": "batch",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"oes_fast": __version__, "torch": torch.__version__},
        "settings": settings,
        **{name: value for name, value in asdict(batch).items() if name != "folder"},
    }
    write_json(path, content)
