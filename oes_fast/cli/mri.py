"""``oes-fast mri``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from oes_fast._checks import check_choice, check_integer, check_number
from oes_fast.cli import options as o
from oes_fast.cli.problem import Problem
from oes_fast.cli.task import TaskOptions, restoring_command
from oes_fast.errors import InputError
from oes_fast.io.arrays import load_numbers, load_plane
from oes_fast.io.image import Image, load_image
from oes_fast.tasks import KSpace, load_kspace
from oes_fast.tasks.kspace import HDF5_SUFFIXES, KSPACE_SUFFIXES
from oes_fast.tasks.mri import PATTERNS
from oes_fast.tasks.mri import mri as mri_task


@dataclass(frozen=True)
class MriOptions(TaskOptions):
    """What `mri` restores.

    Attributes:
        mask: file that says what of k-space was measured.
        slice: of the file, None for the middle one.
        acceleration: measure one column in so many, in the place of ``mask``.
        center_fraction: share of the columns measured about the centre.
        pattern: of the other columns.
        coil_maps: file of the coils' sensitivities, None to estimate them.
    """

    mask: Path | None
    slice: int | None
    acceleration: int | None
    center_fraction: float | None
    pattern: str
    coil_maps: Path | None

    @property
    def is_kspace(self) -> bool:
        """Whether IN is k-space, not an image."""
        return Path(self.image).suffix.lower() in KSPACE_SUFFIXES

    @property
    def has_clean(self) -> bool:
        """Whether --sigma, --clean or the file may give a clean magnitude."""
        return super().has_clean or Path(self.image).suffix.lower() in HDF5_SUFFIXES

    @property
    def keeps_complex(self) -> bool:
        """The image of k-space is complex."""
        return True

    def files(self) -> tuple[str | Path | None, ...]:
        """IN, --clean, --mask and --coil-maps."""
        return *super().files(), self.mask, self.coil_maps

    def check(self) -> None:
        """As of every command; and what fits k-space or an image alone."""
        super().check()
        if self.mask is not None and self.acceleration is not None:
            raise InputError("--mask: expected it or --acceleration, got both")
        if self.slice is not None:
            check_integer("--slice", self.slice, minimum=0)
        if self.acceleration is not None:
            check_integer("--acceleration", self.acceleration, minimum=2)
        if self.center_fraction is not None:
            check_number("--center-fraction", self.center_fraction, minimum=0.0, below=1.0)
            if self.acceleration is None:
                raise InputError("--center-fraction: expected it with --acceleration, got it without")
        check_choice("--pattern", self.pattern, PATTERNS)
        if self.is_kspace:
            if self.size is not None:
                raise InputError("--size: expected it with a clean image alone, got it with k-space")
        elif self.slice is not None:
            raise InputError("--slice: expected it with k-space alone, got it with an image")
        elif self.sigma is None:
            raise InputError(
                f"{self.image}: expected k-space ({', '.join(KSPACE_SUFFIXES)}), or a clean image with "
                "--sigma"
            )

    def load(self, *, noise_seed: int, device: torch.device) -> Problem:
        """The problem: k-space, or that of a clean image.

        Raises:
            InputError: a file is missing or is not what it is to be, or an option does not fit.
            OESError: deepinv or h5py is not here.
        """
        arguments: dict[str, Any] = {
            "acceleration": self.acceleration,
            "center_fraction": self.center_fraction,
            "pattern": self.pattern,
            "sigma": self.sigma,
            "seed": noise_seed,
        }
        if self.coil_maps is not None:
            arguments["coil_maps"] = _complex(self.coil_maps)
        if self.mask is not None:
            arguments["mask"] = _mask(self.mask)
        found = None
        if self.is_kspace:
            found = self._kspace(arguments)
            measured = found.samples
        else:
            measured = load_image(self.image, size=self.size).pixels.mean(dim=1, keepdim=True)
        arguments = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in arguments.items()}
        task = self.made(lambda: mri_task(measured.to(device), **arguments))
        if found is not None:
            of_file = {"slice": found.slice, "slices": found.slices, **found.attributes}
            task = replace(task, settings={**task.settings, **of_file})
        picture = Image(task.first.cpu(), None, 16, Path(self.image).stem)
        return Problem(self, picture, task.noisy, task.clean, task.seed, task)

    def _kspace(self, arguments: dict[str, Any]) -> KSpace:
        """One slice of the file, whose mask and magnitude stand in for options that are not given."""
        try:
            found = load_kspace(self.image, slice=self.slice)
        except InputError as error:
            raise InputError(str(error).replace("slice:", "--slice:", 1)) from error
        if self.mask is None and self.acceleration is None and found.mask is not None:
            arguments["mask"] = found.mask
        if self.clean is not None:
            arguments["clean"] = load_plane(self.clean).to(torch.float32)
        elif self.sigma is None and found.target is not None:
            arguments["clean"] = found.target
        return found


def _complex(path: Path) -> Tensor:
    array = load_numbers(path)
    if array.ndim != 3 or not np.iscomplexobj(array):
        raise InputError(
            f"{path}: expected complex maps of shape (coils, H, W), got {array.dtype} {array.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.complex64)))


def _mask(path: Path) -> Tensor:
    """[W] or [H, W]: the numbers of a .npy, to be 0 and 1; of an image, above half of white is measured."""
    if path.suffix.lower() == ".npy":
        array = load_numbers(path)
        if array.ndim == 1 and array.dtype.kind != "c":
            return torch.from_numpy(array.astype(np.float32))
        return load_plane(path)
    return load_plane(path) > 0.5


@restoring_command()
def mri(
    image: Annotated[
        str,
        typer.Argument(
            metavar="KSPACE",
            show_default=False,
            help="Raw data: .h5 in fastMRI's layout (kspace [slices, H, W] or [slices, coils, H, W]), or "
            ".npy, complex, [H, W] or [coils, H, W], with the centre in the middle. Or, with --sigma, a "
            "clean image.",
        ),
    ],
    size: o.Size = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=o.IMAGE,
            help="KSPACE was measured whole, or is a clean image: measure what --mask or --acceleration "
            "says, with Gaussian noise of standard deviation S (0 for none) in real and imaginary part, "
            "where the clean magnitude's maximum is 1, and report the PSNR against the magnitude of all of "
            "it.  [default: KSPACE is what was measured]",
        ),
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.IMAGE,
            help="Clean magnitude, a .npy [h, w] of the middle of the image in the units of KSPACE, to "
            "measure the PSNR against.  [default: reconstruction_rss or reconstruction_esc of the .h5, if it "
            "has one]",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.IMAGE,
            help="What of k-space was measured: a .npy of 1 and 0, [W] for columns or [H, W], or an image, "
            "white where it was.  [default: the mask in the .h5; else where KSPACE is not 0]",
        ),
    ] = None,
    slice: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=o.IMAGE, help="Slice of the .h5, from 0.  [default: the middle one]"
        ),
    ] = None,
    acceleration: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=o.IMAGE,
            help="Keep one column of k-space in N, in the place of --mask, drawn by --noise-seed.",
        ),
    ] = None,
    center_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            rich_help_panel=o.IMAGE,
            help="Share of the columns that --acceleration keeps about the centre.  [default: 0.08; from an "
            "acceleration of 8 on 0.04]",
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=o.IMAGE,
            help="Of the columns that --acceleration keeps beside the centre: random or equispaced.",
        ),
    ] = "random",
    coil_maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=o.IMAGE,
            help="Sensitivities of the coils, a complex .npy [coils, H, W].  [default: estimated from the "
            "middle of k-space, where there are several coils]",
        ),
    ] = None,
) -> MriOptions:
    """Restore an image of magnetic resonance from a part of k-space, of one coil or several.

    The network gives real and imaginary part, without a sigmoid at its end. k-space is scaled by the image
    that it gives with zeros for what was not measured; OUT.npy has the complex image in the units of KSPACE,
    OUT.png its magnitude, cropped to the clean one, whose maximum is white where it is known.

    Writes beside that what `denoise` writes, see `oes-fast denoise --help`, and can be stopped and resumed as
    it can; OUT_comparison.png shows the magnitude with zeros for what was not measured beside the result.
    PSNR is that of magnitudes, relative to the clean one's maximum. Needs `pip install "oes_fast[physics]"`.
    """
    return MriOptions(
        image,
        size,
        sigma,
        clean,
        mask,
        slice,
        acceleration,
        center_fraction,
        pattern,
        coil_maps,
    )
