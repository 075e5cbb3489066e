"""Noise drawn from a seed: the fixed input of the generator, and what is added to an image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from oes_fast._checks import (
    FLOAT_DTYPES,
    check_flag,
    check_integer,
    check_length,
    check_number,
    check_tensor,
)
from oes_fast.errors import InputError, OESError
from oes_fast.reference.philox import IMAGE_NOISE, INPUT_NOISE, seeded_generator

INPUT_SCALE = 0.1  # z ~ U(0, 0.1)


def noise_input(
    channels: int = 32,
    size: Sequence[int] = (512, 512),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The input z of the generator, drawn once from U(0, 0.1) and fixed for the run.

    Args:
        channels: of the input.
        size: (H, W) of the image.
        seed: of the noise, in [0, 2^64). The global random state is not touched.
        dtype: float32 or float64.
        device: where to put it, None for the CPU. It is drawn on the CPU in float32, so every device and
            dtype has the same numbers.

    Returns:
        Tensor of shape [1, channels, H, W].

    Raises:
        InputError: a size that is no positive integer, a seed out of range, or another dtype.

    Example:
        >>> oes.noise_input(32, (64, 48), seed=0).shape
        torch.Size([1, 32, 64, 48])
    """
    check_length("size", size, 2, "(height, width)")
    return draw_input(channels, size, seed=seed, dtype=dtype, device=device)


def draw_input(
    channels: int,
    size: Sequence[int],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    """:func:`noise_input` in any number of dimensions: shape [1, channels, *size]."""
    sides = [check_integer("size", side, minimum=1, below=2**31) for side in size]
    if dtype not in FLOAT_DTYPES:
        raise InputError(f"dtype: expected float32 or float64, got {dtype}")
    generator = seeded_generator(check_integer("seed", seed, minimum=0, below=2**64), INPUT_NOISE)
    shape = (1, check_integer("channels", channels, minimum=1, below=2**31), *sides)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return drawn.mul_(INPUT_SCALE).to("cpu" if device is None else device, dtype)


def add_noise(pixels: Tensor, sigma: float, seed: int, *, clip: bool = True) -> Tensor:
    """``pixels`` with Gaussian noise, clipped to [0, 1].

    Args:
        pixels: float in [0, 1] (any range without ``clip``), any shape and device.
        sigma: standard deviation in units of the [0, 1] range, 0 to 1 (25 levels of 8 bits are 25/255).
        seed: of the noise, in [0, 2^64). Drawn on the CPU in float32 from a generator of its own: every
            device and dtype has the same noise, and the global random state is not touched.
        clip: clip to [0, 1], as published. False for measurements that are no images, or to keep the noise
            Gaussian.

    Returns:
        Tensor like ``pixels``.

    Raises:
        InputError: ``sigma`` out of range, or NaN among the pixels.

    Example:
        >>> noisy = oes.add_noise(torch.full((1, 3, 64, 64), 0.5), 0.1, seed=0)
        >>> round(float(noisy.std()), 2)
        0.1
    """
    check_tensor("pixels", pixels, finite=True)
    check_noise_level("sigma", sigma)
    generator = seeded_generator(check_integer("seed", seed, minimum=0, below=2**64), IMAGE_NOISE)
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")
    noisy = pixels + sigma * noise.to(pixels)
    return noisy.clamp(0, 1) if check_flag("clip", clip) else noisy


def check_noise_level(name: str, sigma: float) -> float:
    """``sigma``, if it is the standard deviation of noise on pixels in [0, 1].

    Args:
        name: of the argument, for messages.
        sigma: in units of that range.

    Raises:
        InputError: it is not from 0 to 1.
    """
    if check_number(name, sigma, minimum=0.0) > 1:
        raise InputError(
            f"{name}: expected a number from 0 to 1, in units of the [0, 1] range, got {sigma} "
            f"(for 8-bit levels divide by 255: {sigma:g}/255 = {sigma / 255:.4g})"
        )
    return float(sigma)


@overload
def estimate_sigma(image: Tensor, *, per_channel: Literal[False] = False) -> float: ...
@overload
def estimate_sigma(image: Tensor, *, per_channel: Literal[True]) -> tuple[float, ...]: ...


def estimate_sigma(image: Tensor, *, per_channel: bool = False) -> float | tuple[float, ...]:
    """Standard deviation of the noise in an image, estimated from the image alone.

    The robust median of its finest wavelet coefficients (Donoho and Johnstone 1994), by scikit-image's
    ``estimate_sigma``. It takes the noise for white and Gaussian: fine texture adds to it, clipping and
    interpolation between pixels take from it.

    Args:
        image: noisy image [1, C, H, W], float32 or float64, H and W >= 4; any device.
        per_channel: one number a channel, in the place of their mean.

    Returns:
        In units of the pixels' values.

    Raises:
        InputError: no such image, or it holds NaN or infinity.
        OESError: PyWavelets, which scikit-image needs for it, is not installed.

    Example:
        >>> noisy = oes.add_noise(torch.full((1, 3, 64, 64), 0.5), 0.1, seed=0)
        >>> round(oes.estimate_sigma(noisy), 2)
        0.1
    """
    check_tensor("image", image, ndim=4, finite=True)
    check_flag("per_channel", per_channel)
    if image.shape[0] != 1 or image.shape[1] == 0 or min(image.shape[2:]) < 4:
        shape = tuple(image.shape)
        raise InputError(f"image: expected one, shape (1, C, H, W) with H and W of 4 at least, got {shape}")
    from skimage.restoration import estimate_sigma as of_channels  # takes a while to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a channel without coefficients other than 0
            found = [float(of_channels(each.cpu().numpy())) for each in image[0].detach()]
    except ImportError as error:
        raise OESError(
            "estimate_sigma: expected PyWavelets to be installed, found none; pip install PyWavelets"
        ) from error
    found = [0.0 if math.isnan(sigma) else sigma for sigma in found]
    return tuple(found) if per_channel else sum(found) / len(found)
