"""Several runs of one image from seeds that follow each other: their mean, and how far they lie apart."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from oes_fast._checks import MAX_RUNS, MAX_SEED, check_integer
from oes_fast.cli.console import warn
from oes_fast.cli.outputs import Outputs
from oes_fast.cli.problem import Problem
from oes_fast.cli.progress import ProgressReport
from oes_fast.cli.report import columns, decibels, describe_stop, measure
from oes_fast.errors import InputError, OESError
from oes_fast.io.arrays import save_numbers
from oes_fast.io.plots import spread_picture
from oes_fast.mask import Mask
from oes_fast.pipelines.checkpoint import checkpoint_step
from oes_fast.pipelines.failures import without_diverged
from oes_fast.pipelines.many import train_many
from oes_fast.pipelines.progress import duration
from oes_fast.pipelines.runs_mean import RunsMean, mean_and_spread, mean_of_runs, run_image
from oes_fast.pipelines.train import TrainResult


@dataclass(frozen=True)
class Runs:
    """Several trainings of one image, each from its own network and input.

    Attributes:
        seeds: of the runs.
        results: of the runs; None for one that failed.
        failed: what the failed ones ended with, by number.
        mean: of the others.
        steps: that each was to make.
        seconds: that all took together.
    """

    seeds: tuple[int, ...]
    results: tuple[TrainResult | None, ...]
    failed: Mapping[int, str]
    mean: RunsMean
    steps: int
    seconds: float

    @property
    def there(self) -> list[TrainResult]:
        """The results that there are."""
        return [result for result in self.results if result is not None]

    @property
    def used(self) -> list[TrainResult]:
        """The results that the mean is of."""
        return [result for number in self.mean.used if (result := self.results[number]) is not None]

    @property
    def finished(self) -> int:
        """How many runs made all steps or were ended by their rule, or failed."""
        return len(self.failed) + sum(result.has_ended(self.steps) for result in self.there)

    @property
    def interrupted(self) -> bool:
        """Whether a signal left something undone."""
        return self.finished < len(self.results)

    def spread_shown(self, problem: Problem) -> Tensor | None:
        """Standard deviation over the runs of the picture that is shown, [1, 1 or 3, H, W]."""
        return mean_and_spread(problem.shown(run_image(result)) for result in self.used)[1]

    def spread_numbers(self, problem: Problem, shown: Tensor) -> npt.NDArray[np.float32]:
        """The spread for programs: of each pixel, float32 [H, W] or [H, W, 3].

        Of a complex image, which is written as numbers beside the picture, that of these: the root of the
        mean squared distance from the mean, in the units of the measurement.

        Args:
            problem: what was restored.
            shown: what :meth:`spread_shown` gave.
        """
        if problem.options.keeps_complex and self.mean.spread is not None:
            return problem.complex_spread(self.mean.spread).astype(np.float32)
        planes = shown[0].to("cpu").permute(1, 2, 0).numpy().astype(np.float32)
        return planes[..., 0] if planes.shape[-1] == 1 else planes

    def write_spread(self, outputs: Outputs, problem: Problem) -> None:
        """Write the files of the spread; where there is none, remove those of an earlier result.

        Args:
            outputs: the files of the command.
            problem: what was restored.
        """
        spread = self.spread_shown(problem)
        if spread is None:
            outputs.remove("spread", "spread_numbers")
            return
        numbers = self.spread_numbers(problem, spread)
        outputs.write("spread", lambda path: spread_picture(path, spread))
        outputs.write("spread_numbers", lambda path: save_numbers(path, numbers))

    def described(self, said: dict[str, Any], problem: Problem) -> dict[str, Any]:
        """The JSON result, with what there is of all runs in the place of what was said of the first."""
        spread = self.spread_shown(problem)
        seconds = {**said["seconds"], "train": self.seconds}
        del seconds["total"]
        return {
            **said,
            "collapsed": all(result.collapsed for result in self.there),
            "diverged": all(result.diverged for result in self.there),
            "steps": {**said["steps"], "train": min(result.steps for result in self.there)},
            "seconds": {**seconds, "total": sum(seconds.values())},
            "history": {name: value for name, value in said["history"].items() if name != "train"},
            "runs": [self._describe_run(number, problem) for number in range(len(self.results))],
            "spread": None if spread is None else {"mean": float(spread.mean()), "max": float(spread.max())},
        }

    def _describe_run(self, number: int, problem: Problem) -> dict[str, Any]:
        result = self.results[number]
        said: dict[str, Any] = {"seed": self.seeds[number], "used": number in self.mean.used}
        if result is None:
            return {**said, "failed": self.failed[number]}
        return {
            **said,
            "failed": None,
            "steps": result.steps,
            "seconds": result.seconds,
            "collapsed": result.collapsed,
            "diverged": result.diverged,
            "stop": describe_stop(result.stop),
            "psnr": measure(problem, None, result),
            "history": columns(result.history),
        }

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """PSNR over the steps, of outputs and of averages: means over the runs that the mean image is of."""
        histories = [result.history for result in self.used]
        # A run that was ended has a record of its last step, which others may have none of.
        steps = sorted(set.intersection(*(set(history.step) for history in histories)))

        def mean(column: str) -> tuple[list[int], list[float]]:
            values = [dict(zip(history.step, history[column], strict=True)) for history in histories]
            return steps, [fmean(each[step] for each in values) for step in steps]

        count = f"mean of {len(histories)} runs"
        curves = {f"output, {count}": mean("psnr")}
        if self.used[0].average is not None:
            curves[f"average of the outputs, {count}"] = mean("psnr_average")
        return curves

    def rows(self, problem: Problem) -> list[tuple[str, str]]:
        """For the table."""
        used, count = len(self.mean.used), len(self.results)
        said = f"{count}, seeds {self.seeds[0]} to {self.seeds[-1]}"
        if used < count:
            said += f"; {used} in the mean"
        rows = [("Runs", said)]
        figures = [measure(problem, None, result) for result in self.used]
        psnr = [each["restored"] for each in figures if each is not None]
        if psnr:
            rows += [("Each run", f"{decibels(min(psnr))} to {decibels(max(psnr))}")]
        steps = [result.stop.step for result in self.used if result.stop is not None]
        if steps:
            ended = sum(result.stop.stopped for result in self.used if result.stop is not None)
            said = f"images of steps {min(steps)} to {max(steps)}; the rule ended {ended} of {used} runs"
            rows += [("Stop", said)]
        spread = self.spread_shown(problem)
        if spread is not None:
            rows += [("Spread", f"{float(spread.mean()):.3g} on average, {float(spread.max()):.3g} at most")]
        return rows

    def time(self) -> str:
        """What the table says of the time."""
        return f"{len(self.results)} trainings {duration(self.seconds)}"


def check_runs(runs: int, weights: Path | None) -> None:
    """Raise :class:`InputError` unless there can be so many runs.

    Args:
        runs: option --runs.
        weights: option --weights.
    """
    check_integer("--runs", runs, minimum=1, below=MAX_RUNS + 1)
    if runs > 1 and weights is not None:
        raise InputError(f"--runs: expected 1 with --weights, as each run has weights of its own, got {runs}")


def seeds_of(seed: int, runs: int) -> tuple[int, ...]:
    """``seed`` and those that follow it.

    Raises:
        InputError: there are not so many.
    """
    check_integer("--seed", seed, minimum=0, below=MAX_SEED - runs + 1)
    return tuple(range(seed, seed + runs))


def phases_of(runs: int) -> list[str]:
    """The names of the phases, and in those of their checkpoints, of so many trainings."""
    return ["train"] if runs == 1 else [f"train.{number}" for number in range(runs)]


def warn_of_others(outputs: Outputs) -> None:
    """Warn of checkpoints of trainings, and of a spread, that are of the same output with another --runs."""
    planned = outputs.checkpoints.paths.values()
    name = re.compile(re.escape(outputs.beside("").name) + r"\.train(\.\d+)?\.ckpt")
    folder = outputs.beside("").parent
    found = sorted(path for path in folder.iterdir() if name.fullmatch(path.name) and path not in planned)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warn(f"{found[0]}{more}: not of a command with this --runs; neither gone on with nor removed")
    for path in (outputs.beside(ending) for ending in ("_spread.npy", "_spread.png")):
        if path.exists() and path not in outputs.paths.values():
            warn(f"{path}: the spread of an earlier command, not of this one; it is not removed")


def train_runs(
    generators: Sequence[tuple[nn.Module, Tensor]],
    mask: Mask,
    problem: Problem,
    *,
    seeds: Sequence[int],
    checkpoints: Sequence[Path],
    progress: ProgressReport,
    resume: bool,
    steps: int,
    **train: Any,
) -> Runs:
    """Train all, and take the mean. A run that fails is said and left out, as long as another does not.

    Args:
        generators: network and input of each run.
        mask: of all.
        problem: what is restored.
        seeds: of the runs.
        checkpoints: a file for each.
        progress: what shows it.
        resume: go on from those of the checkpoints that exist.
        steps: of each run.
        **train: other arguments of :func:`oes_fast.train_many`.

    Raises:
        OESError: all failed, or an argument or checkpoint does not fit.
    """
    began = time.monotonic()
    nets, inputs = zip(*generators, strict=True)
    before = [checkpoint_step(path) or 0 if resume and path.exists() else 0 for path in checkpoints]
    failed: dict[int, str] = {}
    results: list[TrainResult | None]
    try:
        results = [
            *train_many(
                nets,
                mask,
                inputs,
                problem.noisy,
                seed=list(seeds),
                checkpoints=list(checkpoints),
                resume=resume,
                steps=steps,
                callback=progress.watch_runs(before, steps),
                **train,
            )
        ]
    except OESError as error:
        results, failed = without_diverged(error)
        for why in failed.values():
            warn(f"{why}; it is left out of the mean")
    seconds = time.monotonic() - began
    return Runs(tuple(seeds), tuple(results), failed, mean_of_runs(results), steps, seconds)
