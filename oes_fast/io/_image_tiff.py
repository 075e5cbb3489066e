"""TIFF files to arrays and back, by tifffile, which asks imagecodecs for most compressions."""

from __future__ import annotations

import io
import logging
import math
import struct
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from oes_fast.errors import InputError
from oes_fast.io._image_common import (
    CMYK_NOTE,
    MOST_OF_ANY,
    MOST_OF_DEFLATE,
    MOST_OF_LZW,
    Array,
    Decoded,
    apart,
    check_size,
    fitting_profile,
    upright,
    without_ink,
)
from oes_fast.io._image_jpeg2000 import size_in_stream

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # and BigTIFF's
ORIENTATION, ICC_PROFILE, INK_SET, COEFFICIENTS, SUBSAMPLING, BLACK_WHITE = 274, 34675, 332, 529, 530, 532
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3}
# Bytes that a byte can decode to, by compression; others may reach MOST_OF_ANY.
MOST = {1: 1, 5: MOST_OF_LZW, 8: MOST_OF_DEFLATE, 32946: MOST_OF_DEFLATE, 32773: 64}
JPEG, JPEG_2000 = (6, 7, 33007, 34892), (33003, 33004, 33005, 34712)
JPEG_BLOCK = 16  # what a part may be padded to
PAGES_TRIED = 16


def decode_tiff(data: bytes) -> Decoded:
    """The first page that is neither a thumbnail nor a mask.

    Raises:
        InputError: a kind of TIFF that is not read, by name; any other error means damage.
    """
    import tifffile  # takes a tenth of a second

    _silence()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page, more = _first_page(file)
        notes = ["of several pages the first is read"] if more else []
        _check(page, data)
        array = np.asarray(page.asarray(squeeze=False, maxworkers=1))
        # [separate samples, depth, H, W, samples beside each other], one of the two being 1.
        array = array.reshape(page.shaped)[:, 0]
        array = np.moveaxis(array, 0, -1).reshape(*array.shape[1:3], -1)
        return _interpret(page, array, notes)


