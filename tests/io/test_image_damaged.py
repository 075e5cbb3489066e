"""Damaged, lying, huge and foreign files: an image or one line, no memory, no noise on stderr."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from image_samples import ALPHA16, GREY16, RGB8, RGB16, load, png
from PIL import Image as PillowImage

import oes_fast.io._image_common as common
from oes_fast.errors import ImageWarning, InputError
from oes_fast.io.image import load_image

BIG = 60_000  # a side; 3.6 gigapixels
NOISE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MOST_MEGABYTES = 64
try:
    import imagecodecs
except ImportError:
    imagecodecs = None


def written(kind: str, **options: object) -> bytearray:
    """A file of Pillow's."""
    buffer = io.BytesIO()
    PillowImage.fromarray(NOISE).save(buffer, kind, **options)
    return bytearray(buffer.getvalue())


def with_tags(tags: dict[str, int], **options: object) -> bytearray:
    """A TIFF whose tags say something else than was written."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, NOISE, photometric="rgb", **options)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        for name, value in tags.items():
            tag = file.pages[0].tags[name]
            struct.pack_into({3: "<H", 4: "<I"}[tag.dtype], data, tag.valueoffset, value)
    return data


def patched(data: bytearray, place: int, layout: str, *values: int) -> bytearray:
    """``data`` with ``values`` at ``place``."""
    struct.pack_into(layout, data, place, *values)
    return data


def liars() -> Iterator[tuple[str, Callable[[], bytearray]]]:
    """Files whose headers promise gigapixels."""

    def of_png() -> bytearray:
        data = patched(written("PNG"), 16, ">II", BIG, BIG)
        return patched(data, 29, ">I", zlib.crc32(data[12:29]))

    def of_jpeg(marker: bytes, **options: object) -> bytearray:
        data = written("JPEG", **options)
        return patched(data, data.index(marker) + 5, ">HH", BIG, BIG)

    def of_jpeg2000(box: bool, stream: bool) -> bytearray:
        data = written("JPEG2000")
        start = data.index(b"\xff\x4f\xff\x51")
        if stream:
            patched(patched(data, start + 8, ">II", BIG, BIG), start + 24, ">II", BIG, BIG)
        return patched(data, data.index(b"ihdr") + 4, ">II", BIG, BIG) if box else data

    yield "png", of_png
    yield "jpeg", lambda: of_jpeg(b"\xff\xc0")
    yield "progressive jpeg", lambda: of_jpeg(b"\xff\xc2", progressive=True)
    yield "jpeg 2000, box", lambda: of_jpeg2000(box=True, stream=False)
    yield "jpeg 2000, stream", lambda: of_jpeg2000(box=False, stream=True)
    yield "jpeg 2000, both", lambda: of_jpeg2000(box=True, stream=True)
    yield "webp", lambda: patched(d := written("WEBP"), d.index(b"\x9d\x01\x2a") + 3, "<HH", 16383, 16383)
    yield "webp lossless", lambda: patched(written("WEBP", lossless=True), 21, "<I", 16382 | 16382 << 14)
    yield "gif", lambda: patched(written("GIF"), 6, "<HH", BIG, BIG)
    yield "bmp", lambda: patched(written("BMP"), 18, "<ii", BIG, BIG)
    yield "tga", lambda: patched(written("TGA"), 12, "<HH", BIG, BIG)
    yield "pcx", lambda: patched(written("PCX"), 8, "<HH", BIG, BIG)
    yield "sgi", lambda: patched(written("SGI"), 6, ">HH", BIG, BIG)
    for kind, top in ((5, 255), (6, 255), (6, 65535), (3, 65535)):
        yield (
            f"p{kind} {top}",
            lambda k=kind, t=top: bytearray(b"P%d 60000 60000 %d\n" % (k, t) + b"1 " * 999),
        )
    yield "pfm", lambda: bytearray(b"Pf\n60000 60000\n-1.0\n" + bytes(999))
    for compression in (None, "zlib", "lzw", "packbits", "zstd", "lzma", "jpeg"):
        if compression in (None, "zlib") or imagecodecs is not None:
            size = {"ImageLength": BIG, "ImageWidth": BIG}
            one = {"compression": compression}
            many = {"tile": (32, 32), **one}
            yield f"tiff {compression}", lambda o=one, s=size: with_tags({"RowsPerStrip": BIG, **s}, **o)
            yield f"tiff {compression} tiled", lambda o=many, s=size: with_tags(s, **o)
            tile = {"TileLength": BIG, "TileWidth": BIG}
            yield f"tiff {compression} tile", lambda o=many, t=tile: with_tags(t, **o)


def peak(reset: bool = False) -> int:
    """Megabytes that the process had at most, since the last ``reset``."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def test_headers_that_lie_are_refused_without_their_memory(tmp_path: Path) -> None:
    try:
        peak(reset=True)
    except OSError:
        pytest.skip("the system does not tell the memory of a process")
    path = tmp_path / "liar"
    for name, make in liars():
        path.write_bytes(make())
        before = peak(reset=True)
        with pytest.raises(InputError, match="which cannot hold them") as error:
            load_image(path)
        assert "\n" not in str(error.value), name
        assert peak() - before < MOST_MEGABYTES, name


