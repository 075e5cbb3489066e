"""What a command was asked to do, checked before anything is computed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from oes_fast._checks import (
    MAX_SEED,
    check_choice,
    check_integer,
    check_number,
    check_scale,
    check_steps,
)
from oes_fast.backends import AUTO, NAMES, backends
from oes_fast.cli.masks import load_mask
from oes_fast.errors import BackendError, InputError
from oes_fast.io.image import MIN_SIDE
from oes_fast.pipelines.extract_mask import MASK_OPTIONS
from oes_fast.pipelines.presets import PRESETS, Preset
from oes_fast.pipelines.schedule import SCHEDULES
from oes_fast.pipelines.stopping import STOPS, rule_of
from oes_fast.precision import PRECISIONS

DTYPE = torch.float32  # of every network on the command line


@dataclass(frozen=True)
class SearchSettings:
    """Arguments of :func:`oes_fast.search_mask`, checked."""

    density: float
    steps: int
    lr: float
    kl: float
    temperature: float
    start: float | Path | None
    size: int | None
    mask_option: str
    schedule: str | None
    input_noise: float

    @classmethod
    def of(
        cls,
        preset: str,
        *,
        density: float | None,
        steps: int | None,
        lr: float | None,
        kl: float | None,
        temperature: float | None,
        mask_option: str,
        start: str | None = None,
        size: int | None = None,
        schedule: str | None = None,
        input_noise: float = 0.0,
        prefix: str = "--",
    ) -> SearchSettings:
        """The preset's settings, overridden by those that are not None.

        Args:
            preset: name of the preset.
            density: option --density.
            steps: option ``prefix`` + steps.
            lr: option ``prefix`` + lr.
            kl: option --kl.
            temperature: option --temperature.
            mask_option: option --mask-option.
            start: option --start.
            size: option --search-size.
            schedule: option --schedule.
            input_noise: option --input-noise.
            prefix: of the options, for messages.

        Raises:
            InputError: a value is out of range.
        """
        base = find_preset(preset)
        return cls(
            density=check_number("--density", _given(density, base.density), above=0.0, below=1.0),
            steps=check_steps(f"{prefix}steps", _given(steps, base.search_steps), minimum=1),
            lr=check_scale(f"{prefix}lr", _given(lr, base.search_lr), DTYPE, above=0.0),
            kl=check_scale("--kl", _given(kl, base.search_kl), DTYPE, minimum=0.0),
            temperature=check_scale(
                "--temperature",
                _given(temperature, base.search_temperature),
                DTYPE,
                minimum=torch.finfo(DTYPE).tiny,
            ),
            start=_find_start(start),
            size=None if size is None else check_integer("--search-size", size, minimum=MIN_SIDE),
            mask_option=check_choice("--mask-option", mask_option, MASK_OPTIONS),
            schedule=find_schedule(schedule or base.search_schedule),
            input_noise=check_scale("--input-noise", input_noise, DTYPE, minimum=0.0),
        )

    @property
    def file(self) -> Path | None:
        """That the search starts from, None where there is none."""
        return self.start if isinstance(self.start, Path) else None

    def arguments(self, net: nn.Module) -> dict[str, Any]:
        """As :func:`oes_fast.search_mask` takes them, but for the size, with the mask it starts from.

        Raises:
            InputError: no such file, or no mask.
            MaskMismatchError: it belongs to another network.
        """
        start = self.start if self.file is None else load_mask(self.file, net)
        names = [each.name for each in fields(self) if each.name != "size"]
        return {**{name: getattr(self, name) for name in names}, "start": start}


@dataclass(frozen=True)
class TrainSettings:
    """Arguments of :func:`oes_fast.train_sparse`, checked."""

    steps: int
    lr: float
    average: float | None
    schedule: str | None
    weight_decay: float
    input_noise: float
    stop: str

    @classmethod
    def of(
        cls,
        preset: str,
        *,
        steps: int | None,
        lr: float | None,
        average: str,
        schedule: str | None = None,
        weight_decay: float = 0.0,
        input_noise: float = 0.0,
        stop: str = "none",
        prefix: str = "--",
    ) -> TrainSettings:
        """As :meth:`SearchSettings.of`; ``average`` is a decay or "off"."""
        base = find_preset(preset)
        return cls(
            steps=check_steps(f"{prefix}steps", _given(steps, base.train_steps), minimum=1),
            lr=check_scale(f"{prefix}lr", _given(lr, base.train_lr), DTYPE, above=0.0),
            average=average_decay(average),
            schedule=find_schedule(schedule),
            weight_decay=check_scale("--weight-decay", weight_decay, DTYPE, minimum=0.0),
            input_noise=check_scale("--input-noise", input_noise, DTYPE, minimum=0.0),
            stop=check_choice("--stop", stop, STOPS),
        )

    def arguments(self, *, seed: int) -> dict[str, Any]:
        """By name, for :func:`oes_fast.train_sparse`.

        Args:
            seed: of the pixels that a holdout leaves out.
        """
        return {**asdict(self), "stop": rule_of(self.stop, seed=seed)}


@dataclass(frozen=True)
class RunSettings:
    """How to run, whatever the command.

    Attributes:
        device: where to compute.
        backend: how to compute.
        precision: of float32 products.
        verify: hold the rewritten network against the dense one first.
        resume: go on from checkpoints (True), start the unfinished phase afresh (False), refuse where there
            are any (None).
        checkpoint_seconds: time between two checkpoints.
        quiet: print warnings and errors only.
        plots: write the plots.
        json: where to write the JSON result, None for beside the output.
    """

    device: torch.device
    backend: str
    precision: str
    verify: bool
    resume: bool | None
    checkpoint_seconds: float
    quiet: bool
    plots: bool
    json: Path | None

    @classmethod
    def of(
        cls,
        *,
        device: str,
        backend: str,
        precision: str,
        verify: bool,
        threads: int | None,
        resume: bool | None,
        checkpoint_seconds: float,
        quiet: bool,
        plots: bool,
        json: Path | None,
    ) -> RunSettings:
        """Check the options, and set the number of threads.

        Raises:
            InputError: a value is out of range, or there is no such device.
            BackendError: the backend cannot run here.
        """
        if threads is not None:
            torch.set_num_threads(check_integer("--threads", threads, minimum=1, below=2**15))
        return cls(
            device=find_device(device),
            backend=find_backend(backend),
            precision=check_choice("--precision", precision, PRECISIONS),
            verify=verify,
            resume=resume,
            checkpoint_seconds=check_number("--checkpoint-seconds", checkpoint_seconds, minimum=0.0),
            quiet=quiet,
            plots=plots,
            json=json,
        )


_STEP_OPTIONS = {"schedule": "--schedule", "input_noise": "--input-noise", "tv": "--tv"}


def search_options(prefix: str) -> dict[str, str]:
    """The option for each setting in a search's checkpoint; ``prefix`` as in :meth:`SearchSettings.of`."""
    names = {name: f"--{name}" for name in ("density", "kl", "temperature", "start", "seed", "backend")}
    return names | {"lr": f"{prefix}lr", "weights": "--seed", "network": "--model", **_STEP_OPTIONS}


