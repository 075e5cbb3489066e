"""One image of a set: what to do, where its files lie, and what is told of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oes_fast.batch.settings import Settings

DONE, FAILED, UNMASKED = "done", "failed", "unmasked"
COLOURS = {1: "grey", 3: "RGB"}  # by the number of channels
MASK, SPREAD, SPREAD_NUMBERS = "mask.safetensors", "spread.png", "spread.npy"
UNFINISHED = ".oes-unfinished"  # folder for all that is under way


@dataclass(frozen=True)
class Entry:
    """An image of a set.

    Attributes:
        source: absolute path of the file, or skimage:NAME.
        name: what its results are named after: a path below the folder of results, parted by "/", without
            suffix.
        clean: absolute path of the clean image to measure against, None for none.
    """

    source: str
    name: str
    clean: str | None = None


@dataclass(frozen=True)
class Step:
    """How far a job has come.

    Attributes:
        name: of the job.
        phase: "search" or "train".
        step: updates made.
        steps: updates to make.
        loss: the objective.
        psnr: of the output in dB, None where there is no clean image.
    """

    name: str
    phase: str
    step: int
    steps: int
    loss: float
    psnr: float | None


def never() -> bool:
    """Not to stop; can be pickled."""
    return False


def ignore(step: Step) -> None:
    """Nothing to tell; can be pickled."""


@dataclass
class Options:
    """How jobs run, whatever they are.

    Attributes:
        device: to compute on.
        verify: compare the rewritten network with the dense one, once for each mask and size of image.
        checkpoint_seconds: time between two checkpoints.
        workers: jobs at once that share the memory of the device.
        stopping: whether to stop after the update under way.
        report: takes each :class:`Step`.
    """

    device: str = "cpu"
    verify: bool = True
    checkpoint_seconds: float = 60.0
    workers: int = 1
    stopping: Callable[[], bool] = never
    report: Callable[[Step], None] = ignore


class Stopped(Exception):
    """The job was told to stop; its checkpoint is written, and whoever runs it next goes on from there."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: of the job.
        state: "done"; "failed"; or "unmasked", as there is no mask for images of so many channels yet.
        figures: of what is done: channels, height, width, bits, psnr_noisy, psnr, psnr_peak, seconds, steps,
            collapsed, diverged; of what is unmasked: channels.
        failure: why it failed.
        fatal: whether the other jobs would fail as well, as on a full disk; such a job is not done with.
        stamp: of the image file, by which a change of it is noticed.
        broken: whether the process can compute nothing more, as after most errors of CUDA; the job is for
            another one to go on with.
    """

    name: str
    state: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None
    fatal: bool = False
    stamp: str | None = None
    broken: bool = False


@dataclass(frozen=True)
class SharedMask:
    """A mask for all images of so many channels.

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        seed: of the weights that images are restored from.
    """

    channels: int
    seed: int

    def path(self, root: Path) -> Path:
        """Its file in the folder of results."""
        return mask_path(root, self.channels)


@dataclass(frozen=True)
class MaskSearch:
    """The search for a mask that images share.

    Attributes:
        root: folder of all results.
        entries: the images to search on, all at once.
        channels: of them.
        settings: of the search.
    """

    root: Path
    entries: tuple[Entry, ...]
    channels: int
    settings: Settings

    @property
    def name(self) -> str:
        """For people."""
        return f"mask for {COLOURS[self.channels]} images"

    @property
    def path(self) -> Path:
        """The mask to make."""
        return mask_path(self.root, self.channels)

    @property
    def work(self) -> Path:
        """Folder for what is under way."""
        return self.root / UNFINISHED / self.path.stem


def mask_path(root: Path, channels: int) -> Path:
    """The file of the mask for all images of so many channels."""
    return root / f"batch_mask_{COLOURS[channels].lower()}.safetensors"


@dataclass(frozen=True)
class Job:
    """An image to restore.

    Attributes:
        root: folder of all results.
        entry: the image.
        settings: how.
        masks: that images share; empty where every image has a search of its own.
    """

    root: Path
    entry: Entry
    settings: Settings
    masks: tuple[SharedMask, ...] = ()

    @property
    def name(self) -> str:
        """Of its results, unique in its set."""
        return self.entry.name

    @property
    def image(self) -> Path:
        """The restored image."""
        return self.root / f"{self.name}.{self.settings.format}"

    @property
    def record(self) -> Path:
        """The JSON file that says what the image was made of. Where it is, the job is done."""
        return self.root / f"{self.name}.json"

    @property
    def files(self) -> dict[str, Path]:
        """The results but for the record, by their names in :attr:`work` until all are there."""
        found = {f"image.{self.settings.format}": self.image}
        if not self.masks:
            found[MASK] = self.root / f"{self.name}_mask.safetensors"
        if self.settings.runs > 1:
            found |= {name: self.root / f"{self.name}_{name}" for name in (SPREAD, SPREAD_NUMBERS)}
        return found

    @property
    def work(self) -> Path:
        """Folder for what is under way."""
        return self.root / UNFINISHED / hashlib.sha256(os.fsencode(self.name)).hexdigest()[:16]
