"""What the readers of image files share: what they return, and what they refuse before decoding."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from oes_fast.errors import InputError

Array = npt.NDArray[Any]

# What a decoded image may have in bytes for each byte of its file. Deflate reaches 1032, JPEG 1300 (a bit for
# a block of 64 samples, fewer of colour) and LZW 2700. The others have no bound: a flat picture may reach
# 100,000, and is refused then; a photograph stays far below.
MOST_OF_DEFLATE = 1100
MOST_OF_JPEG = 1600
MOST_OF_LZW = 3000
MOST_OF_ANY = 40_000
SMALL = 2**22  # bytes decoded that are never too many
# The orientations of EXIF, for arrays [H, W, C].
_TURN: dict[int, Callable[[Array], Array]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}


@dataclass
class Decoded:
    """A decoded image file.

    Attributes:
        array: [H, W, C] with C = 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha); upright, and
            alpha not multiplied into the colours.
        top: the sample that is white, or opaque.
        bits: 8 or 16, of the file.
        icc_profile: that belongs to the colours, or None.
        notes: what a user has to know about how the file was read, a sentence each.
    """

    array: Array
    top: float
    bits: int
    icc_profile: bytes | None = None
    notes: list[str] = field(default_factory=list)


def codecs_for(purpose: str) -> ModuleType:
    """The package imagecodecs.

    Raises:
        InputError: it is not installed; the message says that ``purpose`` needs it.
    """
    try:
        import imagecodecs
    except ImportError as error:
        raise InputError(f"{purpose} needs the package imagecodecs: pip install imagecodecs") from error
    return imagecodecs


def check_size(width: int, height: int, samples: int, bits: int, *, length: int, most: int) -> None:
    """Refuse a header that promises more than its file can hold, or than there is memory for.

    Args:
        width: in pixels, as the header says.
        height: in pixels.
        samples: of a pixel.
        bits: of a sample.
        length: bytes of the file.
        most: bytes that a byte of it can decode to.

    Raises:
        InputError: the image cannot be there, or does not fit.
    """
    if min(width, height, samples, bits) < 1:
        raise InputError(f"expected a complete image, got a damaged one: {width} x {height} pixels")
    pixels = width * height
    if pixels * samples * bits / 8 > max(SMALL, most * length):
        raise InputError(
            f"expected a complete image, got a header of {width} x {height} pixels on {length:,} bytes, "
            "which cannot hold them"
        )
    # As it comes from the decoder, once copied, and float32.
    check_memory(f"{width} x {height} pixels", pixels * samples * (2 * max(1, bits // 8) + 4))


def check_memory(what: str, needed: int) -> None:
    """Refuse an image that needs so many bytes, if they are not free.

    Args:
        what: it is, for the message.
        needed: bytes, at most, while it is loaded.

    Raises:
        InputError: they are not.
    """
    free = _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{what} need {needed / 2**30:,.1f} GiB of memory to load, {free / 2**30:,.1f} GiB are free"
        )


def upright(array: Array, orientation: object) -> Array:
    """``array`` [H, W, C] turned as EXIF's or TIFF's ``orientation``, 1 to 8, says; others turn nothing."""
    turn = _TURN.get(orientation) if isinstance(orientation, int) else None
    return array if turn is None else turn(array)


def apart(array: Array, top: float) -> npt.NDArray[np.float32]:
    """[H, W, C + 1] float32 in [0, 1] of colours that were multiplied by the last channel, alpha."""
    unit = array.astype(np.float32) / np.float32(top)
    alpha = unit[..., -1:]
    colours = np.divide(unit[..., :-1], alpha, out=np.zeros_like(unit[..., :-1]), where=alpha > 0)
    return np.concatenate([np.minimum(colours, 1), alpha], axis=2)


def without_ink(array: Array, top: int) -> Array:
    """RGB, and alpha if there is one, of CMYK [H, W, 4 or 5] of uint8 or uint16; ``top`` is full ink."""
    light = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
    black = top - array[..., 3].astype(np.uint32)
    for channel in range(3):
        light[..., channel] = ((top - array[..., channel].astype(np.uint32)) * black + top // 2) // top
    light[..., 3:] = array[..., 4:]
    return light


def with_key(array: Array, key: object, scale: int = 1) -> Array:
    """``array`` and an alpha of 0 where all samples are ``scale * key``; without a key ``array`` alone."""
    if key is None:
        return array
    top = np.iinfo(array.dtype).max
    found = (array == np.asarray(key).reshape(-1) * scale).all(axis=2, keepdims=True)
    return np.concatenate([array, np.where(found, 0, top).astype(array.dtype)], axis=2)


def as_bytes(image: PillowImage.Image, depth: int = 8) -> Array:
    """uint8 [H, W, C] of a loaded image of Pillow's; CMYK stays so.

    Args:
        image: with 8 bits a sample or fewer.
        depth: bits of a sample in the file, for the colour that stands for transparent.
    """
    mode, key = image.mode, image.info.get("transparency")
    if mode in ("P", "PA"):
        return np.asarray(image.convert("RGBA" if mode == "PA" or key is not None else "RGB"))
    if mode in ("RGBX", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    if mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK"):
        raise InputError(f"expected an image that is grey, RGB, palette or CMYK, got {mode}")
    array = np.asarray(image.convert("L") if mode == "1" else image)
    array = array[..., None] if array.ndim == 2 else array
    if mode == "1":
        return with_key(array, None if key is None else bool(key), 255)
    return with_key(array, key, 255 // (2**depth - 1)) if mode in ("L", "RGB") else array


CMYK_NOTE = "CMYK is converted to RGB by (1 - ink) (1 - black), without colour management"


def fitting_profile(profile: Any, channels: int, notes: list[str]) -> bytes | None:
    """``profile`` if it is an ICC profile for so many channels, else None, and a note that says so.

    Args:
        profile: bytes that a file has for a profile, or None.
        channels: of the image, with alpha: 1 to 4.
        notes: to add to.
    """
    if not profile:
        return None
    wrong = profile_fault(profile, channels)
    if wrong is None:
        return profile
    notes.append(f"the ICC profile is left out: {wrong}")
    return None


def profile_fault(profile: Any, channels: int) -> str | None:
    """What keeps ``profile`` from being an ICC profile for an image of so many channels, alpha counted."""
    if not isinstance(profile, bytes) or len(profile) < 132 or profile[36:40] != b"acsp":
        return "it is damaged"
    wanted, found = "GRAY" if channels < 3 else "RGB", profile[16:20].decode("latin-1").strip()
    return None if found == wanted else f"it is for {found}, the image is {wanted}"


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, None where the system does not say."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text("ascii")
        found += [
            int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")
        ]
    except (OSError, ValueError, IndexError):
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError, AttributeError):
            return None
    try:  # the limit of a container
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text("ascii") for name in ("max", "current"))
        # Files that are cached count as used, and make way.
        cached = [n for n in (group / "memory.stat").read_text("ascii").splitlines() if n.startswith("file ")]
        found.append(int(limit) - int(used) + sum(int(line.split()[1]) for line in cached))
    except (OSError, ValueError, IndexError):
        pass
    return min(found, default=None)
