"""Sets of tiny images, and restoring them by a small network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage

import oes_fast as oes
from oes_fast.batch import Batch, Outcome, Settings, Step, Watcher, restore_all

SMALL = {
    "num_channels_down": [8, 8],
    "num_channels_up": [8, 8],
    "num_channels_skip": [4, 4],
    "filter_size_down": 3,
}
# The options of the command line that are these settings.
SMALL_OPTIONS = [
    word
    for key, value in SMALL.items()
    for word in ("--model-option", f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}")
]
STEPS = {"search_steps": 2, "train_steps": 4, "density": 0.5, "average": 0.5}


def settings(**more: Any) -> Settings:
    """Few steps of a small network, run as it is."""
    return Settings(**({**STEPS, "model_options": SMALL, "backend": "reference"} | more))


def write_images(folder: Path, *names: str, side: int = 24, seed: int = 0) -> Path:
    """Images of noise; grey ones where "grey" is in the name."""
    for number, name in enumerate(names):
        levels = np.random.default_rng(seed + number).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(levels[..., 0] if "grey" in name else levels).save(path)
    return folder


class Watching(Watcher):
    """Notes what it is told, and says when to stop.

    Args:
        stop: whether to, after a step or an outcome.
    """

    def __init__(self, stop: Callable[[Step | Outcome], bool] | None = None) -> None:
        self.count = self.before = 0
        self.outcomes: list[Outcome] = []
        self.searches: list[Outcome] = []
        self.steps: list[Step] = []
        self._stop, self.stopped = stop, False

    def listed(self, count: int, done: int) -> None:
        self.count, self.before = count, done

    def step(self, step: Step) -> None:
        self.steps.append(step)
        self._see(step)

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._see(outcome)

    def searched(self, outcome: Outcome) -> None:
        self.searches.append(outcome)

    def _see(self, message: Step | Outcome) -> None:
        self.stopped = self.stopped or (self._stop is not None and self._stop(message))

    @property
    def states(self) -> dict[str, str]:
        """By name, of those that were run."""
        return {outcome.name: outcome.state for outcome in self.outcomes}


def go(sources: object, folder: Path, **more: Any) -> Batch:
    """Restore a set, without verification."""
    wanted = more.pop("settings", None) or settings()
    watcher = more.get("watcher")
    if isinstance(watcher, Watching):
        more.setdefault("stopping", lambda: watcher.stopped)
    return restore_all(sources, folder, wanted, **({"verify": False} | more))  # type: ignore[arg-type]


def files_in(folder: Path) -> set[str]:
    """All files and empty folders below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return {path.relative_to(folder).as_posix() for path in paths}


def results_in(folder: Path) -> dict[str, bytes]:
    """The images and masks below a folder by their names."""
    paths = (path for path in folder.rglob("*") if path.suffix in (".png", ".tif", ".jpg", ".safetensors"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_mask(path: Path) -> Path:
    """A mask for RGB images of half the weights of the small network, found with seed 5."""
    net, _ = oes.fresh_generator(torch.rand(1, 3, 24, 24), options=SMALL)
    count = sum(p.numel() for p in net.parameters())
    oes.Mask.from_flat(net, torch.arange(count) % 2 == 0, network_seed=5).save(path)
    return path
