"""``oes-fast inpaint``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from oes_fast._checks import check_number
from oes_fast.cli import options as o
from oes_fast.cli.task import TaskOptions, one_of, restoring_command
from oes_fast.io.arrays import load_plane
from oes_fast.tasks import Task, inpainting


@dataclass(frozen=True)
class InpaintOptions(TaskOptions):
    """What `inpaint` restores.

    Attributes:
        mask: file that says which pixels are known, None for ``missing``.
        missing: share of the pixels to leave out, None for ``mask``.
    """

    mask: Path | None
    missing: float | None

    def files(self) -> tuple[str | Path | None, ...]:
        """IN, --clean and --mask."""
        return *super().files(), self.mask

    def check(self) -> None:
        """As of every command; and one of --mask and --missing."""
        super().check()
        one_of(mask=self.mask, missing=self.missing)
        if self.missing is not None:
            check_number("--missing", self.missing, above=0.0, below=1.0)

    def task(self, pixels: Tensor, clean: Tensor | None, seed: int) -> Task:
        """As :func:`oes_fast.tasks.inpainting`."""
        mask = None if self.mask is None else load_plane(self.mask)
        if mask is not None and self.mask is not None and self.mask.suffix.lower() != ".npy":
            mask = mask > 0.5  # an image; numbers are to be 0 and 1
        return inpainting(pixels, mask, missing=self.missing, sigma=self.sigma, seed=seed, clean=clean)


@restoring_command()
def inpaint(
    image: o.ImageIn,
    size: o.Size = None,
    sigma: o.TaskSigma = None,
    clean: o.Clean = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.IMAGE,
            help="Which pixels are known: an image of the size of IN (after --size), white where they are "
            "and black where they are missing, or a .npy of 1 and 0. Values above half of white are known.",
        ),
    ] = None,
    missing: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=o.IMAGE,
            help="Leave out pixels of IN by chance, each with this probability between 0 and 1, in the place "
            "of --mask. IN is whole then: without --sigma and --clean it counts as clean, as with --sigma 0.",
        ),
    ] = None,
) -> InpaintOptions:
    """Restore an image of which some pixels are missing, from its known pixels alone.

    Writes what `denoise` writes, see `oes-fast denoise --help`, and can be stopped and resumed as it can;
    OUT_comparison.png shows the known pixels beside the result. Needs `pip install "oes_fast[physics]"`.
    """
    if missing is not None and sigma is None and clean is None:
        sigma = 0.0
    return InpaintOptions(image, size, sigma, clean, mask, missing)
