"""Images: loading, saving and PSNR."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from torch import Tensor

from oes_fast._checks import check_integer, check_tensor, check_values
from oes_fast.errors import ImageWarning, InputError
from oes_fast.io._image_codecs import FORMATS, decode, encode
from oes_fast.io._image_common import Decoded, check_memory, profile_fault
from oes_fast.io.files import atomic_write, check_path, check_readable

MIN_SIDE = 16
_BYTES_RESIZED = 16  # of a sample: float32, as resized, clipped, and in its order
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
        icc_profile: of the file, for grey or RGB as ``pixels`` are, or None; carried through, never applied.
    """

    pixels: Tensor
    alpha: Tensor | None
    bits: int
    name: str
    icc_profile: bytes | None = None


def load_image(path_or_name: str | os.PathLike[str], *, size: int | None = None) -> Image:
    """Read an image file, or one of the pictures that come with scikit-image ("skimage:astronaut").

    The content decides what a file is, not its name; it is turned upright as EXIF or TIFF says.

    =========  ==========================================================================================
    PNG        grey, RGB, palette, 1 to 16 bits, alpha or a transparent colour; gamma is not applied
    TIFF       grey (white or black may be zero), RGB, palette, CMYK, YCbCr as in JPEG; 1 to 16 bits; float,
               which must be in [0, 1]; 16 and 32 signed and 32 unsigned bits; planes or pixels, strips or
               tiles, both byte orders, BigTIFF, every compression of tifffile and imagecodecs
    JPEG       8 bits; grey, RGB, CMYK
    JPEG 2000  grey and RGB of 1 to 16 bits, with or without alpha; YCbCr and CMYK of 8 bits
    AVIF       8, 10 and 12 bits
    PNM        PBM, PGM, PPM up to 16 bits; grey PFM, which must be in [0, 1]
    others     WebP, GIF, BMP, QOI, PCX, SGI, Sun and TGA, all of 8 bits
    =========  ==========================================================================================

    ``bits`` is 8 for up to 8 bits, else 16; no sample loses any. Alpha that was multiplied into the colours
    (TIFF, JPEG 2000) is divided out of them. CMYK becomes RGB by (1 - ink)(1 - black). ICC profiles are kept
    from PNG, TIFF, JPEG, JPEG 2000, WebP and AVIF, but for CMYK. Of several frames or pages the first is
    read, in TIFF without thumbnails and masks. Lab, raw photographs, volumes, palettes in JPEG 2000, 12 bits
    in JPEG, HEIC and SVG are refused, and so is a header that promises more than its file can hold, or than
    40,000 times its bytes where the format knows no bound.

    What may surprise warns with :class:`ImageWarning`: the range that float, signed and 32-bit samples are
    taken in, 16 bits of which the upper ones are unused, CMYK, a profile left out, more frames than the
    first, alpha divided out or not marked as such.

    Args:
        path_or_name: file, or "skimage:NAME".
        size: crop the middle square and resample it to size x size pixels, with antialiasing. None: as it is.

    Returns:
        The :class:`Image`.

    Raises:
        InputError: no such file or name, not a complete image, a kind that is not read, a side under 16
            pixels, NaN or values out of range, more pixels than memory, or imagecodecs is missing where it is
            needed: most compressions of TIFF, more than 8 bits in JPEG 2000 and AVIF.

    Example:
        >>> image = oes.load_image("skimage:astronaut", size=64)
        >>> image.pixels.shape, image.bits
        (torch.Size([1, 3, 64, 64]), 8)
    """
    text = os.fspath(check_path("path_or_name", path_or_name))
    path = _skimage_file(text) if text.startswith(SKIMAGE_PREFIX) else check_readable(path_or_name)
    decoded = decode(path)
    height, width = decoded.array.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise InputError(f"{text}: expected at least {MIN_SIDE} x {MIN_SIDE} pixels, got {width} x {height}")
    pixels = _to_unit_range(decoded, path)
    for note in decoded.notes:
        warnings.warn(f"{text}: {note}", ImageWarning, stacklevel=2)
    if size is not None:
        pixels = _square(pixels, check_side("size", size, len(pixels)))
    planes = torch.from_numpy(pixels)[None]
    channels = planes.shape[1] - (planes.shape[1] % 2 == 0)
    alpha = planes[:, channels:].clone() if channels < planes.shape[1] else None
    return Image(planes[:, :channels].contiguous(), alpha, decoded.bits, path.stem, decoded.icc_profile)


