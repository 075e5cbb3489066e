"""``oes-fast deblur``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from oes_fast._checks import check_choice, check_number
from oes_fast.cli import options as o
from oes_fast.cli.task import TaskOptions, one_of, restoring_command
from oes_fast.io.arrays import load_plane
from oes_fast.tasks import Task, deblurring
from oes_fast.tasks.deblurring import PADDINGS


@dataclass(frozen=True)
class DeblurOptions(TaskOptions):
    """What `deblur` restores.

    Attributes:
        kernel: file of the kernel, None for ``gaussian``.
        gaussian: standard deviation of a Gaussian kernel in pixels, None for ``kernel``.
        padding: what lies beyond the border.
    """

    kernel: Path | None
    gaussian: float | None
    padding: str

    def files(self) -> tuple[str | Path | None, ...]:
        """IN, --clean and --kernel."""
        return *super().files(), self.kernel

    def check(self) -> None:
        """As of every command; and one of --kernel and --gaussian."""
        super().check()
        one_of(kernel=self.kernel, gaussian=self.gaussian)
        if self.gaussian is not None:
            check_number("--gaussian", self.gaussian, above=0.0)
        check_choice("--padding", self.padding, PADDINGS)

    def task(self, pixels: Tensor, clean: Tensor | None, seed: int) -> Task:
        """As :func:`oes_fast.tasks.deblurring`."""
        kernel = None if self.kernel is None else load_plane(self.kernel)
        return deblurring(
            pixels,
            kernel,
            gaussian=self.gaussian,
            padding=self.padding,
            sigma=self.sigma,
            seed=seed,
            clean=clean,
        )


@restoring_command()
def deblur(
    image: o.ImageIn,
    size: o.Size = None,
    sigma: o.TaskSigma = None,
    clean: o.Clean = None,
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.IMAGE,
            help="What a point was blurred to: a .npy of numbers, or a grey image; an odd number of rows and "
            "of columns; its sum is made 1.",
        ),
    ] = None,
    gaussian: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=o.IMAGE,
            help="Standard deviation in pixels of a Gaussian blur, in the place of --kernel.",
        ),
    ] = None,
    padding: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=o.IMAGE,
            help="What is taken to lie beyond the border: reflect, replicate, circular; or valid: the "
            "network gives a larger image, of which OUT is the part that was measured, and nothing is "
            "assumed.",
        ),
    ] = "reflect",
) -> DeblurOptions:
    """Restore an image that was blurred by a known kernel, from the blurred image alone.

    Writes what `denoise` writes, see `oes-fast denoise --help`, and can be stopped and resumed as it can;
    OUT_comparison.png shows the blurred image beside the result. Needs `pip install "oes_fast[physics]"`.
    """
    return DeblurOptions(image, size, sigma, clean, kernel, gaussian, padding)
