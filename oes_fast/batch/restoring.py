"""The restoration of one image of a set: its mask, its training, and the files of both."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from oes_fast._memory import available_memory
from oes_fast.autotune_cache import choices_put_back
from oes_fast.batch.job import MASK, SPREAD, SPREAD_NUMBERS, Job, Options, Step, Stopped, mask_path
from oes_fast.errors import CheckpointError, InputError, OESError, OESWarning
from oes_fast.io.arrays import save_numbers
from oes_fast.io.files import write_json
from oes_fast.io.image import Image, load_image, psnr, save_image
from oes_fast.io.plots import spread_picture
from oes_fast.mask import Mask
from oes_fast.mask_notes import with_network
from oes_fast.noise import add_noise
from oes_fast.pipelines.at_once import SHARE
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.failures import without_diverged
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.many import train_many
from oes_fast.pipelines.runs_mean import RunsMean, mean_of_runs, run_image
from oes_fast.pipelines.search import search_mask
from oes_fast.pipelines.train import TrainResult, train_sparse
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe
from oes_fast.version import __version__

_NOTE = "seconds.json"
_SHOWN_SECONDS = 0.5  # from one report of a step to the next
_verified: set[tuple[Any, ...]] = set()  # what this process has held against the dense network

Result = TypeVar("Result")


class Unmasked(Exception):
    """There is no mask for images of so many channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.channels = channels


@choices_put_back()  # those of a checkpoint of another machine are for its image alone
def restored(job: Job, options: Options) -> dict[str, Any]:
    """Restore the image into the job's folder; what the record says of it.

    Raises:
        Unmasked: as there is no mask for its number of channels.
        Stopped: before the end.
        OESError: the image is bad, or a file cannot be written.
    """
    settings = job.settings
    image = load_image(job.entry.source, size=settings.size)
    shared = next((mask for mask in job.masks if mask.channels == image.pixels.shape[1]), None)
    if job.masks and shared is None:
        raise Unmasked(image.pixels.shape[1])
    return _Restoration(job, options, image, (settings.seed or 0) if shared is None else shared.seed).run()


def mask_digest(job: Job, channels: object) -> str | None:
    """Of the mask that images of so many channels share, None where there is none."""
    if not any(mask.channels == channels for mask in job.masks):
        return None
    return digest_of_mask(shared_mask(mask_path(job.root, int(str(channels)))))