def train_options(prefix: str) -> dict[str, str]:
    """As :func:`search_options`, of a training."""
    names = {"backend": "--backend", "average": "--average", "lr": f"{prefix}lr", "weights": "--seed"}
    names |= {"seed": "--seed", "weight_decay": "--weight-decay", "network": "--model", "stop": "--stop"}
    return names | _STEP_OPTIONS


def find_preset(name: str) -> Preset:
    """The preset of that name."""
    return PRESETS[check_choice("--preset", name, tuple(PRESETS))]


def find_schedule(name: str | None) -> str | None:
    """``name`` if there is such a schedule, or None."""
    return None if name is None else check_choice("--schedule", name, SCHEDULES)


def _find_start(text: str | None) -> float | Path | None:
    """The option --start: a probability, or the file of a mask."""
    if text is None:
        return None
    try:
        return check_number("--start", float(text), above=0.0, below=1.0)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        return Path(text)


def find_seed(name: str, *values: int | None) -> int:
    """The first of ``values`` that is not None, checked."""
    return check_integer(name, next((v for v in values if v is not None), 0), minimum=0, below=MAX_SEED)


def find_backend(name: str, *, here: bool = True) -> str:
    """``name`` if that backend is here, or "auto".

    Args:
        name: of a backend.
        here: whether it is to run on this machine.

    Raises:
        BackendError: it cannot run here; the message says why.
    """
    check_choice("--backend", name, (AUTO, *NAMES))
    if here and name != AUTO and not (status := backends()[name]).available:
        raise BackendError(f"--backend: {name} cannot run here: {status.reason}")
    return name


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: no such device here.
    """
    expected = "--device: expected auto, cpu, cuda or cuda:N"
    kind, colon, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise InputError(f"{expected}, got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
        raise InputError(f"{expected}, got {name!r}, but {why}")
    if int(index or 0) >= count:
        raise InputError(f"{expected} with N below {count}, got {name!r}")
    return torch.device("cuda", int(index or 0))


def debug() -> bool:
    """Whether errors are to show where they came from (OES_FAST_DEBUG=1)."""
    return os.environ.get("OES_FAST_DEBUG", "") not in ("", "0")


Number = TypeVar("Number", int, float)


def _given(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def average_decay(text: str) -> float | None:
    """The option --average: a decay, or None for "off".

    Raises:
        InputError: neither.
    """
    if text.lower() in ("off", "none"):
        return None
    try:
        decay = float(text)
    except ValueError:
        raise InputError(f"--average: expected a decay in [0, 1) or off, got {text!r}") from None
    return check_number("--average", decay, minimum=0.0, below=1.0) or None
