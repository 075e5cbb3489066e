"""An image measured with fewer pixels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from oes_fast._checks import check_choice, check_integer
from oes_fast._memory import available_memory
from oes_fast.errors import InputError
from oes_fast.tasks.packages import make_filter, package
from oes_fast.tasks.task import Task, check_clean, check_image, check_seed, check_sigma, simulated

FILTERS = ("bicubic", "gaussian", "bilinear")
_COPIES = 8  # of the restored image, at the least that a network of a few channels keeps of it


def superresolution(
    image: Tensor,
    factor: int,
    *,
    filter: str = "bicubic",
    sigma: float | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> Task:
    """An image measured with ``factor`` times fewer rows and columns.

    The filters are deepinv's. "bicubic" is that of MATLAB's imresize with antialiasing
    (deepinv.physics.DownsamplingMatlab), by which most data sets of super-resolution are made; each pixel
    lies in the middle of the factor x factor pixels it stands for. "gaussian" and "bilinear" are
    deepinv.physics.Downsampling's with reflection at the border, whose pixels lie (factor - 1) / 2 and about
    (factor - 2) / 2 pixels further up and left; an image measured elsewhere is restored with that shift.

    Args:
        image: float32 or float64 in 0..1, shape [1, C, h, w] with C = 1 or 3.
        factor: >= 2.
        filter: what comes before the sampling: "bicubic", "gaussian" or "bilinear".
        sigma: ``image`` is clean, and has a multiple of ``factor`` rows and columns: reduce it, add noise of
            this standard deviation (0 for none), not clipped, and measure against it. None: ``image`` is
            what was measured.
        seed: of the noise, in [0, 2^64).
        clean: image [1, C, factor h, factor w] to measure against, where ``sigma`` is None.

    Returns:
        The :class:`Task`; ``first`` is the measurement enlarged by bicubic interpolation.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: deepinv is not here.

    Example:
        >>> task = oes.tasks.superresolution(torch.rand(1, 3, 32, 32), 4)  # doctest: +SKIP
        >>> task.shape  # doctest: +SKIP
        (3, 128, 128)
    """
    check_image("image", image)
    check_integer("factor", factor, minimum=2)
    check_choice("filter", filter, FILTERS)
    check_sigma(sigma)
    check_seed(seed)
    channels, height, width = image.shape[1:]
    if sigma is None:
        height, width = height * factor, width * factor
    elif height % factor or width % factor:
        raise InputError(
            f"factor: expected one that divides the image's {height} rows and {width} columns, got {factor}"
        )
    shape = channels, height, width
    needed, free = _COPIES * channels * height * width * image.element_size(), available_memory(image.device)
    if needed > free:
        raise InputError(
            f"factor: expected one whose restored image fits in memory, got {factor}: {width} x {height} "
            f"pixels need {needed / 2**30:,.1f} GiB at least, {free / 2**30:,.1f} GiB are free"
        )
    check_clean(clean, sigma, (1, *shape), image)
    forward = _operator(shape, factor, filter, image)
    try:
        noisy = image if sigma is None else simulated(forward, image, sigma, seed)
    except (
        IndexError,
        RuntimeError,
    ) as error:  # of deepinv's bicubic filter where it is wider than the image
        raise InputError(
            f"factor: expected one whose filter fits the image of {width} x {height} pixels, got {factor}"
        ) from error
    return Task(
        name="superresolution",
        noisy=noisy,
        forward=forward,
        shape=shape,
        first=F.interpolate(noisy, size=(height, width), mode="bicubic", align_corners=False),
        clean=clean if sigma is None else image,
        sigma=sigma,
        seed=None if sigma is None else seed,
        settings={"factor": factor, "filter": filter},
    )


def _operator(shape: tuple[int, int, int], factor: int, filter: str, like: Tensor) -> Any:
    physics = package("deepinv.physics")
    if filter == "bicubic":
        return physics.DownsamplingMatlab(factor=factor, device=like.device)
    if filter == "gaussian":
        taps = make_filter("gaussian_blur")(sigma=(float(factor), float(factor)))
    else:
        taps = make_filter("bilinear_filter")(factor)
    if max(taps.shape[-2:]) > min(shape[1:]):
        raise InputError(
            f"factor: expected one whose filter fits the image of {shape[2]} x {shape[1]} pixels, got "
            f"{factor}, with a filter of {taps.shape[-1]}"
        )
    return physics.Downsampling(
        img_size=shape, filter=taps.to(like), factor=factor, padding="reflect", device=like.device
    )
