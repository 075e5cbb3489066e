"""How every image of a set is restored, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from oes_fast._checks import MAX_RUNS, MAX_SEED, check_choice, check_integer, check_number, check_scale
from oes_fast.errors import InputError
from oes_fast.io.image import FORMATS, MIN_SIDE
from oes_fast.models.registry import MODELS, plain_options
from oes_fast.noise import check_noise_level
from oes_fast.pipelines.extract_mask import MASK_OPTIONS
from oes_fast.pipelines.presets import PRESETS, Preset
from oes_fast.pipelines.schedule import SCHEDULES
from oes_fast.pipelines.stopping import STOPS, rule_of
from oes_fast.precision import DEFAULT, PRECISIONS

FIRST, EACH = "first", "each"
_SEARCH = (
    *("search", "density", "search_steps", "search_lr", "search_schedule"),
    *("kl", "temperature", "mask_option"),
)
_TRAINING = ("train_steps", "train_lr", "runs", "average", "stop", "weight_decay", "format", "bits")


@dataclass(frozen=True)
class Settings:
    """What the results of a set depend on beside its images; see :func:`oes_fast.batch.restore_all`.

    Attributes:
        search: where the mask comes from, if none is given: "first", a search on the first image; a number
            N, one search on the first N images at once; "each", a search on every image.
        density: share of the weights that a search keeps.
        search_steps: updates of a search.
        search_lr: its learning rate.
        kl: weight of its KL term.
        temperature: of its relaxed masks.
        mask_option: how the mask is cut from its probabilities, see :func:`oes_fast.search_mask`.
        train_steps: updates of every training.
        train_lr: Adam's learning rate there.
        runs: trainings of each image, from its seed and those that follow it; the image is their mean.
        average: decay of the running average of the outputs that is written; None for the last output.
        stop: of every training: "variance", "holdout" or "discrepancy", the rule of that name in
            :mod:`oes_fast` with its defaults; "none" for all steps.
        weight_decay: of the training.
        schedule: of the learning rates of search and training, None for constant ones.
        search_schedule: of the search alone, None for ``schedule``.
        input_noise: standard deviation of the noise on the input of search and training.
        size: side to crop and resize every image to, None for as it is.
        sigma: of the noise that is added to the images, which are clean ones then; None for noisy ones.
        noise_seed: of that noise, None for the seed that the image is restored from.
        seed: of the search, 0 for None; images are then restored from fresh weights of one seed more, but
            with "each" from those of the search. Where a mask is given, of the weights that images are
            restored from, None for one more than the seed it was found with, or 0 where that is not known.
        format: suffix of the image files to write: "png", "tif", "tiff", "jpg" or "jpeg".
        bits: per channel of them, 8 or 16; None for those of each image.
        model: one of :data:`oes_fast.models.MODELS`, for images. A mask that says what it is for decides.
        model_options: its options by name, JSON values.
        backend: as for :func:`oes_fast.train_sparse`.
        precision: as there.

    Raises:
        InputError: one of them is out of range.
    """

    search: str | int = FIRST
    density: float = PRESETS["paper"].density
    search_steps: int = PRESETS["paper"].search_steps
    search_lr: float = PRESETS["paper"].search_lr
    kl: float = PRESETS["paper"].search_kl
    temperature: float = 0.2
    mask_option: str = "topk"
    train_steps: int = PRESETS["paper"].train_steps
    train_lr: float = PRESETS["paper"].train_lr
    runs: int = 1
    average: float | None = 0.99
    stop: str = "none"
    weight_decay: float = 0.0
    schedule: str | None = None
    search_schedule: str | None = None
    input_noise: float = 0.0
    size: int | None = None
    sigma: float | None = None
    noise_seed: int | None = None
    seed: int | None = None
    format: str = "png"
    bits: int | None = None
    model: str = "skip"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    precision: str = DEFAULT

    def __post_init__(self) -> None:
        if self.search not in (FIRST, EACH):
            if isinstance(self.search, str):
                raise InputError(f"search: expected first, each or a number of images, got {self.search!r}")
            check_integer("search", self.search, minimum=1, below=2**16)
        check_number("density", self.density, above=0.0, below=1.0)
        for name in ("search_lr", "train_lr", "temperature"):
            check_scale(name, getattr(self, name), torch.float32, above=0.0)
        for name in ("kl", "weight_decay", "input_noise"):
            check_scale(name, getattr(self, name), torch.float32, minimum=0.0)
        for name in ("search_steps", "train_steps"):
            check_integer(name, getattr(self, name), minimum=1, below=2**32)
        check_integer("runs", self.runs, minimum=1, below=MAX_RUNS + 1)
        check_choice("stop", self.stop, STOPS)
        check_choice("mask_option", self.mask_option, MASK_OPTIONS)
        if self.average is not None:
            check_number("average", self.average, minimum=0.0, below=1.0)
        for name in ("schedule", "search_schedule"):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), SCHEDULES)
        if self.size is not None:
            check_integer("size", self.size, minimum=MIN_SIDE)
        if self.sigma is not None:
            check_noise_level("sigma", self.sigma)
        for name in ("noise_seed", "seed"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=0, below=MAX_SEED)
        check_choice("format", self.format, [suffix.removeprefix(".") for suffix in FORMATS])
        if self.bits not in (None, 8, 16):
            raise InputError(f"bits: expected 8 or 16, got {self.bits}")
        if self.bits == 16 and FORMATS[f".{self.format}"] == "JPEG":
            raise InputError(f"bits: expected 8 for JPEG, got {self.bits}")
        check_choice("model", self.model, [name for name, model in MODELS.items() if model.dims == 2])
        check_choice("precision", self.precision, PRECISIONS)
        object.__setattr__(self, "model_options", plain_options(self.model, self.model_options))

    @classmethod
    def of_preset(cls, preset: Preset, *, average: float | None, **given: Any) -> Settings:
        """Steps, rates and density of a preset, but for what is given and not None."""
        known = {known_field.name for known_field in fields(cls)} & set(vars(preset))
        base = {name: getattr(preset, name) for name in known}
        base |= {"kl": preset.search_kl, "temperature": preset.search_temperature}
        given = {name: value for name, value in given.items() if value is not None}
        if "schedule" in given:
            del base["search_schedule"]
        return cls(**(base | given), average=average)

    def plain(self, *, searched: bool) -> dict[str, Any]:
        """All of them as JSON values by name; without those of the search where nothing is searched."""
        found = self._as_dict()
        return found if searched else {name: value for name, value in found.items() if name not in _SEARCH}

    @property
    def search_digest(self) -> str:
        """16 hex digits of the SHA-256 of all that a search depends on beside its images."""
        found = {name: value for name, value in self._as_dict().items() if name not in _TRAINING}
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]

    def of_search(self) -> dict[str, Any]:
        """Arguments of :func:`oes_fast.search_mask`."""
        return {
            "density": self.density,
            "steps": self.search_steps,
            "lr": self.search_lr,
            "kl": self.kl,
            "temperature": self.temperature,
            "mask_option": self.mask_option,
            **self._common(),
            **({} if self.search_schedule is None else {"schedule": self.search_schedule}),
        }

    def of_training(self, *, seed: int) -> dict[str, Any]:
        """Arguments of :func:`oes_fast.train_sparse`; ``seed`` is that of the pixels a holdout leaves out."""
        return {
            "steps": self.train_steps,
            "lr": self.train_lr,
            "average": self.average,
            "stop": rule_of(self.stop, seed=seed),
            "weight_decay": self.weight_decay,
            **self._common(),
        }

    def _as_dict(self) -> dict[str, Any]:
        """Without a schedule of the search alone where there is none: sets of before say nothing of it."""
        found = asdict(self)
        if self.search_schedule is None:
            del found["search_schedule"]
        return found

    def _common(self) -> dict[str, Any]:
        names = ("schedule", "input_noise", "backend", "precision")
        return {name: getattr(self, name) for name in names}
