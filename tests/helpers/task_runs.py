"""What the tests of the tasks' commands share: few steps, and files to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

STEPS = [
    "--preset",
    "paper",
    "--density",
    "0.5",
    "--search-steps",
    "2",
    "--train-steps",
    "4",
    "--threads",
    "1",
    "--no-verify",
]
RUN = [*STEPS, "--quiet"]
RESULTS = {".png", "_mask.safetensors", "_comparison.png", "_psnr.png", ".json"}


def save(path: Path, array: np.ndarray) -> Path:
    """A NumPy file; its path."""
    np.save(path, array)
    return path
