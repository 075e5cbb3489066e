"""What is to be restored: the image, the noise added to it, and what it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oes_fast._checks import check_number
from oes_fast.cli.naming import naming
from oes_fast.errors import InputError, OESError
from oes_fast.io.image import Image, check_side, load_image
from oes_fast.noise import add_noise, check_noise_level, estimate_sigma
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.objective import make_objective
from oes_fast.pipelines.run_stop import bind_rule
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.pipelines.stopping import DiscrepancyStop
from oes_fast.tasks import Task


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

    @property
    def has_clean(self) -> bool:
        """Whether there may be something to measure the PSNR against."""
        return self.sigma is not None or self.clean is not None

    @property
    def keeps_complex(self) -> bool:
        """Whether the restored image is complex, and is written as numbers as well."""
        return False

    def files(self) -> tuple[str | Path | None, ...]:
        """What is read, which must not be written to."""
        return self.image, self.clean

    def check(self) -> None:
        """Raise :class:`InputError` for values out of range."""
        if self.image == "":
            raise InputError("IN: expected a file, got an empty name")
        if self.size is not None:
            check_side("--size", self.size)
        if self.sigma is not None:
            check_number("--sigma", self.sigma, minimum=0.0)
        if self.sigma is not None and self.clean is not None:
            raise InputError(
                "--clean: expected no --sigma beside it, which takes IN for the clean image, got both"
            )

    def load(self, *, noise_seed: int, device: torch.device) -> Problem:
        """The problem; see :func:`load_problem`."""
        image = load_image(self.image, size=self.size)
        clean: Tensor | None = None
        noisy = image.pixels
        if self.sigma is not None:
            clean = image.pixels
            check_noise_level("--sigma", self.sigma)
            noisy = add_noise(clean, self.sigma, noise_seed)
        elif self.clean is not None:
            clean = load_clean(self.clean, self.size, noisy.shape)
        return Problem(
            options=self,
            image=image,
            noisy=noisy.to(device),
            clean=None if clean is None else clean.to(device),
            noise_seed=None if self.sigma is None else noise_seed,
        )


@dataclass(frozen=True)
class Problem:
    """An image to restore.

    Attributes:
        options: what it was made from.
        image: as loaded.
        noisy: what to fit, on the device; shape [1, C, H, W], but for the measurement of a task.
        clean: what to measure against, or None; of the shape of ``noisy``, but for a task.
        noise_seed: of the noise added and of what was drawn of an operator, None where nothing was.
        task: what ``noisy`` was measured with, None where it is the image itself.
    """

    options: ImageOptions
    image: Image
    noisy: Tensor
    clean: Tensor | CleanView | None
    noise_seed: int | None
    task: Task | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the image that the network is to give."""
        return tuple(self.noisy.shape[1:]) if self.task is None else self.task.shape

    @property
    def model_options(self) -> dict[str, Any]:
        """Options that the network has where nothing else is asked for."""
        return {} if self.task is None else dict(self.task.model_options)

    @property
    def measured(self) -> Tensor:
        """What the measurement shows: a picture beside :meth:`shown` of the restored image."""
        return self.noisy if self.task is None else self.task.first

    def arguments(self) -> dict[str, Any]:
        """For the search and the training."""
        return {"clean": self.clean} if self.task is None else self.task.arguments()

    def check_rule(self, rule: StopRule | None) -> None:
        """Refuse a stopping rule that does not fit what is measured, before anything is computed.

        Raises:
            InputError: naming --stop.
        """
        if rule is not None and rule.compares and self.options.keeps_complex:
            # Its numbers differ by orders of magnitude: those about the middle would be the criterion.
            raise InputError(f"--stop: expected variance or none for k-space, got {rule.name}")
        given = {name: value for name, value in self.arguments().items() if name in ("forward", "weight")}
        objective = make_objective(self.noisy, **given)
        if isinstance(rule, DiscrepancyStop) and getattr(objective, "weight", None) is not None:
            raise InputError(
                "--stop: expected variance, holdout or none where pixels are missing, from which no noise is "
                f"estimated, got {rule.name}"
            )
        with naming({"stop": "--stop"}):
            bind_rule(rule, objective)

    def estimated_sigma(self) -> float | None:
        """The noise of a noisy image, estimated; None for a measurement, and where it cannot be estimated.

        Not that of an image that noise was added to, which is known.
        """
        if self.task is not None or self.options.sigma is not None:
            return None
        try:
            return estimate_sigma(self.noisy)
        except OESError:  # a tiny image, or PyWavelets is missing
            return None

    def shown(self, image: Tensor) -> Tensor:
        """The picture that a network's image is."""
        return image if self.task is None else self.task.shown(image)

    def complex_image(self, image: Tensor) -> npt.NDArray[np.complexfloating[Any, Any]]:
        """The network's image of two channels as complex numbers [H, W], in the units of the measurement."""
        real, imaginary = image[0].detach().to("cpu").numpy()
        return self._scale * (real + 1j * imaginary)

    def complex_spread(self, spread: Tensor) -> npt.NDArray[np.floating[Any]]:
        """The deviations of the two channels [1, 2, H, W] as that of the complex numbers, [H, W]."""
        real, imaginary = spread[0].detach().to("cpu").numpy()
        return self._scale * np.hypot(real, imaginary)

    @property
    def _scale(self) -> Any:
        return 1.0 if self.task is None else self.task.settings["scale"]

    def describe(self) -> dict[str, Any]:
        """For the JSON result."""
        channels, height, width = self.measured.shape[1:]
        task = self.task
        of_task = {} if task is None else {"task": {"name": task.name, **task.settings}}
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
            **of_task,
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
    return options.load(noise_seed=noise_seed, device=device)


def load_clean(path: str, size: int | None, shape: Sequence[int], whose: str = "IN") -> Tensor:
    """The image that --clean names.

    Args:
        path: file or skimage:NAME.
        size: option --size.
        shape: [1, C, H, W] that it must have.
        whose: what has that shape, for the message.

    Raises:
        InputError: as :func:`load_problem`.
    """
    clean = load_image(path, size=size).pixels
    if clean.shape != torch.Size(shape):
        raise InputError(f"--clean: expected {_shape(shape)} as {whose}, got {_shape(clean.shape)}")
    return clean


def _shape(shape: Sequence[int]) -> str:
    channels, height, width = shape[1:]
    return f"{width} x {height} pixels of {channels} channel{'s' if channels > 1 else ''}"