def check_side(name: str, size: int, samples: int = 1) -> int:
    """``size``, if an image of size x size pixels is large enough and fits into memory.

    Args:
        name: of the argument, for messages.
        size: pixels of a side.
        samples: of a pixel.

    Raises:
        InputError: it is or does not.
    """
    side = check_integer(name, size, minimum=MIN_SIDE)
    check_memory(f"{name}: {side} x {side} pixels", side * side * samples * _BYTES_RESIZED)
    return side


def skimage_names() -> list[str]:
    """The names that "skimage:NAME" takes: pictures in scikit-image's package, none that need a download."""
    files = _skimage_files()
    return sorted([*files, *(alias for alias, name in SKIMAGE_ALIASES.items() if name in files)])


def save_image(
    path: str | os.PathLike[str],
    image: Tensor,
    *,
    bits: int = 8,
    alpha: Tensor | None = None,
    icc_profile: bytes | None = None,
) -> None:
    """Write an image file, atomically; the suffix names the format: .png, .tif, .tiff, .jpg or .jpeg.

    PNG and TIFF keep 8 or 16 bits, grey or RGB, alpha and ICC profile, without loss. JPEG keeps grey or RGB
    and the profile, has 8 bits, quality 95, and no alpha: 16 bits and alpha are left out with an
    :class:`ImageWarning`.

    Args:
        path: file to write.
        image: any float dtype and device, shape [C, H, W] or [1, C, H, W] with C = 1 (grey) or 3 (RGB).
            Values are clipped to [0, 1] and rounded to the nearest level.
        bits: 8 or 16.
        alpha: shape [H, W], [1, H, W] or [1, 1, H, W], or None; not multiplied into ``image``.
        icc_profile: stored with the image, for grey or RGB as it is (``Image.icc_profile``), or None.

    Raises:
        InputError: another suffix or shape, NaN, or a profile that is none or for other colours.
        OutputError: the file cannot be written.

    Example:
        >>> oes.save_image("grey.png", torch.full((1, 1, 8, 8), 0.5), bits=16)  # doctest: +SKIP
    """
    suffix = check_path("path", path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {suffix or 'none'}")
    if not isinstance(bits, Integral) or bits not in (8, 16):
        raise InputError(f"bits: expected 8 or 16, got {bits}")
    plane = _as_planes("image", image, (1, 3))
    if alpha is not None:
        flat = check_tensor("alpha", alpha, dtypes=_FLOATS)
        mask = _as_planes("alpha", flat[None] if flat.ndim == 2 else flat, (1,))
        if mask.shape[1:] != plane.shape[1:]:
            raise InputError(f"alpha: expected {tuple(plane.shape[1:])} pixels, got {tuple(mask.shape[1:])}")
        plane = torch.cat([plane, mask])
    fault = None if icc_profile is None else profile_fault(icc_profile, len(plane))
    if fault:
        raise InputError(f"icc_profile: expected an ICC profile that fits the image, but {fault}")
    if FORMATS[suffix] == "JPEG":
        lost = ["8 of the 16 bits"] * (bits == 16) + ["alpha"] * (len(plane) % 2 == 0)
        if lost:
            warnings.warn(f"{path}: JPEG leaves out {' and '.join(lost)}", ImageWarning, stacklevel=2)
        bits, plane = 8, plane[: len(plane) - (len(plane) % 2 == 0)]
    levels = (plane.clamp(0, 1) * (2**bits - 1)).round().numpy()
    array = levels.transpose(1, 2, 0).astype(np.uint16 if bits == 16 else np.uint8)
    data = encode(array, suffix, icc_profile)
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def psnr(output: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio 10 log10(1 / mse) in dB, for images in [0, 1]; infinity for equal ones.

    Args:
        output: any float dtype and device.
        clean: same shape.

    Raises:
        InputError: the shapes differ, or one is no tensor of a float dtype.

    Example:
        >>> round(oes.psnr(torch.full((1, 1, 8, 8), 0.6), torch.full((1, 1, 8, 8), 0.5)), 2)  # in dB
        20.0
    """
    check_values("output", check_tensor("output", output, dtypes=_FLOATS))
    check_values("clean", check_tensor("clean", clean, dtypes=_FLOATS))
    if output.shape != clean.shape:
        raise InputError(f"output: expected shape {tuple(clean.shape)}, got {tuple(output.shape)}")
    difference = output.detach().to(torch.float64) - clean.detach().to(output.device, torch.float64)
    mse = float(difference.square().mean())
    return math.inf if mse == 0 else -10 * math.log10(mse)  # 1 / mse would be 0 of an infinite one


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


def _to_unit_range(decoded: Decoded, path: Path) -> npt.NDArray[np.float32]:
    """float32 in [0, 1], [C, H, W]; adds to the notes what the numbers themselves tell."""
    array, top = decoded.array, decoded.top
    if np.issubdtype(array.dtype, np.floating):
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(f"{path}: expected finite pixels, got {bad} NaN or infinite of {array.size}")
    low, high = array.min(), array.max()
    if low < 0 or high > top:
        raise InputError(f"{path}: expected {array.dtype} pixels from 0 to {top}, got {low:g} to {high:g}")
    height, width, channels = array.shape
    brightest = int(array[..., : channels - (channels % 2 == 0)].max()) if top == 2**16 - 1 else 0
    if 0 < brightest < 2**14:
        decoded.notes.append(
            f"the brightest sample is {brightest} of {top}: 16 bits that hold {brightest.bit_length()} are "
            f"taken as 0 to {top}, and the image is as dark as that makes it"
        )
    planes = np.empty((channels, height, width), np.float32)
    exact = np.float32 if array.dtype in (np.uint8, np.uint16) else np.float64
    for channel, plane in enumerate(planes):
        np.divide(array[..., channel], exact(top), out=plane, dtype=exact, casting="same_kind")
    return planes


def _square(pixels: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """The middle square of ``pixels`` [C, H, W], [C, size, size]."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[:, top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(pixels)
    from skimage.transform import resize  # takes a third of a second to import

    order = 1 if size < side else 3
    shrunk = resize(pixels.transpose(1, 2, 0), (size, size), order=order, anti_aliasing=size < side)
    return np.ascontiguousarray(np.clip(shrunk, 0, 1).astype(np.float32).transpose(2, 0, 1))


def _as_planes(name: str, image: Tensor, channels: tuple[int, ...]) -> Tensor:
    """float64 [C, H, W] on the CPU."""
    check_values(name, check_tensor(name, image, dtypes=_FLOATS))
    planes = image.detach()[0] if image.ndim == 4 and image.shape[0] == 1 else image.detach()
    if planes.ndim != 3 or planes.shape[0] not in channels or planes.numel() == 0:
        wanted = " or ".join(f"(1, {c}, H, W)" for c in channels)
        raise InputError(f"{name}: expected shape {wanted}, got {tuple(image.shape)}")
    missing = int(planes.isnan().sum())
    if missing:
        raise InputError(f"{name}: expected numbers, got {missing} NaN of {planes.numel()}")
    return planes.to("cpu", torch.float64)
