"""Image files to arrays and back: by Pillow, TIFF by tifffile, by imagecodecs what Pillow cuts to 8 bits."""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from oes_fast.errors import InputError
from oes_fast.io import _image_jpeg2000 as jpeg2000
from oes_fast.io import _image_tiff as tiff
from oes_fast.io._image_common import (
    CMYK_NOTE,
    MOST_OF_ANY,
    MOST_OF_DEFLATE,
    MOST_OF_JPEG,
    Array,
    Decoded,
    as_bytes,
    check_size,
    codecs_for,
    fitting_profile,
    upright,
    with_key,
    without_ink,
)

FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
JPEG_QUALITY = 95

# What Pillow may be asked for: formats whose pixels it gives as they are, and no interpreters of programs.
READ = ["PNG", "JPEG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI", "PCX", "SGI", "SUN"]
READ += ["TGA"]  # the last: its files have no signature
NAMES = "PNG, TIFF, JPEG, JPEG 2000, WebP, AVIF, GIF, BMP, PNM, QOI, PCX, SGI, Sun or TGA"
MOST = {"PNG": MOST_OF_DEFLATE, "JPEG": MOST_OF_JPEG, "MPO": MOST_OF_JPEG, "PPM": 1}
# How files begin that are images of other kinds, or come in place of one; the last that fits is named.
FOREIGN = [
    ("a JPEG of more than 8 bits, or a damaged one", b"\xff\xd8\xff"),
    ("HEIC", b"ftyphei"),
    ("HEIC", b"ftyphev"),
    ("HEIC", b"ftypmif1"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\0\0\0\x0cJXL "),
    ("JPEG-LS", b"\xff\xd8\xff\xf7"),
    ("OpenEXR", b"v/1\x01"),
    ("Radiance HDR", b"#?"),
    ("Photoshop", b"8BPS"),
    ("PDF", b"%PDF"),
    ("SVG", b"<svg"),
    ("HTML", b"<!DOCTYPE"),
]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by type of colour
PNG_RGB, PNG_GREY_ALPHA, PNG_RGBA = 2, 4, 6
EXIF_ORIENTATION = 0x0112
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
PNM = re.compile(rb"P([2356])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,5})\s")

# Filters of warnings and Pillow's limit belong to the process: one thread at a time may change them.
_alone = threading.Lock()


def decode(path: Path) -> Decoded:
    """Read an image file.

    Raises:
        InputError: no image, a damaged one, or of a kind that is not read; the message begins with ``path``.
    """
    try:
        data = path.read_bytes()
        with _alone, _pillow_as_it_is():
            return tiff.decode_tiff(data) if data.startswith(tiff.SIGNATURES) else _decode(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except MemoryError as error:
        raise InputError(f"{path}: expected an image that fits in memory, got a larger one") from error
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ImportError) or "'imagecodecs' package" in reason:  # as tifffile says it
            raise InputError(f"{path}: reading it needs imagecodecs: pip install imagecodecs") from error
        if reason.endswith("not supported"):  # by this version of tifffile or imagecodecs
            raise InputError(f"{path}: expected an image of a kind that is read: {reason}") from error
        raise InputError(f"{path}: expected a complete image, got a damaged one: {reason}") from error


@contextmanager
def _pillow_as_it_is() -> Iterator[None]:
    """No word on what Pillow finds odd in a file that it reads, and no limit but that of check_size."""
    limit = PillowImage.MAX_IMAGE_PIXELS
    try:
        PillowImage.MAX_IMAGE_PIXELS = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        PillowImage.MAX_IMAGE_PIXELS = limit


def encode(array: Array, suffix: str, icc_profile: bytes | None = None) -> bytes:
    """The file's bytes.

    Args:
        array: [H, W, C] with C = 1 to 4; uint8 or uint16, JPEG: uint8 of 1 or 3 channels.
        suffix: of the name, in lower case.
        icc_profile: to store, or None.
    """
    kind = FORMATS[suffix]
    if kind == "TIFF":
        return tiff.encode_tiff(array, icc_profile)
    if array.dtype == np.uint16:
        return _encode_png16(array, icc_profile)
    buffer = io.BytesIO()
    options: dict[str, object] = {"quality": JPEG_QUALITY} if kind == "JPEG" else {}
    image = PillowImage.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    image.save(buffer, format=kind, icc_profile=icc_profile, **options)
    return buffer.getvalue()


def _encode_png16(array: Array, icc_profile: bytes | None) -> bytes:
    """PNG of 16 bits: Pillow has no such colours, and imagecodecs stores no profile."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    # Each row as its difference from the one above: filter 2, "up".
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    profile = b"" if icc_profile is None else chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
    pixels = chunk(b"IDAT", zlib.compress(filtered.tobytes()))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + profile + pixels + chunk(b"IEND", b"")


def _decode(data: bytes) -> Decoded:
    with _open(data) as image:
        kind, notes = image.format or "", list[str]()
        samples, bits = len(image.getbands()), 1 if image.mode == "1" else 8
        if kind == "PNG":
            _check_png(data)
            samples, bits = PNG_SAMPLES.get(data[25], 1), data[24]
        width, height = image.size
        check_size(width, height, samples, bits, length=len(data), most=MOST.get(kind, MOST_OF_ANY))
        if getattr(image, "is_animated", False):
            notes.append("of several frames the first is read")
            image.seek(0)
        orientation, profile = image.getexif().get(EXIF_ORIENTATION, 1), image.info.get("icc_profile")
        if kind == "JPEG2000":
            array, top, bits, profile = jpeg2000.decode(image, data, notes)
        else:
            array, top, bits = _read(image, data, kind, notes)
        if image.mode == "CMYK":
            array = without_ink(array, 255)
            notes.append(CMYK_NOTE)
            if profile:
                notes.append("the ICC profile is left out: it is for CMYK")
                profile = None
        profile = fitting_profile(profile, array.shape[2], notes)
        return Decoded(upright(array, orientation), top, bits, profile, notes)


def _open(data: bytes) -> PillowImage.Image:
    PillowImage.init()
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":  # whose reader allocates the image on opening it
        check_size(*_webp_size(data), 4, 8, length=len(data), most=MOST_OF_ANY)
    try:
        return PillowImage.open(io.BytesIO(data), formats=[name for name in READ if name in PillowImage.OPEN])
    except UnidentifiedImageError as error:
        names = [name for name, sign in FOREIGN if data.startswith(sign, 4 if sign[:4] == b"ftyp" else 0)]
        found = (
            names[-1] if names else "a file that is none of them, or is damaged" if data else "an empty file"
        )
        raise InputError(f"expected an image in {NAMES}, got {found}") from error


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in the header of the file or of its only frame."""
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(head[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _check_png(data: bytes) -> None:
    """Refuse pixels with a wrong checksum: Pillow does not look, libpng says so on stderr."""
    start, name, view = len(PNG_SIGNATURE), b"", memoryview(data)
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", data, start) if start + 8 <= len(data) else (0, b"")
        end = start + 8 + size
        if end + 4 > len(data):
            raise InputError(f"expected a complete image, got one that ends after {len(data):,} bytes")
        sound = struct.pack(">I", zlib.crc32(view[start + 4 : end])) == view[end : end + 4]
        if name in (b"IHDR", b"PLTE", b"IDAT") and not sound:
            raise InputError(f"expected a complete image, got a damaged one: checksum of {name.decode()}")
        if start == len(PNG_SIGNATURE) and name != b"IHDR":
            raise InputError("expected a complete image, got a damaged one: no header")
        start = end + 4


def _read(image: PillowImage.Image, data: bytes, kind: str, notes: list[str]) -> tuple[Array, int, int]:
    """(samples [H, W, C], white, bits of the file)."""
    if kind == "SGI" and data[3] != 1:
        raise InputError("expected SGI of 8 bits, got 16")
    if kind == "PPM" and (deep := _deep_pnm(data)) is not None:
        return (*deep, 16 if deep[1] > 255 else 8)
    if kind == "AVIF" and (bits := _avif_bits(data)) > 8:
        array = codecs_for(f"AVIF of {bits} bits").avif_decode(data, index=0)
        return array.reshape(*array.shape[:2], -1), 2**bits - 1, 16
    image.load()  # notices damage that imagecodecs reads over
    if kind == "PNG" and data[24] == 16:
        return _deep_png(image, data), 65535, 16
    if image.mode == "F":
        notes.append("float32 samples are taken as 0 to 1")
        return np.asarray(image)[..., None], 1, 16
    return as_bytes(image, data[24] if kind == "PNG" else 8), 255, 8


def _deep_pnm(data: bytes) -> tuple[Array, int] | None:
    """(samples, white) of PGM and PPM whose white is not 255, else None: Pillow takes these to 8 bits."""
    match = PNM.match(data)
    if match is None or int(match[4]) == 255 or not 0 < int(match[4]) < 65536:
        return None
    kind, width, height, top = (int(group) for group in match.groups())
    channels = 3 if kind in (3, 6) else 1
    count = width * height * channels
    if kind > 4:
        kind_of_sample = ">u2" if top > 255 else "u1"
        array = np.frombuffer(data, kind_of_sample, count, match.end()).astype(np.uint16)
    else:
        words = re.sub(rb"#[^\r\n]*", b"", data[match.end() :]).split()
        if len(words) < count:
            raise InputError(f"expected a complete image, got {len(words)} of {count} samples")
        array = np.array(words[:count]).astype(np.int64)
    if array.max() > top:
        raise InputError(f"expected samples up to {top}, as the header says, got {int(array.max())}")
    return array.reshape(height, width, channels), top


def _deep_png(image: PillowImage.Image, data: bytes) -> Array:
    """16-bit samples, with the colour that stands for transparent, if any, made alpha."""
    if image.mode == "I;16":
        return with_key(np.asarray(image)[..., None], image.info.get("transparency"))
    try:
        array = codecs_for("PNG of 16 bits").png_decode(data)
    except InputError:  # not installed
        array = _png_by_halves(data)
    if array.shape[2] == 3:
        array = with_key(array, image.info.get("transparency"))
    return array


def _png_by_halves(data: bytes) -> Array:
    """Colour PNG of 16 bits by Pillow, which keeps one byte of each sample: the upper, then the lower."""
    # Grey with alpha as if the four bytes of a pixel were four samples.
    layouts = {PNG_RGB: ("RGB;16B", "RGB;16L"), PNG_GREY_ALPHA: ("RGBA",), PNG_RGBA: ("RGBA;16B", "RGBA;16L")}
    halves = []
    for layout in layouts[data[25]]:
        with _open(data) as image:
            codec, box, offset, _ = image.tile[0]
            image.tile = [(codec, box, offset, layout)]
            image.load()
            halves.append(np.asarray(image).astype(np.uint16))
    if len(halves) == 1:
        return halves[0][..., ::2] << 8 | halves[0][..., 1::2]
    return halves[0] << 8 | halves[1]


def _avif_bits(data: bytes) -> int:
    """Bits of a sample, as the configuration of the AV1 stream says."""
    start = data.find(b"av1C")
    flags = data[start + 6] if 0 <= start < len(data) - 6 else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