def test_tiff_without_its_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for tags, message in (
        ({"StripOffsets": 2**31}, "got one that lacks 1 of 1 parts"),
        ({"StripByteCounts": 2**31}, "got one that lacks 1 of 1 parts"),
        ({"StripByteCounts": 0, "StripOffsets": 0}, "got one that lacks 1 of 1 parts"),
        ({"SamplesPerPixel": 60000}, "expected 3 channels and at most one of alpha"),
    ):
        path.write_bytes(with_tags(tags))
        with pytest.raises(InputError, match=message):
            load_image(path)


@pytest.mark.skipif(imagecodecs is None, reason="imagecodecs is not installed")
def test_parts_of_tiff_that_lie_are_refused_without_their_memory(tmp_path: Path) -> None:
    path, side = tmp_path / "a.tif", 30_000
    for compression in ("jpeg", "jpeg2000"):
        for layout in ({}, {"tile": (32, 32)}):
            data = with_tags({}, compression=compression, **layout)
            if compression == "jpeg":
                patched(data, data.index(b"\xff\xc0") + 5, ">HH", side, side)
            else:
                start = data.index(b"\xff\x4f\xff\x51")
                patched(patched(data, start + 8, ">II", side, side), start + 24, ">II", side, side)
            path.write_bytes(data)
            before = peak(reset=True) if Path("/proc/self/clear_refs").exists() else None
            with pytest.raises(InputError, match="got a damaged one: 30000 x 30000 pixels in a part of"):
                load_image(path)
            assert before is None or peak() - before < MOST_MEGABYTES


