"""What every task is made of, and the noise of a simulated measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.errors import InputError
from oes_fast.noise import add_noise
from oes_fast.pipelines.clean import CleanView


@dataclass(frozen=True, eq=False)
class Task:
    """An inverse problem, for :func:`oes_fast.search_mask`, :func:`oes_fast.train_sparse` and the baselines.

    Attributes:
        name: "inpainting", "superresolution", "deblurring" or "mri".
        noisy: what was measured: the image that ``forward`` is to give. The only one that a run fits.
        forward: deepinv's operator, from an image [1, *shape] to a measurement of the shape of ``noisy``.
        shape: (C, H, W) of the image to restore.
        first: what the measurement shows without any restoration, beside :meth:`shown` of an image and of its
            shape: the known pixels, the enlarged image, the zero-filled magnitude.
        clean: what the PSNR is measured against, or None; see :class:`CleanView`.
        weight: of each element of the measurement in the squared error, or None for 1.
        sigma: standard deviation of the noise that was added; None where nothing was simulated.
        seed: of that noise and of what was drawn of the operator; None where nothing was drawn.
        settings: what the operator was made of, as JSON values.
        model_options: options of the network that the task needs, for :func:`oes_fast.fresh_generator`.
        view: what of the image is shown and measured, None for all of it; see :meth:`shown`.
    """

    name: str
    noisy: Tensor
    forward: Any
    shape: tuple[int, int, int]
    first: Tensor
    clean: Tensor | CleanView | None = None
    weight: Tensor | None = None
    sigma: float | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    view: Callable[[Tensor], Tensor] | None = None

    def arguments(self) -> dict[str, Any]:
        """``forward``, ``weight`` and ``clean`` by name, for the functions that restore."""
        return {"forward": self.forward, "weight": self.weight, "clean": self.clean}

    def shown(self, image: Tensor) -> Tensor:
        """The part of a network's image [1, *shape] that is a picture, [1, 1 or 3, H', W'].

        All of it, but for the magnitude in MRI, and without the margin that a "valid" convolution takes away.
        """
        return image if self.view is None else self.view(image)

    def __repr__(self) -> str:
        """One line, without tensors."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Task({self.name}: {settings}, image {list(self.shape)}, measured {list(self.noisy.shape)})"


def check_image(name: str, image: object) -> Tensor:
    """``image``, if it is one: float32 or float64, finite, shape [1, C, H, W] with C = 1 or 3."""
    found = check_tensor(name, image, shape=(1, None, None, None), finite=True)
    if found.shape[1] not in (1, 3) or found.numel() == 0:
        raise InputError(f"{name}: expected shape (1, 1 or 3, H, W), got {tuple(found.shape)}")
    return found


def check_clean(clean: object, sigma: float | None, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """``clean``, if it is None or an image of that shape that belongs to what was not simulated."""
    if clean is None:
        return None
    if sigma is not None:
        raise InputError("clean: expected None with sigma, which takes the image for the clean one, got both")
    return check_tensor("clean", clean, shape=shape, like=like, finite=True)


def check_sigma(sigma: float | None) -> float | None:
    """``sigma``, if it is None or a standard deviation."""
    return None if sigma is None else check_number("sigma", sigma, minimum=0.0)


def check_seed(seed: int) -> int:
    """``seed``, if it is one."""
    return check_integer("seed", seed, minimum=0, below=2**64)


def simulated(forward: Any, clean: Tensor, sigma: float, seed: int, known: Tensor | None = None) -> Tensor:
    """What ``forward`` measures of a clean image, with Gaussian noise, which is not clipped.

    Args:
        forward: deepinv's operator.
        clean: image.
        sigma: standard deviation of the noise in each element of the measurement.
        seed: of the noise, which is :func:`oes_fast.add_noise`'s.
        known: 0 where nothing is measured, so that no noise comes there; None for everywhere 1.
    """
    measured = add_noise(forward.A(clean), sigma, seed, clip=False)
    return measured if known is None else measured * known
