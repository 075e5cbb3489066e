"""Pixels that are missing."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast._checks import check_number
from oes_fast.errors import InputError
from oes_fast.reference.philox import SAMPLING, seeded_generator
from oes_fast.tasks.packages import package
from oes_fast.tasks.task import Task, check_clean, check_image, check_seed, check_sigma, simulated


def inpainting(
    image: Tensor,
    mask: Tensor | None = None,
    *,
    missing: float | None = None,
    sigma: float | None = None,
    seed: int = 0,
    clean: Tensor | None = None,
) -> Task:
    """An image of which some pixels are known: deepinv.physics.Inpainting.

    Args:
        image: float32 or float64 in 0..1, finite, shape [1, C, H, W] with C = 1 or 3. What it holds at
            missing pixels does not matter.
        mask: True or 1 where a pixel is known, False or 0 where it is missing, any dtype; shape [H, W],
            [1, H, W], [C, H, W] or either with a 1 before it.
        missing: in the place of ``mask``: the probability, in (0, 1), of a pixel to be missing, in all of its
            channels.
        sigma: ``image`` is clean: add noise of this standard deviation (0 for none) to the known pixels, not
            clipped, and measure against it. None: ``image`` is what was measured.
        seed: of noise and missing pixels, in [0, 2^64).
        clean: image of that shape to measure against, where ``sigma`` is None.

    Returns:
        The :class:`Task`; ``noisy`` is 0 at missing pixels.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: deepinv is not here.

    Example:
        >>> task = oes.tasks.inpainting(torch.rand(1, 3, 32, 32), missing=0.5, sigma=0.1)  # doctest: +SKIP
    """
    check_image("image", image)
    channels, height, width = image.shape[1:]
    check_sigma(sigma)
    check_seed(seed)
    check_clean(clean, sigma, image.shape, image)
    if (mask is None) == (missing is None):
        raise InputError(f"mask: expected it or missing, got {'neither' if mask is None else 'both'}")
    if missing is not None:
        check_number("missing", missing, above=0.0, below=1.0)
        drawn = torch.rand((1, height, width), generator=seeded_generator(seed, SAMPLING), device="cpu")
        known = (drawn >= missing).to(image)
    else:
        known = known_pixels(mask, (channels, height, width), image)
    share = float(known.mean())
    if share == 0.0:
        if missing is None:
            raise InputError("mask: expected one known pixel at least, got none")
        raise InputError(f"missing: expected a share that leaves one known pixel at least, got {missing}")
    physics = package("deepinv.physics")
    forward = physics.Inpainting(img_size=(channels, height, width), mask=known, device=image.device)
    noisy = forward.A(image) if sigma is None else simulated(forward, image, sigma, seed, known)
    return Task(
        name="inpainting",
        noisy=noisy,
        forward=forward,
        shape=(channels, height, width),
        first=noisy,
        clean=clean if sigma is None else image,
        sigma=sigma,
        seed=None if sigma is None and missing is None else seed,
        settings={"missing": missing, "known": share},
    )


def known_pixels(mask: object, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """``mask`` as 0 and 1 in the dtype and on the device of ``like``, shape [1 or C, H, W].

    Raises:
        InputError: it has another shape, or other values.
    """
    channels, height, width = shape
    if not isinstance(mask, Tensor):
        raise InputError(f"mask: expected a torch.Tensor, got {type(mask).__name__}")
    known = mask[0] if mask.ndim == 4 and mask.shape[0] == 1 else mask
    known = known[None] if known.ndim == 2 else known
    if known.ndim != 3 or known.shape[0] not in (1, channels) or known.shape[1:] != (height, width):
        raise InputError(f"mask: expected shape ({height}, {width}) as the image, got {tuple(mask.shape)}")
    known = known.to(like)
    if not bool(((known == 0) | (known == 1)).all()):
        raise InputError("mask: expected 0 or 1 in every element, got other values")
    return known