def test_large_photographs_load_whatever_pillow_thinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 100)
    for suffix in (".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".jp2"):
        path = tmp_path / f"a{suffix}"
        PillowImage.fromarray(NOISE).save(path)
        assert load(path).pixels.shape == (1, 3, 64, 64)
        assert PillowImage.MAX_IMAGE_PIXELS == 100
    # 200 megapixels of one bit stay a small file, and no liar.
    common.check_size(14000, 14000, 1, 1, length=133_435, most=common.MOST_OF_DEFLATE)


def test_an_image_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_free_memory", lambda: 50_000)
    PillowImage.fromarray(NOISE).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"64 x 64 pixels need 0.0 GiB of memory to load, 0.0 GiB are free"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(common, "_free_memory", lambda: 2**20)
    with pytest.raises(
        InputError, match=r"^size: 512 x 512 pixels need 0.0 GiB of memory to load, 0.0 GiB are"
    ):
        load_image(tmp_path / "a.png", size=512)
    monkeypatch.undo()
    free = common._free_memory()
    assert free is None or free > 2**20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello\n",
        b"<!DOCTYPE html><html>404</html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        b"%PDF-1.7\n" + bytes(500),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        b"PK\x03\x04" + bytes(300),
        bytes(5000),
        bytes(range(256)) * 20,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"II*\0",
        b"MM\0+\0\x08\0\0",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"P6\n",
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    tmp_path: Path, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="expected a") as error:
        load_image(tmp_path / "a.png")
    assert str(error.value).startswith(f"{tmp_path / 'a.png'}: ")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_it_is_instead_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for data, name in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\xff\xd8\xff\xf7" + bytes(99), "JPEG-LS"),
        (b"\xff\xd8\xff\xdb" + bytes(99), "a JPEG of more than 8 bits, or a damaged one"),
        (b"", "an empty file"),
        (b"words", "a file that is none of them, or is damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"expected an image in PNG, TIFF, .*, got {name}$"):
            load_image(path)


def samples(folder: Path) -> dict[str, bytes]:
    """A file of each kind."""
    path, found = folder / "sample", {}
    PillowImage.init()
    for kind in ("JPEG", "GIF", "WEBP", "BMP", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "AVIF"):
        if kind in PillowImage.SAVE:  # AVIF came late
            found[kind] = bytes(written(kind))
    found["interlaced"] = bytes(written("PNG"))
    for kind, depth, rows in (
        (0, 16, GREY16),
        (2, 8, RGB8),
        (2, 16, RGB16),
        (4, 16, np.dstack([GREY16, ALPHA16])),
        (6, 16, np.dstack([RGB16, ALPHA16])),
    ):
        found[f"png {kind} {depth}"] = png(path, kind, depth, rows).read_bytes()
    for compression in (None, "zlib", "lzw", "packbits", "zstd", "lzma", "jpeg", "png", "webp", "jpeg2000"):
        if compression in (None, "zlib") or imagecodecs is not None:
            array = NOISE if compression in ("jpeg", "webp") else RGB16
            for layout in ({}, {"tile": (16, 16)}):
                tifffile.imwrite(path, array, photometric="rgb", compression=compression, **layout)
                found[f"tiff {compression} {layout}"] = path.read_bytes()
    if imagecodecs is not None:
        found["jp2 16"] = imagecodecs.jpeg2k_encode(RGB16, level=0, reversible=True)
        found["avif 10"] = imagecodecs.avif_encode(RGB16 >> 6, bitspersample=10)
        found["qoi"] = imagecodecs.qoi_encode(NOISE)
    return found


def test_files_that_end_too_soon_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut"
    for name, data in samples(tmp_path).items():
        for length in (len(data) // 3, len(data) // 2, len(data) * 9 // 10, len(data) - 30):
            path.write_bytes(data[:length])
            with pytest.raises(InputError) as error:
                load_image(path)
            assert "\n" not in str(error.value), name
    assert capfd.readouterr() == ("", "")


def test_damaged_bytes_give_an_image_or_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, numbers = tmp_path / "damaged", random.Random(0)
    read = refused = 0
    before = peak(reset=True) if Path("/proc/self/clear_refs").exists() else None
    for name, data in samples(tmp_path).items():
        for case in range(10):
            damaged = bytearray(data)
            end = min(len(data), 300) if case % 2 else len(data)  # headers above all
            for _ in range(numbers.randint(1, 3)):
                damaged[numbers.randrange(end)] = numbers.choice((0, 255, numbers.randrange(256)))
            path.write_bytes(damaged if case % 5 else damaged[: numbers.randrange(len(data))])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.simplefilter("ignore", ImageWarning)
                    image = load_image(path)
            except InputError as error:
                assert "\n" not in str(error), name  # noqa: PT017 (a file that is read is right too)
                refused += 1
            else:
                assert torch.isfinite(image.pixels).all(), name
                assert 0 <= image.pixels.min() <= image.pixels.max() <= 1, name
                read += 1
    assert min(read, refused) > 50
    assert before is None or peak() - before < 2 * MOST_MEGABYTES
    assert capfd.readouterr() == ("", "")