def shared_mask(path: Path) -> Mask:
    """A mask of the whole set, read once by each process.

    Raises:
        InputError: it is not there.
    """
    try:
        return _loaded(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: expected the mask of the set, got {error.strerror or error}") from error


@lru_cache(4)
def _loaded(path: Path, changed: int) -> Mask:
    return Mask.load(path)


def digest_of_mask(mask: Mask) -> str:
    """Of its network and of what it keeps of that."""
    return f"{mask.fingerprint}-{digest(mask.flat)}"


def measured(image: Image, sigma: float | None, seed: int) -> Tensor:
    """The noisy image: ``image`` itself, or with noise where it is a clean one."""
    return image.pixels if sigma is None else add_noise(image.pixels, sigma, seed)


class Progress:
    """Tells how a search or a training goes on, and keeps count of its seconds over several processes.

    Args:
        name: of the job.
        folder: that its checkpoints lie in.
        options: of the run.
    """

    def __init__(self, name: str, folder: Path, options: Options) -> None:
        self._name, self._options, self._note = name, options, folder / _NOTE
        self._shown = 0.0
        self._at: dict[int, int] = {}  # steps of each of several runs
        self._began = self._noted = time.monotonic()
        self._before = 0.0
        with suppress(OSError, ValueError, LookupError, TypeError):
            self._before = float(json.loads(self._note.read_text("utf-8"))["seconds"])

    @property
    def seconds(self) -> float:
        """Those of this process and of those before it."""
        return self._before + time.monotonic() - self._began

    def of_run(self, count: int, number: int, info: StepInfo) -> bool:
        """The callback of run ``number`` of ``count``: all together are told of."""
        self._at[number] = info.step
        return self(replace(info, step=sum(self._at.values()), steps=count * info.steps))

    def __call__(self, info: StepInfo) -> bool:
        """The callback: report, and end the run if that is asked for."""
        now = time.monotonic()
        if now - self._shown >= _SHOWN_SECONDS:
            self._shown = now
            step = Step(self._name, info.phase, info.step, info.steps, info.loss, info.psnr)
            self._options.report(step)
        stopping = self._options.stopping()
        if stopping or now - self._noted >= self._options.checkpoint_seconds:
            self._noted = now
            write_json(self._note, {"seconds": self.seconds})
        return stopping


def going_on(paths: Sequence[Path], call: Callable[[bool], Result]) -> Result:
    """``call(True)``, which goes on from the checkpoints; afresh from those of another image.

    Args:
        paths: of the checkpoints, one a run where there are several.
        call: its error says in ``errors`` what each of several runs failed with.
    """
    for _ in range(2):  # what the first look at a checkpoint lets pass is refused by the second
        try:
            return call(True)
        except CheckpointError as error:
            each = getattr(error, "errors", [error] * len(paths))
            for path, refused in zip(paths, each, strict=True):
                if isinstance(refused, CheckpointError):
                    warnings.warn(f"{refused}; begun again", OESWarning, stacklevel=2)
                    path.unlink(missing_ok=True)
    for path in paths:
        path.unlink(missing_ok=True)
    return call(False)


class _Restoration:
    """An image that is being restored."""

    def __init__(self, job: Job, options: Options, image: Image, seed: int) -> None:
        settings = job.settings
        self.job, self.options, self.settings, self.image, self.seed = job, options, settings, image, seed
        self.noise_seed = seed if settings.noise_seed is None else settings.noise_seed
        self.noisy = measured(image, settings.sigma, self.noise_seed).to(options.device)
        clean = None if settings.sigma is None else image.pixels
        if job.entry.clean is not None:
            clean = _clean(job.entry.clean, settings.size, image.pixels)
        self.clean = None if clean is None else clean.to(options.device)
        self.progress = Progress(job.name, job.work, options)

    def run(self) -> dict[str, Any]:
        """Mask, training, image."""
        job, settings = self.job, self.settings
        mask = shared_mask(mask_path(job.root, self.image.pixels.shape[1])) if job.masks else None
        recipe = None if mask is None else mask.recipe
        recipe = recipe or Recipe(settings.model, settings.model_options)
        net, z = fresh_generator(self.noisy, model=recipe.name, options=recipe.options, seed=self.seed)
        if mask is None:
            mask = self._search(net, z, recipe)
        fits = self._train([(net, z), *self._more(recipe)], mask)
        single = fits[0] if len(fits) == 1 else None
        mean = mean_of_runs(fits) if single is None else RunsMean(run_image(single), None, (0,))
        save_image(
            job.work / f"image.{settings.format}",
            mean.mean,
            bits=settings.bits or self.image.bits,
            alpha=self.image.alpha,
            icc_profile=self.image.icc_profile,
        )
        if mean.spread is not None:
            planes = mean.spread[0].cpu().permute(1, 2, 0).numpy().astype(np.float32)
            save_numbers(job.work / SPREAD_NUMBERS, planes[..., 0] if planes.shape[-1] == 1 else planes)
            spread_picture(job.work / SPREAD, mean.spread)
        return self._described(fits, mean, mask, recipe)

    def _more(self, recipe: Recipe) -> list[tuple[nn.Module, Tensor]]:
        """Networks and inputs of the runs after the first."""
        return [
            fresh_generator(self.noisy, model=recipe.name, options=recipe.options, seed=self.seed + number)
            for number in range(1, self.settings.runs)
        ]

    def _search(self, net: nn.Module, z: Tensor, recipe: Recipe) -> Mask:
        path = self.job.work / MASK
        checkpoint = self.job.work / "search.ckpt"
        found = going_on(
            [checkpoint],
            lambda resume: search_mask(
                net, z, self.noisy, checkpoint=checkpoint, resume=resume, verify=self.options.verify,
                **self.settings.of_search(), **self._common(),
            ),
        )  # fmt: skip
        if found.interrupted or found.steps < self.settings.search_steps:
            raise Stopped  # also by Ctrl-C during the last step, of which nobody else has heard
        mask = with_network(found.mask, recipe, self.seed)
        mask.save(path)
        return mask

    def _train(self, generators: Sequence[tuple[nn.Module, Tensor]], mask: Mask) -> list[TrainResult | None]:
        """The trainings; None for one that failed, where there are several."""
        steps, count = self.settings.train_steps, len(generators)
        like = (digest_of_mask(mask), tuple(self.noisy.shape), self.options.device, self.settings.backend)
        more = {**self.settings.of_training(seed=self.seed), **self._common()}
        more["verify"] = self.options.verify and like not in _verified
        fits: list[TrainResult | None]
        if count == 1:
            path = self.job.work / "train.ckpt"
            net, z = generators[0]
            more["checkpoint"] = path
            fits = [going_on([path], lambda on: train_sparse(net, mask, z, self.noisy, resume=on, **more))]
        else:
            paths = [self.job.work / f"train.{number}.ckpt" for number in range(count)]
            more |= {"checkpoints": paths, "callback": partial(self.progress.of_run, count)}
            more["memory"] = self._memory()
            more["seed"] = [self.seed + number for number in range(count)]
            nets, inputs = zip(*generators, strict=True)
            fits = going_on(paths, lambda on: _many(nets, mask, inputs, self.noisy, resume=on, **more))
        if any(fit is not None and (fit.interrupted or not fit.has_ended(steps)) for fit in fits):
            raise Stopped
        # A network that fails is to fail for the next image as well; a mask of one image has no next.
        if self.job.masks and all(fit is not None and fit.backend != "reference" for fit in fits):
            _verified.add(like)
        return fits

    def _memory(self) -> float | None:
        """Bytes for the runs that are made at once, this worker's part of what one alone takes."""
        if self.options.workers == 1:
            return None
        free = available_memory(self.noisy.device)
        # Where all is taken, or over a limit, runs are made one after another.
        return max(1.0, SHARE * free / self.options.workers) if math.isfinite(free) else None

    def _common(self) -> dict[str, Any]:
        return {
            "clean": self.clean,
            "seed": self.seed,
            "callback": self.progress,
            "checkpoint_seconds": self.options.checkpoint_seconds,
        }

    def _described(
        self, fits: list[TrainResult | None], mean: RunsMean, mask: Mask, recipe: Recipe
    ) -> dict[str, Any]:
        there = [fit for fit in fits if fit is not None]
        single = there[0] if len(fits) == 1 else None
        channels, height, width = self.noisy.shape[1:]
        figures = {
            "channels": channels,
            "height": height,
            "width": width,
            "bits": self.image.bits,
            "psnr_noisy": self._psnr(self.noisy),
            "psnr": self._psnr(mean.mean),
            "psnr_last": self._psnr(None if single is None else single.output),
            "psnr_peak": None if single is None or self.clean is None else single.report()["peak"],
            "spread": None if mean.spread is None else float(mean.spread.mean()),
            "density": mask.density,
            "steps": min(fit.steps for fit in there),
            "stop_step": None if single is None or single.stop is None else single.stop.step,
            "seconds": self.progress.seconds,
            "collapsed": all(fit.collapsed for fit in there),
            "diverged": all(fit.diverged for fit in there),
        }
        found: dict[str, Any] = {
            "clean": self.job.entry.clean,
            "seeds": {"seed": self.seed, "noise": None if self.settings.sigma is None else self.noise_seed},
            "network": {"model": recipe.name, "model_options": dict(recipe.options)},
            "mask": {"digest": digest_of_mask(mask) if self.job.masks else None, "kept": mask.kept},
            "figures": figures,
            "backend": there[0].backend,
            "device": str(self.noisy.device),
            "threads": torch.get_num_threads(),
            "versions": {"oes_fast": __version__, "torch": torch.__version__},
        }
        if single is None:
            found["runs"] = [self._run_described(number, fit, mean) for number, fit in enumerate(fits)]
        return found

    def _run_described(self, number: int, fit: TrainResult | None, mean: RunsMean) -> dict[str, Any]:
        said = {"seed": self.seed + number, "used": number in mean.used, "failed": fit is None}
        if fit is None:
            return said
        return {
            **said,
            "psnr": self._psnr(run_image(fit)),
            "stop_step": None if fit.stop is None else fit.stop.step,
            "collapsed": fit.collapsed,
            "diverged": fit.diverged,
        }

    def _psnr(self, image: Tensor | None) -> float | None:
        return None if image is None or self.clean is None else psnr(image, self.clean)


def _many(*arguments: Any, **options: Any) -> list[TrainResult | None]:
    """Several trainings; None for those that failed where another did not."""
    try:
        return [*train_many(*arguments, **options)]
    except OESError as error:
        results, failed = without_diverged(error)
        for why in failed.values():
            warnings.warn(f"{why}; it is left out of the mean", OESWarning, stacklevel=2)
        return results


def _clean(path: str, size: int | None, like: Tensor) -> Tensor:
    clean = load_image(path, size=size).pixels
    if clean.shape != like.shape:
        shapes = [f"{c} x {h} x {w}" for c, h, w in (like.shape[1:], clean.shape[1:])]
        raise InputError(
            f"{path}: expected {shapes[0]} (channels, rows, columns) as the image, got {shapes[1]}"
        )
    return clean
