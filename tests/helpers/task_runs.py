"""What the tests of the tasks' commands share: few steps, and files to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_runs import STEPS as USUAL

STEPS = [*USUAL, "--train-steps", "4", "--no-verify"]
RUN = [*STEPS, "--quiet"]


def save(path: Path, array: np.ndarray) -> Path:
    """A NumPy file; its path."""
    np.save(path, array)
    return path
