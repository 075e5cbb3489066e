"""Samples to write to image files, and what the images that come back must be."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ImageCms

from oes_fast.errors import ImageWarning
from oes_fast.io.image import Image, load_image

HEIGHT, WIDTH = 20, 32
RNG = np.random.default_rng(0)
RGB16 = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
RGB16[0, 0], RGB16[0, 1] = 0, 65535
GREY16, ALPHA16 = RGB16[..., 1].copy(), RNG.integers(1, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
RGB8, GREY8, ALPHA8 = ((array >> 8).astype(np.uint8) for array in (RGB16, GREY16, ALPHA16))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]
ALPHA_NOTE = "no stated meaning and is taken as alpha"


def load(path: Path, *notes: str) -> Image:
    """The image, whose warnings are those that have ``notes`` in them, one each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = load_image(path)
    said = [str(warning.message) for warning in caught]
    assert len(said) == len(notes), said
    for text, note in zip(said, notes, strict=True):
        assert text.startswith(f"{path}: ")
        assert note in text
    assert all(warning.category is ImageWarning for warning in caught)
    return image


def check(image: Image, array: np.ndarray, top: float, bits: int, alpha: np.ndarray | None = None) -> None:
    """``image`` has the samples of ``array`` [H, W] or [H, W, C], of which ``top`` is white, to the bit."""
    wanted = (array.reshape(*array.shape[:2], -1) / top).astype(np.float32).transpose(2, 0, 1)[None]
    assert image.pixels.shape == wanted.shape
    assert np.array_equal(image.pixels.numpy(), wanted)
    assert image.pixels.dtype == torch.float32
    assert image.pixels.is_contiguous()
    assert image.bits == bits
    assert (image.alpha is None) == (alpha is None)
    if alpha is not None:
        assert np.array_equal(image.alpha[0, 0].numpy(), (alpha / top).astype(np.float32))


def png(path: Path, kind: int, depth: int, rows: np.ndarray, *extra: tuple[bytes, bytes]) -> Path:
    """PNG of grey (kind 0), RGB (2), grey with alpha (4) or RGBA (6), chunks before and after the pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    flat = rows.reshape(len(rows), -1)
    if depth < 8:
        places = (flat[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)
        packed = np.packbits(places.reshape(len(rows), -1), axis=1)
    else:
        packed = flat.astype(">u2" if depth == 16 else np.uint8).view(np.uint8)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    before = b"".join(chunk(*one) for one in extra if one[0] != b"eXIf")
    after = b"".join(chunk(*one) for one in extra if one[0] == b"eXIf")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", pixels)
        + after
        + chunk(b"IEND", b"")
    )
    return path
