"""Images: loading, saving, noise and PSNR."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from skimage.transform import resize
from torch import Tensor

from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast._image_codecs import FORMATS, Array, decode, encode
from oes_fast.errors import InputError
from oes_fast.files import atomic_write, check_readable
from oes_fast.reference.philox import IMAGE_NOISE, seeded_generator

MIN_SIDE = 16
SKIMAGE_PREFIX = "skimage:"
# Names that scikit-image's functions have and its files have not.
SKIMAGE_ALIASES = {
    "cat": "chelsea",
    "checkerboard": "chessboard_GRAY",
    "colorwheel": "color",
    "immunohistochemistry": "ihc",
}


@dataclass(frozen=True)
class Image:
    """An image as the network sees it.

    Attributes:
        pixels: float32 in [0, 1], shape [1, C, H, W] with C = 1 (grey) or 3 (RGB).
        alpha: float32 in [0, 1], shape [1, 1, H, W], or None; carried through, never restored.
        bits: 8 or 16, of the file (16 for float files).
        name: file name without folder and suffix.
    """

    pixels: Tensor
    alpha: Tensor | None
    bits: int
    name: str


def load_image(path_or_name: str | os.PathLike[str], *, size: int | None = None) -> Image:
    """Read an image file, or one of the pictures that come with scikit-image ("skimage:astronaut").

    Any format that Pillow or OpenCV reads: grey, RGB, palette, CMYK, 1-bit, with or without alpha, turned as
    its EXIF data says; of several frames the first. PNG and TIFF keep 16 bits; float TIFF must be in [0, 1].

    Args:
        path_or_name: file, or "skimage:NAME".
        size: crop the middle square and resample it to size x size pixels, with antialiasing. None: as it is.

    Returns:
        The :class:`Image`.

    Raises:
        InputError: no such file or name, not a complete image, a side under 16 pixels, NaN or values out of
            range.
    """
    text = os.fspath(path_or_name)
    path = _skimage_file(text) if text.startswith(SKIMAGE_PREFIX) else check_readable(path_or_name)
    pixels, bits = _to_unit_range(decode(path), path)
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{text}: expected at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height}")
    if size is not None:
        pixels = _square(pixels, check_integer("size", size, minimum=MIN_SIDE))
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    channels = planes.shape[1] - (planes.shape[1] % 2 == 0)
    alpha = planes[:, channels:].clone() if channels < planes.shape[1] else None
    return Image(planes[:, :channels].contiguous(), alpha, bits, path.stem)


def skimage_names() -> list[str]:
    """The names that "skimage:NAME" takes: pictures in scikit-image's package, none that need a download."""
    files = _skimage_files()
    return sorted([*files, *(alias for alias, name in SKIMAGE_ALIASES.items() if name in files)])


