"""``oes-fast superres``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from torch import Tensor

from oes_fast._checks import check_choice, check_integer
from oes_fast.cli import options as o
from oes_fast.cli.task import TaskOptions, restoring_command
from oes_fast.tasks import Task, superresolution
from oes_fast.tasks.superresolution import FILTERS


@dataclass(frozen=True)
class SuperresOptions(TaskOptions):
    """What `superres` restores.

    Attributes:
        factor: of rows and of columns.
        filter: before the sampling.
    """

    factor: int
    filter: str

    def check(self) -> None:
        """As of every command; and the factor and the filter."""
        super().check()
        check_integer("--factor", self.factor, minimum=2)
        check_choice("--filter", self.filter, FILTERS)

    def clean_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """``factor`` times as high and as wide as IN."""
        return *shape[:2], shape[2] * self.factor, shape[3] * self.factor

    def task(self, pixels: Tensor, clean: Tensor | None, seed: int) -> Task:
        """As :func:`oes_fast.tasks.superresolution`."""
        return superresolution(
            pixels, self.factor, filter=self.filter, sigma=self.sigma, seed=seed, clean=clean
        )


@restoring_command()
def superres(
    image: o.ImageIn,
    factor: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            rich_help_panel=o.IMAGE,
            help="How many times as many rows and columns to restore: 2, 3, 4, ...",
        ),
    ],
    size: o.Size = None,
    sigma: o.TaskSigma = None,
    clean: o.Clean = None,
    filter: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=o.IMAGE,
            help="What an image is taken to have been reduced by: bicubic (as MATLAB's imresize, with "
            "antialiasing), gaussian or bilinear (deepinv's, whose pixels lie further up and left).",
        ),
    ] = "bicubic",
) -> SuperresOptions:
    """Restore an image with more rows and columns than were measured, from the small image alone.

    With --sigma, IN is the large image: it is reduced first, and its sides must be multiples of --factor.

    Writes what `denoise` writes, see `oes-fast denoise --help`, and can be stopped and resumed as it can;
    OUT_comparison.png shows the measured image, enlarged by bicubic interpolation, beside the result. --clean
    is of the size of OUT. Needs `pip install "oes_fast[physics]"`.
    """
    return SuperresOptions(image, size, sigma, clean, factor, filter)
