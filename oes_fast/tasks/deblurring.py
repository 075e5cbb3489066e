"""An image blurred by a known kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_choice, check_number, check_tensor
from oes_fast.errors import InputError
from oes_fast.models.base import center_crop
from oes_fast.pipelines.clean import CleanView
from oes_fast.tasks.packages import make_filter, package
from oes_fast.tasks.task import Task, check_clean, check_image, check_seed, check_sigma, simulated

PADDINGS = ("reflect", "replicate", "circular", "valid")


def deblurring(
    image: Tensor,
    kernel: Tensor | None = None,
    *,
    gaussian: float | None = None,
    padding: str = "reflect",
    sigma: float | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> Task:
    """An image convolved with a known kernel: deepinv.physics.Blur, or BlurFFT where it is circular.

    Args:
        image: float32 or float64 in 0..1, shape [1, C, H, W] with C = 1 or 3.
        kernel: real, shape [h, w] with h and w odd and no larger than the image, and a sum above 0; it is
            divided by its sum, and turned over as a convolution does.
        gaussian: in the place of ``kernel``: the standard deviation of a Gaussian, in pixels, > 0 and at most
            half of the image's longer side.
        padding: what lies beyond the border: "reflect", "replicate", "circular"; or "valid": what was
            measured has h - 1 rows and w - 1 columns fewer than the image that the network gives, and nothing
            is assumed.
        sigma: ``image`` is clean: blur it, add noise of this standard deviation (0 for none), not clipped,
            and measure against it. None: ``image`` is what was measured.
        seed: of the noise, in [0, 2^64).
        clean: image of that shape to measure against, where ``sigma`` is None.

    Returns:
        The :class:`Task`. With "valid", what is shown and measured is the part that lies within the
        measurement.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: deepinv is not here.

    Example:
        >>> task = oes.tasks.deblurring(torch.rand(1, 3, 64, 64), gaussian=1.5, sigma=0.01)  # doctest: +SKIP
    """
    check_image("image", image)
    check_choice("padding", padding, PADDINGS)
    check_sigma(sigma)
    check_seed(seed)
    check_clean(clean, sigma, image.shape, image)
    if (kernel is None) == (gaussian is None):
        raise InputError(f"kernel: expected it or gaussian, got {'neither' if kernel is None else 'both'}")
    taps = _gaussian(gaussian, image) if kernel is None else _checked(kernel, image)
    height, width = image.shape[-2:]
    rows, columns = taps.shape
    if padding == "valid" and sigma is None:  # what was measured is the smaller
        height, width = height + rows - 1, width + columns - 1
    if rows > height or columns > width:
        given = f"{columns} x {rows}" + ("" if gaussian is None else f" for a Gaussian of {gaussian:g}")
        raise InputError(
            f"{'kernel' if gaussian is None else 'gaussian'}: expected a kernel no larger than the image of "
            f"{width} x {height} pixels, got {given}"
        )
    shape = (image.shape[1], height, width)
    forward = _operator(shape, taps, padding)
    noisy = image if sigma is None else simulated(forward, image, sigma, seed)
    reference = clean if sigma is None else image
    view = None
    if padding == "valid":
        inner = height - rows + 1, width - columns + 1

        def view(image: Tensor) -> Tensor:
            return center_crop(image, *inner)

    return Task(
        name="deblurring",
        noisy=noisy,
        forward=forward,
        shape=shape,
        first=noisy,
        clean=reference
        if view is None or reference is None
        else CleanView(center_crop(reference, *inner), view),
        sigma=sigma,
        seed=None if sigma is None else seed,
        settings={"gaussian": gaussian, "kernel": [rows, columns], "padding": padding},
        view=view,
    )


def _gaussian(sigma: float | None, like: Tensor) -> Tensor:
    sigma = check_number("gaussian", sigma, above=0.0)  # type: ignore[arg-type]
    most = max(like.shape[-2:]) / 2  # before a kernel is made that no memory holds
    if sigma > most:
        raise InputError(
            f"gaussian: expected at most half the side of the image, {most:g} pixels, got {sigma:g}"
        )
    return make_filter("gaussian_blur")(sigma=(sigma, sigma))[0, 0].to(like)


def _checked(kernel: object, like: Tensor) -> Tensor:
    """``kernel`` with a sum of 1, as ``like``."""
    taps = check_tensor("kernel", kernel, ndim=2, finite=True)
    if any(side % 2 == 0 for side in taps.shape):
        raise InputError(
            f"kernel: expected an odd number of rows and columns, got {taps.shape[0]} and {taps.shape[1]}"
        )
    total = float(taps.to(torch.float64).sum())
    if total <= 0:
        raise InputError(f"kernel: expected weights with a sum above 0, got {total:g}")
    return (taps.to(torch.float64) / total).to(like)


def _operator(shape: tuple[int, int, int], taps: Tensor, padding: str) -> Any:
    physics = package("deepinv.physics")
    filter = taps[None, None]
    if padding == "circular":
        return physics.BlurFFT(img_size=shape, filter=filter, device=taps.device)
    if taps.numel() == 1:  # deepinv warns of padding that one tap does not look at
        padding = "valid"
    return physics.Blur(filter=filter, padding=padding, device=taps.device)