def save_image(
    path: str | os.PathLike[str], image: Tensor, *, bits: int = 8, alpha: Tensor | None = None
) -> None:
    """Write an image file, atomically; the suffix names the format: .png, .tif, .tiff, .jpg or .jpeg.

    JPEG has neither 16 bits nor alpha: it is written with 8 bits and without alpha, quality 95. Grey with
    alpha and 16 bits is stored as RGBA.

    Args:
        path: file to write.
        image: any float dtype and device, shape [C, H, W] or [1, C, H, W] with C = 1 (grey) or 3 (RGB).
            Values are clipped to [0, 1] and rounded to the nearest level.
        bits: 8 or 16.
        alpha: shape [H, W], [1, H, W] or [1, 1, H, W], or None.

    Raises:
        InputError: another suffix or shape, or NaN.
        OutputError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {suffix or 'none'}")
    if bits not in (8, 16):
        raise InputError(f"bits: expected 8 or 16, got {bits}")
    plane = _as_planes("image", image, (1, 3))
    if alpha is not None:
        mask = _as_planes("alpha", alpha[None] if alpha.ndim == 2 else alpha, (1,))
        if mask.shape[1:] != plane.shape[1:]:
            raise InputError(f"alpha: expected {tuple(plane.shape[1:])} pixels, got {tuple(mask.shape[1:])}")
        plane = torch.cat([plane, mask])
    if FORMATS[suffix] == "JPEG":
        bits, plane = 8, plane[: len(plane) - (len(plane) % 2 == 0)]
    levels = (plane.clamp(0, 1) * (2**bits - 1)).round().numpy()
    array = levels.transpose(1, 2, 0).astype(np.uint16 if bits == 16 else np.uint8)
    data = encode(array, suffix)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def add_noise(pixels: Tensor, sigma: float, seed: int) -> Tensor:
    """``pixels`` with Gaussian noise, clipped to [0, 1].

    Args:
        pixels: float in [0, 1], any shape and device.
        sigma: standard deviation in units of the [0, 1] range, 0 to 1 (25 levels of 8 bits are 25/255).
        seed: of the noise, in [0, 2^64). Drawn on the CPU in float32 from a generator of its own: every
            device and dtype has the same noise, and the global random state is not touched.

    Returns:
        Tensor like ``pixels``.

    Raises:
        InputError: ``sigma`` out of range, or NaN among the pixels.
    """
    check_tensor("pixels", pixels, finite=True)
    check_number("sigma", sigma, minimum=0)
    if sigma > 1:
        raise InputError(
            f"sigma: expected a number from 0 to 1, in units of the [0, 1] range, got {sigma} "
            f"(for 8-bit levels divide by 255: {sigma:g}/255 = {sigma / 255:.4g})"
        )
    generator = seeded_generator(check_integer("seed", seed, minimum=0, below=2**64), IMAGE_NOISE)
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (pixels + sigma * noise.to(pixels)).clamp(0, 1)


def psnr(output: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(1 / mse) in dB, for images in [0, 1]; infinity for equal ones.

    Args:
        output: any float dtype and device.
        clean: same shape.

    Raises:
        InputError: the shapes differ.
    """
    if output.shape != clean.shape:
        raise InputError(f"output: expected shape {tuple(clean.shape)}, got {tuple(output.shape)}")
    difference = output.detach().to(torch.float64) - clean.detach().to(output.device, torch.float64)
    mse = float(difference.square().mean())
    return math.inf if mse == 0 else 10 * math.log10(1 / mse)


@cache
def _skimage_files() -> dict[str, Path]:
    folder = Path(skimage.data.__file__).parent
    return {file.stem: file for file in folder.iterdir() if file.suffix in (".png", ".jpg")}


def _skimage_file(text: str) -> Path:
    name = text.removeprefix(SKIMAGE_PREFIX)
    file = _skimage_files().get(SKIMAGE_ALIASES.get(name, name))
    if file is None:
        raise InputError(f"{text}: expected skimage: and one of {', '.join(skimage_names())}; got {name!r}")
    return file


def _to_unit_range(array: Array, path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """(float32 in [0, 1], bits)."""
    if array.shape[2] > 4:
        raise InputError(f"{path}: expected at most 4 channels, got {array.shape[2]}")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255), 8
    if np.issubdtype(array.dtype, np.floating):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(f"{path}: expected finite pixels, got {bad} NaN or infinite of {array.size}")
        top, scale = 1, 1
    elif np.issubdtype(array.dtype, np.integer):
        top, scale = 2**16 - 1, 2**16 - 1
    else:
        raise InputError(f"{path}: expected pixels of 8 or 16 bits or float, got {array.dtype}")
    low, high = array.min(), array.max()
    if low < 0 or high > top:
        raise InputError(f"{path}: expected {array.dtype} pixels from 0 to {top}, got {low:g} to {high:g}")
    return (array / np.float64(scale)).astype(np.float32), 16


def _square(pixels: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
    if side == size:
        return pixels
    shrunk = resize(pixels, (size, size), order=1 if size < side else 3, anti_aliasing=size < side)
    return np.clip(shrunk, 0, 1).astype(np.float32)


def _as_planes(name: str, image: Tensor, channels: tuple[int, ...]) -> Tensor:
    """float64 [C, H, W] on the CPU."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    check_tensor(name, image, dtypes=floats)
    planes = image.detach()[0] if image.ndim == 4 and image.shape[0] == 1 else image.detach()
    if planes.ndim != 3 or planes.shape[0] not in channels or planes.numel() == 0:
        wanted = " or ".join(f"(1, {c}, H, W)" for c in channels)
        raise InputError(f"{name}: expected shape {wanted}, got {tuple(image.shape)}")
    missing = int(planes.isnan().sum())
    if missing:
        raise InputError(f"{name}: expected numbers, got {missing} NaN of {planes.numel()}")
    return planes.to("cpu", torch.float64)