def encode_tiff(array: Array, icc_profile: bytes | None) -> bytes:
    """``array`` [H, W, C], C = 1 to 4, uint8 or uint16, as deflated TIFF."""
    import tifffile

    _silence()
    buffer = io.BytesIO()
    channels = array.shape[2]
    tifffile.imwrite(
        buffer,
        array[..., 0] if channels == 1 else array,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig=None if channels == 1 else "contig",
        extrasamples=["unassalpha"] if channels % 2 == 0 else None,
        compression="zlib",
        iccprofile=icc_profile,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _silence() -> None:
    """tifffile logs what it finds odd; with no handler at all Python would print that on stderr."""
    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _first_page(file: Any) -> tuple[Any, bool]:
    """(the page to read, whether there are more of its kind)."""
    found = []
    for index in range(PAGES_TRIED):
        try:
            page = file.pages[index]
        except IndexError:
            break
        if not page.subfiletype & 0b101:  # 1: a reduced image, 4: a mask
            found.append(page)
        if len(found) == 2:
            break
    if not found:
        raise InputError("expected an image, got a TIFF of thumbnails or masks alone")
    return found[0], len(found) > 1


def _check(page: Any, data: bytes) -> None:
    """Refuse what is not read, before anything of its size is allocated."""
    bits, samples = page.bitspersample, page.samplesperpixel
    kind = getattr(page.photometric, "name", page.photometric)
    if page.photometric not in COLOURS:
        raise InputError(f"expected a TIFF that is grey, RGB, palette, CMYK or YCbCr, got {kind}")
    if not isinstance(bits, int) or page.dtype is None:
        raise InputError(f"expected a TIFF of 8 or 16 bits or float, got {bits} bits of unknown kind")
    if page.imagedepth != 1:
        raise InputError(f"expected an image, got a volume of {page.imagedepth} planes")
    colours = COLOURS[page.photometric]
    if page.photometric == SEPARATED and page.tags.valueof(INK_SET, 1) != 1:
        raise InputError("expected a TIFF that is grey, RGB, palette, CMYK or YCbCr, got other inks")
    if not 0 <= samples - colours <= 1:
        wanted = f"{colours} channels and at most one of alpha"
        raise InputError(f"expected {wanted} in a TIFF of kind {kind}, got {samples}")
    width, height = page.imagewidth, page.imagelength
    if page.is_tiled:
        width, height = (
            math.ceil(n / t) * t for n, t in ((width, page.tilewidth), (height, page.tilelength))
        )
    check_size(width, height, samples, bits, length=len(data), most=MOST.get(page.compression, MOST_OF_ANY))
    offsets, counts = page.dataoffsets, page.databytecounts
    parts = math.prod(page.chunked)
    if len(offsets) < parts or len(counts) < parts:
        raise InputError(f"expected a complete image, got {min(len(offsets), len(counts))} of {parts} parts")
    # tifffile takes parts that are not there for black.
    missing = sum(n < 1 or o < 8 or o + n > len(data) for o, n in zip(offsets, counts, strict=False))
    if missing:
        raise InputError(f"expected a complete image, got one that lacks {missing} of {parts} parts")
    if page.compression in (*JPEG, *JPEG_2000):
        _check_parts(page, data)


def _check_parts(page: Any, data: bytes) -> None:
    """Refuse a strip or tile whose own header says that it is larger: its decoder believes that."""
    width, height = page.imagewidth, min(page.rowsperstrip, page.imagelength)
    if page.is_tiled:
        width, height = page.tilewidth, page.tilelength
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        part = data[offset : offset + count]
        found = _jpeg_size(part) if page.compression in JPEG else size_in_stream(part)
        if found[0] > width + JPEG_BLOCK or found[1] > height + JPEG_BLOCK:
            raise InputError(
                "expected a complete image, got a damaged one: "
                f"{found[0]} x {found[1]} pixels in a part of {width} x {height}"
            )


def _jpeg_size(part: bytes) -> tuple[int, int]:
    """(width, height) in the header of a JPEG, (0, 0) where there is none."""
    place = 2
    while place + 9 <= len(part) and part[place] == 0xFF:
        marker = part[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", part, place + 5)
            return width, height
        place += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", part, place + 2)[0]
    return 0, 0


def _interpret(page: Any, array: Array, notes: list[str]) -> Decoded:
    """The image that the samples [H, W, samples of a pixel] stand for."""
    kind, colours = page.photometric, COLOURS[page.photometric]
    top = _white(page, array, notes)
    bits = 8 if array.dtype.kind in "bu" and page.bitspersample <= 8 else 16
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if kind == WHITE_IS_ZERO:
        if array.dtype.kind == "i":
            raise InputError(f"expected unsigned or float samples where white is zero, got {array.dtype}")
        array = np.concatenate([np.asarray(top, array.dtype) - array[..., :1], array[..., 1:]], axis=2)
    elif kind == PALETTE:
        array, top, bits = _look_up(page, array)
        colours = 3
    elif kind == SEPARATED:
        if array.dtype not in (np.uint8, np.uint16) or top not in (255, 65535):
            raise InputError(f"expected CMYK of 8 or 16 bits, got {page.bitspersample} bits of {array.dtype}")
        array, colours = without_ink(array, top), 3
        notes.append(CMYK_NOTE)
    elif kind == YCBCR and page.compression not in JPEG:
        array = _from_ycbcr(page, array)
    if array.shape[2] > colours:
        meaning = (tuple(page.extrasamples) or (0,))[0]
        if meaning == 1:
            array, top = apart(array, top), 1
            notes.append("the colours, which were multiplied by alpha, are divided by it")
        elif meaning != 2:
            notes.append("the channel after the colours has no stated meaning and is taken as alpha")
    profile = page.tags.valueof(ICC_PROFILE)
    if kind == SEPARATED and profile:
        notes.append("the ICC profile is left out: it is for CMYK")
        profile = None
    profile = fitting_profile(profile, array.shape[2], notes)
    return Decoded(upright(array, page.tags.valueof(ORIENTATION)), top, bits, profile, notes)


def _white(page: Any, array: Array, notes: list[str]) -> int:
    """The sample that is white; says so where it is not the highest of 8 or 16 unsigned bits."""
    kind, bits = array.dtype.kind, page.bitspersample
    top = 0
    if kind == "b" or (kind == "u" and bits <= 16):
        return int(2**bits - 1)
    if kind == "f":
        top = 1
    elif kind == "u" and bits <= 32:
        top = 2**bits - 1 if int(array.max()) >= 2**16 else 2**16 - 1  # a wider type that holds 16 bits
    elif kind == "i":
        top = {16: 2**15 - 1, 32: 2**16 - 1}.get(bits, 0)  # Pillow stores 16 bits in 32 signed ones
    if not top:
        raise InputError(f"expected a TIFF of 8 or 16 bits or float, got {array.dtype}")
    notes.append(f"{array.dtype} samples are taken as 0 to {top}")
    return top


def _look_up(page: Any, array: Array) -> tuple[Array, int, int]:
    """(colours, white, bits) of a palette image; a palette has 16 bits, most often of 8 written twice."""
    table = np.asarray(page.colormap)
    if table.ndim != 2 or table.shape[0] != 3 or int(array[..., 0].max()) >= table.shape[1]:
        raise InputError("expected a complete image, got a damaged one: its palette is too short")
    alpha = array[..., 1:]
    if alpha.shape[2] and array.dtype != np.uint8:
        raise InputError(f"expected a palette with alpha of 8 bits, got {page.bitspersample}")
    if not (table % 257).any() or not (table & 255).any():
        table, top, bits = (table >> 8).astype(np.uint8), 255, 8
    else:
        table, top, bits, alpha = table.astype(np.uint16), 65535, 16, alpha.astype(np.uint16) * 257
    return np.concatenate([table.T[array[..., 0]], alpha.astype(table.dtype)], axis=2), top, bits


def _from_ycbcr(page: Any, array: Array) -> Array:
    """RGB of YCbCr that is not in a JPEG, where it is JPEG's."""
    scale = page.tags.valueof(BLACK_WHITE)
    weights = page.tags.valueof(COEFFICIENTS)
    usual = scale is None or _ratios(scale) == [0, 255, 128, 255, 128, 255]
    usual = usual and (weights is None or np.allclose(_ratios(weights), [0.299, 0.587, 0.114], atol=1e-4))
    if not usual or array.dtype != np.uint8 or array.shape[2] != 3:
        raise InputError("expected YCbCr of 8 bits as in JPEG, got another kind of YCbCr")
    return np.asarray(PillowImage.fromarray(array, "YCbCr").convert("RGB"))


def _ratios(values: Any) -> list[float]:
    """The numbers that a tag of fractions has: numerators and denominators by turns."""
    return [a / b if b else math.nan for a, b in zip(values[::2], values[1::2], strict=True)]
