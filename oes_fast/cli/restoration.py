"""What there is of a restoration: figures, curves, pictures beside each other, rows of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oes_fast.cli.estimate import Estimate
from oes_fast.cli.problem import Problem
from oes_fast.cli.report import decibels, measure, stop_row
from oes_fast.cli.runs import Runs
from oes_fast.io.image import psnr
from oes_fast.mask import Mask
from oes_fast.pipelines.clean import clean_pixels, compared
from oes_fast.pipelines.progress import duration
from oes_fast.pipelines.runs_mean import run_image
from oes_fast.pipelines.search import SearchResult
from oes_fast.pipelines.train import TrainResult
from oes_fast.recipe import Recipe


@dataclass
class Restoration:
    """What there is of a restoration: an interrupted one has less.

    Attributes:
        problem: what is restored.
        seed: of network and search.
        train_steps: steps of training asked for.
        recipe: of the network.
        found: the mask search, None where a mask was given.
        drawn: the mask of a layer profile, None for another.
        fit: the training, None where the search was interrupted, or there are several.
        several: the trainings, None where there is one, or the search was interrupted.
        estimate: of the time, None where nobody is told it.
    """

    problem: Problem
    seed: int
    train_steps: int
    recipe: Recipe
    found: SearchResult | None = None
    drawn: Mask | None = None
    fit: TrainResult | None = None
    several: Runs | None = None
    estimate: Estimate | None = None

    @property
    def results(self) -> list[SearchResult | TrainResult]:
        """The phases that ran, in order; the first training of several."""
        fit = self.fit if self.several is None else self.several.there[0]
        return [result for result in (self.found, fit) if result is not None]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C left something undone."""
        if self.several is not None:
            return self.several.interrupted
        return self.fit is None or not self.fit.has_ended(self.train_steps)

    @property
    def restored(self) -> Tensor | None:
        """The network's image to write: average of the outputs where there is one, mean of several runs."""
        if self.several is not None:
            return self.several.mean.mean
        return None if self.fit is None else run_image(self.fit)

    def measure(self) -> dict[str, Any] | None:
        """Every PSNR, see :func:`oes_fast.cli.report.measure`; of several runs that of the mean image."""
        figures = measure(self.problem, self.found, self.fit)
        if figures is not None and self.several is not None and self.problem.clean is not None:
            figures["restored"] = float(psnr(*compared(self.several.mean.mean, self.problem.clean)))
        return figures

    def stopped_after(self) -> str:
        """What a message says of how far an interrupted run came."""
        if self.several is not None:
            return f"with {self.several.finished} of {len(self.several.results)} trainings finished"
        last = self.results[-1]
        return f"after {last.steps} steps of the {'training' if last is self.fit else 'search'}"

    def panels(self, image: Tensor, figures: dict[str, Any] | None) -> list[tuple[str, Tensor]]:
        """The pictures to put side by side, with their titles.

        Args:
            image: restored, [1, 1 or 3, H, W].
            figures: of :meth:`measure`.
        """

        def title(name: str, key: str) -> str:
            return name if figures is None else f"{name}, {decibels(figures[key])}"

        measured = "noisy" if self.problem.task is None else "measured"
        panels = [(title(measured, "noisy"), self.problem.measured), (title("restored", "restored"), image)]
        return (
            panels if self.problem.clean is None else [*panels, ("clean", clean_pixels(self.problem.clean))]
        )

    def curves(self) -> dict[str, tuple[list[int], list[float]]] | None:
        """PSNR over the steps of the training, None without one."""
        if self.several is not None:
            return self.several.curves()
        if (fit := self.fit) is None:
            return None
        curves = {"output": (fit.history.step, fit.history.psnr)}
        if fit.average is not None:
            curves["average of the outputs"] = (fit.history.step, fit.history.psnr_average)
        return curves

    def rows(self, figures: dict[str, Any] | None) -> list[tuple[str, str]]:
        """For the table; ``figures`` are those of :meth:`measure`."""
        rows = []
        if figures is not None:
            measured = "Noisy" if self.problem.task is None else "Measured"
            rows = [(measured, decibels(figures["noisy"])), ("Restored", decibels(figures["restored"]))]
            if figures["average"] is not None:
                last = "Last output" if self.fit is None or self.fit.stop is None else "Output there"
                rows += [(last, decibels(figures["last"]))]
            if figures["peak"] is not None:
                rows += [("Peak", f"{decibels(figures['peak'])} at step {figures['peak_step']}")]
        if (sigma := self.problem.estimated_sigma()) is not None:
            rows += [("Noise", f"{sigma:.3g}, estimated")]
        if self.several is not None:
            rows += self.several.rows(self.problem)
        elif self.fit is not None and self.fit.stop is not None:
            rows += [("Stop", stop_row(self.fit.stop))]
        if self.results:
            rows += [("Mask", f"{100 * self.results[-1].mask.density:.3g} % of the weights kept")]
            phases = {"search": self.found, "train": self.fit}
            times = [f"{name} {duration(r.seconds)}" for name, r in phases.items() if r is not None]
            if self.several is not None:
                times.append(self.several.time())
            rows += [("Time", ", ".join(times))]
        return rows
