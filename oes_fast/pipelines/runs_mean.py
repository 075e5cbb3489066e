"""The mean of several runs of one image, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oes_fast.errors import DivergedRunWarning, InputError, warn_caller
from oes_fast.pipelines.train import TrainResult


@dataclass(frozen=True, eq=False, repr=False)
class RunsMean:
    """What :func:`mean_of_runs` returns.

    Attributes:
        mean: of the runs' images, [1, C, H, W], in their dtype and on their device.
        spread: standard deviation (n - 1) of each number of the image over the runs, of the shape of
            ``mean`` and in units of pixel values; None where the mean is of a single run.
        used: numbers, from 0, of the runs that the mean is of.
    """

    mean: Tensor
    spread: Tensor | None
    used: tuple[int, ...]

    def __repr__(self) -> str:
        """One line, without tensors."""
        spread = "" if self.spread is None else f", spread {float(self.spread.mean()):.3g} on average"
        return f"RunsMean(runs {', '.join(map(str, self.used))}, image {list(self.mean.shape)}{spread})"


def mean_of_runs(results: Sequence[TrainResult | None]) -> RunsMean:
    """The mean image of several runs of one image from different seeds: better than each of them.

    The image of a run is the running average of its outputs where it has one, else its last output. Runs
    that collapsed or diverged are left out with a warning, unless all did. So are those that were
    interrupted before the last step; if all were, those that made less than half the steps of the one that
    came furthest. Sums are taken in float64 by Welford's method, one image after another.

    Args:
        results: of the runs, all of one shape, dtype and device; None for a run that failed, which is left
            out.

    Returns:
        :class:`RunsMean`.

    Raises:
        InputError: there is no result, or one is no :class:`TrainResult` or has another shape, dtype or
            device than the first.

    Example:
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> mask = oes.pruning.random(oes.fresh_generator(noisy, seed=0)[0], density=0.5, seed=0)
        >>> options = {"steps": 2, "average": 0.9, "verify": False}
        >>> runs = [oes.transfer_mask(mask, noisy, seed=seed, **options) for seed in range(2)]
        >>> both = oes.mean_of_runs(runs)
        >>> both.mean.shape, both.spread.shape, both.used
        (torch.Size([1, 3, 32, 32]), torch.Size([1, 3, 32, 32]), (0, 1))
    """
    found: dict[int, TrainResult] = {}
    for number, result in enumerate(results):
        if result is None:
            continue
        if not isinstance(result, TrainResult):
            raise InputError(f"results: expected TrainResult, got {type(result).__name__} as run {number}")
        found[number] = result
    if not found:
        raise InputError("results: expected one run at least that has a result, got none")
    first = run_image(next(iter(found.values())))
    for number, result in found.items():
        image = run_image(result)
        if (image.shape, image.dtype, image.device) != (first.shape, first.dtype, first.device):
            raise InputError(
                f"results: expected images of one shape, dtype and device, got {tuple(first.shape)} "
                f"{first.dtype} on {first.device} and {tuple(image.shape)} {image.dtype} on {image.device} "
                f"as run {number}"
            )
    used = runs_to_use(found)
    mean, spread = mean_and_spread(run_image(found[number]) for number in used)
    return RunsMean(mean, spread, used)


def runs_to_use(found: Mapping[int, TrainResult]) -> tuple[int, ...]:
    """The numbers of the runs that make the mean, of those that have results; warns of what is left out."""
    sound = {n: r for n, r in found.items() if not r.collapsed and not r.diverged}
    if not sound:
        warn_caller("all runs collapsed or diverged; the mean is of all of them", DivergedRunWarning)
    elif len(sound) < len(found):
        bad = ", ".join(str(number) for number in found if number not in sound)
        warn_caller(
            f"runs that collapsed or diverged are left out of the mean: number {bad} of {len(found)}, from 0",
            DivergedRunWarning,
        )
    kept = sound or found
    # Ctrl-C during the last step of a run leaves nothing of it undone.
    full = max((r.steps for r in kept.values() if not r.interrupted), default=None)
    whole = tuple(n for n, r in kept.items() if not r.interrupted or r.steps == full)
    furthest = max(r.steps for r in kept.values())
    return whole or tuple(n for n, r in kept.items() if 2 * r.steps >= furthest)


def run_image(result: TrainResult) -> Tensor:
    """The image of a run: the average of its outputs where there is one, else the last output."""
    return result.output if result.average is None else result.average


def mean_and_spread(images: Iterable[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Mean and standard deviation (n - 1) of tensors, number by number.

    Args:
        images: one at least, real, of one shape, dtype and device; taken one after another.

    Returns:
        (mean, standard deviation) in the dtype of the images; None for the deviation of a single one, whose
        mean it is itself, bit for bit.
    """
    source = iter(images)
    first = next(source)
    mean, squares, count = first.detach().to(torch.float64, copy=True), None, 1
    for image in source:
        count += 1
        values = image.detach().to(torch.float64)
        before = values - mean
        mean += before / count
        change = before.mul_(values - mean)
        squares = change if squares is None else squares.add_(change)
    spread = None if squares is None else (squares / (count - 1)).sqrt_().to(first.dtype)
    return mean.to(first.dtype), spread
