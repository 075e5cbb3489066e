"""Jacobian, sharpness and Hessian of the network that a mask leaves, for the command line."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from oes_fast.analysis import (
    HessianEigenvalues,
    HessianSpectrum,
    JacobianNorm,
    Sharpness,
    hessian_eigenvalues,
    hessian_spectrum,
    jacobian_norm,
    sharpness,
)
from oes_fast.cli.problem import Problem
from oes_fast.io.display import Display
from oes_fast.mask import Mask
from oes_fast.pipelines.transfer import fresh_generator
from oes_fast.recipe import Recipe

_GRID = 400  # points of a spectrum's curve
_WIDTH = 0.01  # of its bumps, as a share of the range of eigenvalues


@dataclass(frozen=True)
class FigureSettings:
    """What is computed and how, checked; the arguments of the functions of :mod:`oes_fast.analysis`.

    Attributes:
        probes: random vectors for the Frobenius norm and the mean sharpness.
        iterations: for the spectral norm, 0 for none.
        rho: radius of the ball of sharpness.
        adaptive: in units of the weights.
        eigenvalues: of the Hessian, 0 for none.
        lanczos_steps: for each vector of its spectrum, 0 for no spectrum.
        spectrum_probes: random vectors for the spectrum.
        backend: "torch" or "reference".
        verify: hold the rewritten network against the dense one first.
    """

    probes: int
    iterations: int
    rho: float
    adaptive: bool
    eigenvalues: int
    lanczos_steps: int
    spectrum_probes: int
    backend: str
    verify: bool


@dataclass(frozen=True)
class Figures:
    """What was computed of one mask.

    Attributes:
        seed: of the weights and the input, and of what was drawn.
        jacobian: norms of the Jacobian.
        sharpness: of the loss.
        eigenvalues: the largest of the Hessian, None where they were left out.
        spectrum: of the Hessian, None where it was left out.
        seconds: that it took.
    """

    seed: int
    jacobian: JacobianNorm
    sharpness: Sharpness
    eigenvalues: HessianEigenvalues | None
    spectrum: HessianSpectrum | None
    seconds: float

    def describe(self) -> dict[str, Any]:
        """For the JSON result."""
        values, spectrum = self.eigenvalues, self.spectrum
        return {
            "seed": self.seed,
            "jacobian": {**asdict(self.jacobian), "stable_rank": self.jacobian.stable_rank},
            "sharpness": asdict(self.sharpness),
            "eigenvalues": None
            if values is None
            else {
                "values": values.values.tolist(),
                "residuals": values.residuals.tolist(),
                "products": values.products,
            },
            "spectrum": None
            if spectrum is None
            else {
                "points": [points.tolist() for points in spectrum.points],
                "weights": [weights.tolist() for weights in spectrum.weights],
                "trace": spectrum.trace,
                "trace_error": spectrum.trace_error,
                "products": spectrum.products,
            },
            "seconds": self.seconds,
        }

    def curve(self) -> tuple[list[float], list[float]] | None:
        """(eigenvalues, their density) to draw the spectrum by."""
        if self.spectrum is None:
            return None
        low, high = self.spectrum.smallest, self.spectrum.largest
        width = _WIDTH * ((high - low) or 1.0)
        grid = torch.linspace(low - 4 * width, high + 4 * width, _GRID, dtype=torch.float64, device="cpu")
        return grid.tolist(), self.spectrum.density(grid, width).tolist()


def compute_figures(
    label: str,
    recipe: Recipe,
    mask: Mask | None,
    problem: Problem,
    seed: int,
    settings: FigureSettings,
    *,
    quiet: bool,
) -> Figures:
    """All figures of a network at its initial weights under a mask.

    Args:
        label: of the mask, for the progress.
        recipe: of the network.
        mask: which weights are kept, None for all.
        problem: image.
        seed: of the weights, the input, and what is drawn.
        settings: what to compute.
        quiet: show no progress.

    Raises:
        OESError: as the functions of :mod:`oes_fast.analysis`.
    """
    began = time.monotonic()
    net, z = fresh_generator(problem.noisy, model=recipe.name, options=recipe.options, seed=seed)
    common: dict[str, Any] = {"seed": seed, "backend": settings.backend}
    shown = _Stages(label, quiet=quiet)
    with shown("Jacobian"):
        jacobian = jacobian_norm(
            net,
            mask,
            z,
            probes=settings.probes,
            iterations=settings.iterations,
            verify=settings.verify,
            **common,
        )
    with shown("sharpness"):
        # It needs no second derivative: the kernels have what it takes.
        fast = "reference" if settings.backend == "reference" else "auto"
        sharp = sharpness(
            net,
            mask,
            z,
            problem.noisy,
            rho=settings.rho,
            adaptive=settings.adaptive,
            probes=settings.probes,
            verify=settings.verify,
            **{**common, "backend": fast},
        )
    common["verify"] = False  # the Jacobian's was this network
    values = spectrum = None
    if settings.eigenvalues:
        with shown(f"{settings.eigenvalues} largest eigenvalues of the Hessian"):
            values = hessian_eigenvalues(net, mask, z, problem.noisy, k=settings.eigenvalues, **common)
    if settings.lanczos_steps:
        with shown("spectrum of the Hessian"):
            spectrum = hessian_spectrum(
                net,
                mask,
                z,
                problem.noisy,
                probes=settings.spectrum_probes,
                steps=settings.lanczos_steps,
                **common,
            )
    return Figures(seed, jacobian, sharp, values, spectrum, time.monotonic() - began)


class _Stages:
    """Says on stderr what is computed: a moving line in a terminal, a line for each stage elsewhere."""

    def __init__(self, label: str, *, quiet: bool) -> None:
        stream: Any = Display(sys.stderr)  # Rich ends the process where nobody reads what it writes
        self._console = None if quiet else Console(file=stream, highlight=False, markup=False)
        self._label = label

    def __call__(self, stage: str) -> AbstractContextManager[object]:
        """Inside, ``stage`` is computed."""
        if self._console is None:
            return nullcontext()
        text = f"{self._label}: {stage}"
        if self._console.is_terminal:
            return self._console.status(text)
        self._console.print(text, soft_wrap=True)
        return nullcontext()
