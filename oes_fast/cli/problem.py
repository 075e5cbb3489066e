"""What is to be restored: the image, the noise added to it, and what it is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_integer, check_number
from oes_fast.errors import InputError
from oes_fast.io.image import MIN_SIDE, Image, load_image
from oes_fast.noise import add_noise


@dataclass(frozen=True)
class ImageOptions:
    """The options that say what to restore, as given.

    Attributes:
        image: file or skimage:NAME.
        size: side to crop and resize to, None for as it is.
        sigma: standard deviation of the noise to add, None for none.
        clean: file of the clean image, None for unknown.
    """

    image: str
    size: int | None
    sigma: float | None
    clean: str | None

    def check(self) -> None:
        """Raise :class:`InputError` for values out of range."""
        if self.size is not None:
            check_integer("--size", self.size, minimum=MIN_SIDE)
        if self.sigma is not None:
            check_number("--sigma", self.sigma, minimum=0.0)
        if self.sigma is not None and self.clean is not None:
            raise InputError(
                "--clean: expected no --sigma beside it, which takes IN for the clean image, got both"
            )


@dataclass(frozen=True)
class Problem:
    """An image to restore.

    Attributes:
        options: what it was made from.
        image: as loaded.
        noisy: what to fit, shape [1, C, H, W], on the device.
        clean: what to measure against, of that shape, or None.
        noise_seed: of the noise added, None where none was.
    """

    options: ImageOptions
    image: Image
    noisy: Tensor
    clean: Tensor | None
    noise_seed: int | None

    def describe(self) -> dict[str, Any]:
        """For the JSON result."""
        channels, height, width = self.noisy.shape[1:]
        return {
            "name": self.image.name,
            "height": height,
            "width": width,
            "channels": channels,
            "alpha": self.image.alpha is not None,
            "bits": self.image.bits,
            "icc_profile": self.image.icc_profile is not None,
            "size": self.options.size,
            "sigma": self.options.sigma,
            "clean": self.options.clean,
        }


def load_problem(options: ImageOptions, *, noise_seed: int, device: torch.device) -> Problem:
    """Load the image, add the noise asked for, and load what it is measured against.

    Args:
        options: checked ones.
        noise_seed: of the noise.
        device: where to put the images.

    Raises:
        InputError: a file is missing, is no image, holds NaN, is too small, or the two differ in shape.
    """
    image = load_image(options.image, size=options.size)
    clean: Tensor | None = None
    noisy = image.pixels
    if options.sigma is not None:
        clean = image.pixels
        noisy = add_noise(clean, options.sigma, noise_seed)
    elif options.clean is not None:
        clean = load_image(options.clean, size=options.size).pixels
        if clean.shape != noisy.shape:
            raise InputError(f"--clean: expected {_shape(noisy)} as IN, got {_shape(clean)}")
    return Problem(
        options=options,
        image=image,
        noisy=noisy.to(device),
        clean=None if clean is None else clean.to(device),
        noise_seed=None if options.sigma is None else noise_seed,
    )


def _shape(pixels: Tensor) -> str:
    channels, height, width = pixels.shape[1:]
    return f"{width} x {height} pixels of {channels} channel{'s' if channels > 1 else ''}"
