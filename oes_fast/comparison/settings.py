"""What a comparison runs, checked; and what the result of each of its cells depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from oes_fast._checks import MAX_SEED, check_choice, check_integer, check_number, check_scale
from oes_fast.comparison.classical import CLASSICAL
from oes_fast.errors import InputError
from oes_fast.models.registry import MODELS, plain_options
from oes_fast.noise import check_noise_level
from oes_fast.pipelines.presets import PRESETS, Preset
from oes_fast.pipelines.schedule import SCHEDULES
from oes_fast.precision import DEFAULT, PRECISIONS
from oes_fast.pruning import METHODS
from oes_fast.pruning.select import SCOPES, SMALL

BASELINES = ("dense_dip", "deep_decoder", "sgld")
NAMES = (*METHODS, *BASELINES, *CLASSICAL)  # all that can be compared

_POINTS = 50  # steps at which the SSIM is taken, by default
_IMP_SHARE = 0.2  # of the weights, pruned by each round of IMP, by default (Frankle et al. 2019)
_BURN_IN = 7_000  # of the published SGLD


@dataclass(frozen=True)
class Settings:
    """What to compare and how; see :func:`oes_fast.comparison.compare`.

    Every method trains for ``train_steps``; those that find a mask train it at ``train_lr``. Where a setting
    is None it follows from the others, as said below.

    Attributes:
        methods: any of random, magnitude, snip, grasp, synflow, imp, oes (ways to a mask), dense_dip,
            deep_decoder, sgld (networks without one), nlm, tv, bm3d (classical denoisers).
        densities: shares of the weights to keep, for the ways to a mask.
        seeds: of weights, input, method and noise.
        sigma: standard deviation of the noise that is added to the clean images.
        noise_seed: of that noise, the same in all cells; None for the seed of the cell.
        train_steps: updates of every training.
        train_lr: Adam's learning rate for what a mask keeps.
        average: decay of the running average of the outputs, None for none.
        record_every: steps from one record of loss and PSNR to the next.
        ssim_every: steps from one SSIM to the next, a multiple of ``record_every``; None for about 50.
        search_steps: updates of the mask search of "oes".
        search_lr: its learning rate.
        search_schedule: of that rate, None for a constant one.
        kl: weight of its KL term.
        temperature: of its relaxed masks.
        scope: of the scores of the other ways to a mask, see :func:`oes_fast.pruning.select`.
        small: what they do with biases and batch norms, see there. "oes" always scores them.
        imp_steps: updates of each round of "imp"; None for ``train_steps``.
        imp_densities: what the rounds of "imp" prune to, falling; None for a fifth of the weights each, with
            all of ``densities`` among them.
        rewind_step: the step whose weights a ticket of "imp" starts from.
        dense_lr: Adam's learning rate of "dense_dip".
        weight_decay: of "dense_dip".
        input_noise: standard deviation of the noise that "dense_dip" adds to its input in each step.
        decoder_lr: Adam's learning rate of "deep_decoder".
        sgld_lr: Adam's learning rate of "sgld".
        param_noise: of its noise on the weights, see :func:`oes_fast.baselines.sgld`.
        burn_in: steps before the posterior mean of "sgld" begins; None for 7,000, or half of the steps where
            they are fewer than 14,000.
        backend: as for :func:`oes_fast.train_sparse`.
        precision: as there.
        model: one of :data:`oes_fast.models.MODELS`, for images: what every method but "deep_decoder" and the
            classical denoisers takes.
        model_options: its options by name, JSON values.

    Raises:
        InputError: one of them is out of range.
    """

    methods: Sequence[str]
    densities: Sequence[float] = (0.05,)
    seeds: Sequence[int] = (0,)
    sigma: float = 0.1
    noise_seed: int | None = None
    train_steps: int = PRESETS["paper"].train_steps
    train_lr: float = PRESETS["paper"].train_lr
    average: float | None = 0.99
    record_every: int = 10
    ssim_every: int | None = None
    search_steps: int = PRESETS["paper"].search_steps
    search_lr: float = PRESETS["paper"].search_lr
    search_schedule: str | None = None
    kl: float = PRESETS["paper"].search_kl
    temperature: float = PRESETS["paper"].search_temperature
    scope: str = "global"
    small: str = "keep"
    imp_steps: int | None = None
    imp_densities: Sequence[float] | None = None
    rewind_step: int = 0
    dense_lr: float = 1e-3
    weight_decay: float = 0.0
    input_noise: float = 0.0
    decoder_lr: float = 1e-2
    sgld_lr: float = 1e-2
    param_noise: float = 2.0
    burn_in: int | None = None
    backend: str = "auto"
    precision: str = DEFAULT
    model: str = "skip"
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("methods", "densities", "seeds"):
            _check_list(name, getattr(self, name))
        for name in self.methods:
            check_choice("methods", name, NAMES)
        for density in self.densities:
            check_number("densities", density, above=0.0, below=1.0)
        for seed in self.seeds:
            check_integer("seeds", seed, minimum=0, below=MAX_SEED)
        positive = ("sigma", "temperature", "train_lr", "search_lr", "dense_lr", "decoder_lr", "sgld_lr")
        for name in positive:
            check_scale(name, getattr(self, name), torch.float32, above=0.0)
        check_noise_level("sigma", self.sigma)
        for name in ("kl", "weight_decay", "input_noise", "param_noise"):
            check_scale(name, getattr(self, name), torch.float32, minimum=0.0)
        for name in ("train_steps", "search_steps", "record_every"):
            check_integer(name, getattr(self, name), minimum=1, below=2**32)
        check_integer("rewind_step", self.rewind_step, minimum=0)
        for name, minimum in (("imp_steps", 1), ("burn_in", 0), ("noise_seed", 0), ("ssim_every", 1)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), minimum=minimum, below=MAX_SEED)
        if self.ssim_every is not None and self.ssim_every % self.record_every:
            raise InputError(
                f"ssim_every: expected a multiple of record_every, {self.record_every}, got {self.ssim_every}"
            )
        if self.average is not None:
            check_number("average", self.average, minimum=0.0, below=1.0)
        if self.search_schedule is not None:
            check_choice("search_schedule", self.search_schedule, SCHEDULES)
        check_choice("scope", self.scope, SCOPES)
        check_choice("small", self.small, SMALL)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("model", self.model, [name for name, model in MODELS.items() if model.dims == 2])
        object.__setattr__(self, "model_options", plain_options(self.model, self.model_options))
        if "imp" in self.methods:
            self._check_imp()
        if "sgld" in self.methods and self.burn_in is not None and self.burn_in >= self.train_steps:
            raise InputError(
                f"burn_in: expected fewer steps than the {self.train_steps} of training, got {self.burn_in}"
            )

    @classmethod
    def of_preset(cls, preset: Preset, *, average: float | None, **given: Any) -> Settings:
        """Steps, rates and density of a preset, but for what is given and not None."""
        known = {known_field.name for known_field in fields(cls)} & set(vars(preset))
        base = {name: getattr(preset, name) for name in known}
        base |= {"kl": preset.search_kl, "temperature": preset.search_temperature}
        base["densities"] = (preset.density,)
        given = {name: value for name, value in given.items() if value is not None}
        return cls(**(base | given), average=average)

    @property
    def ssim_interval(self) -> int:
        """Steps from one SSIM to the next."""
        if self.ssim_every is not None:
            return self.ssim_every
        return self.record_every * max(1, round(self.train_steps / (_POINTS * self.record_every)))

    @property
    def imp_schedule(self) -> tuple[float, ...]:
        """The densities that the rounds of "imp" prune to, falling, down to the lowest asked for."""
        if self.imp_densities is not None:
            return tuple(float(density) for density in self.imp_densities)
        found = set(self.densities)
        density = 1.0
        while (density := density * (1 - _IMP_SHARE)) > min(self.densities):
            # A round that prunes a few weights alone costs as much as any other.
            if all(abs(density / wanted - 1) > _IMP_SHARE / 2 for wanted in self.densities):
                found.add(round(density, 6))
        return tuple(sorted(found, reverse=True))

    def of_cell(self, method: str, density: float | None, seed: int) -> dict[str, Any]:
        """All that the result of one cell depends on but its image, as JSON values by the option's name."""
        found: dict[str, Any] = {
            "method": method,
            "density": density,
            "seed": seed,
            "sigma": self.sigma,
            "noise_seed": seed if self.noise_seed is None else self.noise_seed,
        }
        if method in CLASSICAL:
            return found
        if method != "deep_decoder" and (self.model, dict(self.model_options)) != ("skip", {}):
            found |= {"model": self.model, "model_options": dict(self.model_options)}
        names = ["train_steps", "average", "record_every", "backend", "precision"]
        if method in METHODS:
            names += ["train_lr"]
            names += ["search_steps", "search_lr", "kl"] if method == "oes" else ["scope", "small"]
        if method == "oes" and self.temperature != PRESETS["paper"].search_temperature:
            found["temperature"] = self.temperature  # cells of before say nothing of it
        if method == "oes" and self.search_schedule is not None:
            found["search_schedule"] = self.search_schedule
        if method == "imp":
            found["imp_densities"] = list(self.imp_schedule)
            found["imp_steps"] = self.train_steps if self.imp_steps is None else self.imp_steps
            names += ["rewind_step"]
        if method == "dense_dip":
            names += ["dense_lr", "weight_decay", "input_noise"]
        if method == "deep_decoder":
            names += ["decoder_lr"]
        if method == "sgld":
            found["burn_in"] = min(_BURN_IN, self.train_steps // 2) if self.burn_in is None else self.burn_in
            names += ["sgld_lr", "param_noise"]
        return found | {name: getattr(self, name) for name in names} | {"ssim_every": self.ssim_interval}

    def _check_imp(self) -> None:
        schedule = self.imp_schedule
        if any(not b < a for a, b in zip((1.0, *schedule), schedule, strict=False)) or min(schedule) <= 0:
            raise InputError(f"imp_densities: expected falling numbers between 1 and 0, got {schedule}")
        missing = sorted(set(self.densities) - set(schedule))
        if missing:
            raise InputError(
                f"imp_densities: expected all of densities among them, got {schedule} without {missing}"
            )
        steps = self.train_steps if self.imp_steps is None else self.imp_steps
        if self.rewind_step >= steps:
            raise InputError(
                f"rewind_step: expected a step of the first round of {steps}, got {self.rewind_step}"
            )


def _check_list(name: str, values: Sequence[object]) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}: expected a list, got {values!r}")
    if not values:
        raise InputError(f"{name}: expected one at least, got {values!r}")
    twice = sorted({str(value) for value in values if list(values).count(value) > 1})
    if twice:
        raise InputError(f"{name}: expected each once, got {', '.join(twice)} twice")
