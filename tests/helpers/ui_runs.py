"""What the tests of the page share: small runs, and waiting for what happens to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image as PillowImage

from oes_fast.ui.form import Form
from oes_fast.ui.run import Run

LONG = 10_000_000  # steps that no test waits for
SMALL = "num_channels_down=8,8"


def form(**changes: object) -> Form:
    """A form for a run of a second."""
    options = {
        "picture": "camera", "sigma": 0.1, "size": 32, "density": 0.5, "search_steps": 3, "train_steps": 12,
        "seed": 3, "model_options": SMALL, "threads": 1,
    }  # fmt: skip
    return Form(**(options | changes))


def wait_for(run: Run, wanted: Callable[[Run], object], seconds: float = 60.0) -> None:
    """Wait until something is so of a run."""
    end = time.monotonic() + seconds
    while not wanted(run):
        assert time.monotonic() < end, f"{run.state} for {seconds} s: {run.said}"
        assert not run.over or wanted(run), f"{run.state}: {run.said}"
        time.sleep(0.01)


def over(run: Run) -> bool:
    """Whether a run has ended."""
    return run.over


def training(run: Run) -> bool:
    """Whether a run has come to its training and made a step."""
    return run.frame is not None and run.frame.phase == "train" and run.frame.step > 0


def picture_file(path: Path, size: tuple[int, int] = (40, 32)) -> Path:
    """A picture in a file."""
    image = PillowImage.linear_gradient("L").resize(size)
    image.save(path)
    return path
