"""What the commands that search and train share: their options, and how a task becomes a problem."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_scale
from oes_fast.cli import options as o
from oes_fast.cli.console import warn
from oes_fast.cli.model import ModelChoice
from oes_fast.cli.problem import ImageOptions, Problem, load_clean
from oes_fast.cli.restore import Request, restore
from oes_fast.cli.settings import DTYPE, RunSettings, SearchSettings, TrainSettings
from oes_fast.errors import InputError
from oes_fast.io.image import load_image
from oes_fast.tasks import Task


@dataclass(frozen=True)
class TaskOptions(ImageOptions):
    """The options that say what to restore and what it was measured with; each command adds its own."""

    def task(self, pixels: Tensor, clean: Tensor | None, seed: int) -> Task:
        """The task.

        Args:
            pixels: of IN, on the device.
            clean: of --clean, there as well.
            seed: of noise and what is drawn.
        """
        raise NotImplementedError

    def clean_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of --clean beside an IN of ``shape``."""
        return shape

    def load(self, *, noise_seed: int, device: torch.device) -> Problem:
        """The problem: IN, measured or degraded.

        Raises:
            InputError: as :func:`load_problem`, and where an option of the task does not fit.
            OESError: deepinv is not here.
        """
        image = load_image(self.image, size=self.size)
        clean: Tensor | None = None
        if self.clean is not None:
            shape = self.clean_shape(tuple(image.pixels.shape))
            size = None if self.size is None else shape[-1]
            clean = load_clean(self.clean, size, shape, "the restored image").to(device)
        task = self.made(lambda: self.task(image.pixels.to(device), clean, noise_seed))
        if image.alpha is not None and image.alpha.shape[-2:] != task.first.shape[-2:]:
            warn(f"{self.image}: the alpha channel is left out: the restored image has another size")
            image = replace(image, alpha=None)
        return Problem(self, image, task.noisy, task.clean, task.seed, task)

    def made(self, make: Callable[[], Task]) -> Task:
        """What ``make`` gives; its errors name options in the place of arguments.

        Raises:
            InputError: an option does not fit.
        """
        try:
            return make()
        except InputError as error:
            name, colon, rest = str(error).partition(":")
            if name == "image" or not hasattr(self, name) or not colon:
                raise
            raise InputError(f"--{name.replace('_', '-')}:{rest}") from error


def restoring_command(
    *, weights_mask: Any = o.WeightsMask
) -> Callable[[Callable[..., ImageOptions]], Callable[..., int]]:
    """What makes a command of a function: its options, which say what to restore, and those of all of them.

    The function is named and documented as the command, and gives what to restore.

    Args:
        weights_mask: annotation of the option that takes the place of the search.
    """

    def decorate(make: Callable[..., ImageOptions]) -> Callable[..., int]:
        own = inspect.signature(make, eval_str=True).parameters
        shared = dict(inspect.signature(_restored, eval_str=True).parameters)
        shared["weights_mask"] = shared["weights_mask"].replace(annotation=weights_mask)
        order = [*own.values(), *(shared[name] for name in shared if name not in ("command", "image"))]
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in order]

        @functools.wraps(make)
        def command(**options: Any) -> int:
            image = make(**{name: options.pop(name) for name in own})
            return _restored(make.__name__, image, **options)

        command.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in keywords}
        return command

    return decorate


def _restored(
    command: str,
    image: ImageOptions,
    *,
    output: o.ImageOut,
    noise_seed: o.NoiseSeed = None,
    weights_mask: o.WeightsMask = None,
    density: o.Density = None,
    search_steps: o.SearchSteps = None,
    search_lr: o.SearchRate = None,
    kl: o.KL = None,
    temperature: o.Temperature = None,
    start: o.Start = None,
    search_size: o.SearchSize = None,
    mask_option: o.MaskOption = "topk",
    train_steps: o.TrainSteps = None,
    train_lr: o.TrainRate = None,
    tv: o.TotalVariation = 0.0,
    weight_decay: o.WeightDecay = 0.0,
    average: o.Average = o.DEFAULT_AVERAGE,
    stop: o.Stop = "none",
    runs: o.Runs = 1,
    schedule: o.ScheduleName = None,
    input_noise: o.InputNoise = 0.0,
    model: o.Model = None,
    model_option: o.ModelOption = None,
    preset: o.PresetName = o.DEFAULT_PRESET,
    seed: o.Seed = None,
    device: o.Device = "auto",
    backend: o.Backend = "auto",
    precision: o.Precision = "float32",
    verify: o.Verify = True,
    threads: o.Threads = None,
    resume: o.Resume = None,
    checkpoint_seconds: o.CheckpointSeconds = 60.0,
    bits: o.Bits = None,
    plots: o.Plots = True,
    json: o.Json = None,
    quiet: o.Quiet = False,
) -> int:
    run = RunSettings.of(
        device=device,
        backend=backend,
        precision=precision,
        verify=verify,
        threads=threads,
        resume=resume,
        checkpoint_seconds=checkpoint_seconds,
        quiet=quiet,
        plots=plots,
        json=json,
    )
    search = SearchSettings.of(
        preset,
        density=density,
        steps=search_steps,
        lr=search_lr,
        kl=kl,
        temperature=temperature,
        mask_option=mask_option,
        start=start,
        size=search_size,
        schedule=schedule,
        input_noise=input_noise,
        prefix="--search-",
    )
    drawn = weights_mask == Path(o.PROFILE)
    return restore(
        Request(
            command=command,
            image=image,
            output=output,
            bits=bits,
            run=run,
            train=TrainSettings.of(
                preset,
                steps=train_steps,
                lr=train_lr,
                average=average,
                schedule=schedule,
                weight_decay=weight_decay,
                input_noise=input_noise,
                stop=stop,
                prefix="--train-",
            ),
            search=search if weights_mask is None else None,
            mask=None if drawn else weights_mask,
            profile=search.density if drawn else None,
            seed=seed,
            noise_seed=noise_seed,
            model=ModelChoice(model, tuple(model_option or ())),
            tv=check_scale("--tv", tv, DTYPE, minimum=0.0),
            runs=runs,
        )
    )


def one_of(**given: object) -> None:
    """Refuse both or none of two options.

    Raises:
        InputError: naming them.
    """
    found = [name for name, value in given.items() if value is not None]
    first, second = (f"--{name.replace('_', '-')}" for name in given)
    if len(found) != 1:
        raise InputError(f"{first}: expected it or {second}, got {'both' if found else 'neither'}")
