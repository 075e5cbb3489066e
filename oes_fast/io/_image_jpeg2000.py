"""JPEG 2000 files to arrays: Pillow reads 8 bits, imagecodecs the rest, which Pillow shifts or cuts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image as PillowImage

from oes_fast.errors import InputError
from oes_fast.io._image_common import MOST_OF_ANY, Array, apart, as_bytes, check_size, codecs_for

CODESTREAM = b"\xff\x4f\xff\x51"  # start, and the marker of the size
GREY_OR_RGB = (16, 17)
CONVERTED = (12, 18)  # CMYK and YCbCr, by Pillow
ENUMERATED, RESTRICTED_ICC, ANY_ICC = 1, 2, 3
OPACITY, PREMULTIPLIED = 1, 2


@dataclass
class _Header:
    """Of a JPEG 2000 file.

    Attributes:
        size: (width, height).
        depths: bits of a sample in each channel.
        plain: whether every channel is unsigned and of full size.
        space: number of the colour space, None where a profile or nothing tells it.
        profile: ICC profile, or None.
        meanings: (channel, kind, colour it belongs to) of those that the file tells.
        palette: whether the samples are numbers of colours.
    """

    size: tuple[int, int]
    depths: list[int]
    plain: bool
    space: int | None = None
    profile: bytes | None = None
    meanings: list[tuple[int, int, int]] = field(default_factory=list)
    palette: bool = False


def decode(image: PillowImage.Image, data: bytes, notes: list[str]) -> tuple[Array, int, int, bytes | None]:
    """(samples [H, W, C], white, bits of the file, ICC profile).

    Args:
        image: opened by Pillow, not yet loaded.
        data: the file.
        notes: what a user has to know is added.
    """
    header = _header(data)
    channels, depth = len(header.depths), header.depths[0]
    # The decoder has 32 bits for every sample.
    check_size(*header.size, channels, 32, length=len(data), most=MOST_OF_ANY)
    if channels > 4:
        raise InputError(f"expected at most 4 channels, got {channels}")
    if header.palette:
        raise InputError("expected JPEG 2000 that is grey or RGB, got one with a palette")
    if len(set(header.depths)) > 1 or depth > 16:
        raise InputError(f"expected JPEG 2000 of 1 to 16 bits in all channels, got {header.depths}")
    eight = depth == 8 and (header.plain or header.space == 18)
    if not eight and not header.plain:
        raise InputError("expected unsigned channels of one size, got signed or subsampled ones")
    if header.space not in (None, *GREY_OR_RGB, *(CONVERTED if eight else ())):
        raise InputError(f"expected JPEG 2000 that is grey or RGB, got colour space {header.space}")
    if eight:
        image.load()
        array, top = as_bytes(image), 255
    else:
        array, top = codecs_for(f"JPEG 2000 of {depth} bits").jpeg2k_decode(data, verbose=0), 2**depth - 1
        array = array.reshape(*array.shape[:2], -1)
    if image.mode != "CMYK" and channels % 2 == 0:
        array, top = _with_alpha(header, array, top, notes)
    return array, top, 8 if depth <= 8 else 16, header.profile


def _with_alpha(header: _Header, array: Array, top: int, notes: list[str]) -> tuple[Array, int]:
    last = array.shape[2] - 1
    kinds = {channel: kind for channel, kind, _ in header.meanings}
    if header.meanings and any(
        kind != 0 or colour != channel + 1 for channel, kind, colour in header.meanings if channel != last
    ):
        raise InputError("expected channels in the order RGB and alpha, got another order")
    if kinds.get(last) == PREMULTIPLIED:
        notes.append("the colours, which were multiplied by alpha, are divided by it")
        return apart(array, top), 1
    if kinds.get(last) != OPACITY:
        notes.append("the channel after the colours has no stated meaning and is taken as alpha")
    return array, top


def size_in_stream(data: bytes) -> tuple[int, int]:
    """(width, height) that the codestream of a JPEG 2000 file says.

    Raises:
        InputError: there is none.
    """
    right, lower, left, upper = struct.unpack_from(">4I", data, _codestream(data) + 8)
    return right - left, lower - upper


def _codestream(data: bytes) -> int:
    """Where the codestream begins, of which a raw file is nothing else."""
    start = 0
    if not data.startswith(CODESTREAM):
        boxes = ((name, begin) for name, begin, _ in _boxes(data, 0, len(data)))
        start = next((begin for name, begin in boxes if name == b"jp2c"), len(data))
    if data[start : start + 4] != CODESTREAM or len(data) < start + 42:
        raise InputError("expected a complete image, got a damaged one: no codestream")
    return start


def _header(data: bytes) -> _Header:
    start = _codestream(data) + len(CODESTREAM)
    (count,) = struct.unpack_from(">H", data, start + 36)
    parts = [struct.unpack_from(">3B", data, start + 38 + 3 * i) for i in range(count)]
    if not parts:
        raise InputError("expected a complete image, got a damaged one: no channels")
    header = _Header(
        size_in_stream(data),
        [(sign_and_bits & 127) + 1 for sign_and_bits, _, _ in parts],
        all(part[0] < 128 and part[1:] == (1, 1) for part in parts),
    )
    for name, begin, end in _boxes(data, 0, len(data)):
        if name == b"jp2h":
            for inner, first, last in _boxes(data, begin, end):
                _add(header, inner, data[first:last])
    return header


def _add(header: _Header, name: bytes, box: bytes) -> None:
    if name == b"colr" and header.space is None and header.profile is None:
        if box[0] == ENUMERATED:
            (header.space,) = struct.unpack_from(">I", box, 3)
        elif box[0] in (RESTRICTED_ICC, ANY_ICC):
            header.profile = box[3:]
    elif name == b"cdef":
        (count,) = struct.unpack_from(">H", box)
        header.meanings = [struct.unpack_from(">3H", box, 2 + 6 * i) for i in range(count)]
    elif name == b"pclr":
        header.palette = True


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, end of the content) of the boxes between two positions."""
    while end - start >= 8:
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and end - start >= 16:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        elif size == 0:
            size = end - start
        if size < head or size > end - start:
            return
        yield name, start + head, start + size
        start += size
