"""Every format gives the samples that were put in it: depth, order, alpha, turn, profile; or is refused."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from image_samples import (
    ALPHA8,
    ALPHA16,
    ALPHA_NOTE,
    GREY8,
    GREY16,
    GREY_PROFILE,
    HEIGHT,
    RGB8,
    RGB16,
    SRGB,
    WIDTH,
    check,
    load,
    png,
)
from PIL import Image as PillowImage

from oes_fast.errors import InputError
from oes_fast.io.image import load_image, save_image


@pytest.fixture
def without_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)


class TestPng:
    @pytest.mark.parametrize("missing", [False, True])
    def test_16_bits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool) -> None:
        if missing:
            monkeypatch.setitem(sys.modules, "imagecodecs", None)
        else:
            pytest.importorskip("imagecodecs")
        path = tmp_path / "a.png"
        check(load(png(path, 0, 16, GREY16)), GREY16, 65535, 16)
        check(load(png(path, 2, 16, RGB16)), RGB16, 65535, 16)
        check(load(png(path, 4, 16, np.dstack([GREY16, ALPHA16]))), GREY16, 65535, 16, ALPHA16)
        check(load(png(path, 6, 16, np.dstack([RGB16, ALPHA16]))), RGB16, 65535, 16, ALPHA16)
        key = (b"tRNS", struct.pack(">3H", *RGB16[3, 3]))
        transparent = np.where((RGB16[3, 3] == RGB16).all(-1), 0, 65535)
        check(load(png(path, 2, 16, RGB16, key)), RGB16, 65535, 16, transparent)

    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_grey_of_every_depth_and_its_transparent_level(self, tmp_path: Path, depth: int) -> None:
        path, top, bits = tmp_path / "a.png", 2**depth - 1, 16 if depth > 8 else 8
        array = GREY16 >> (16 - depth)
        check(load(png(path, 0, depth, array)), array, top, bits)
        key = (b"tRNS", struct.pack(">H", array[5, 5]))
        check(load(png(path, 0, depth, array, key)), array, top, bits, np.where(array == array[5, 5], 0, top))

    def test_transparent_colour_of_8_bits(self, tmp_path: Path) -> None:
        key = (b"tRNS", struct.pack(">3H", *RGB8[3, 3]))
        alpha = np.where((RGB8[3, 3] == RGB8).all(-1), 0, 255)
        check(load(png(tmp_path / "a.png", 2, 8, RGB8, key)), RGB8, 255, 8, alpha)

    @pytest.mark.parametrize("depth", [8, 16])
    def test_orientation_after_the_pixels(self, tmp_path: Path, depth: int) -> None:
        exif = (b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
        array = RGB8 if depth == 8 else RGB16
        image = load(png(tmp_path / "a.png", 2, depth, array, exif))
        check(image, np.rot90(array, -1), 2**depth - 1, depth)

    def test_gamma_is_not_applied(self, tmp_path: Path) -> None:
        gamma = (b"gAMA", struct.pack(">I", 100000))
        check(load(png(tmp_path / "a.png", 2, 16, RGB16, gamma)), RGB16, 65535, 16)


class TestJpeg2000:
    @pytest.mark.parametrize("codec", ["jp2", "j2k"])
    @pytest.mark.parametrize("bits", [4, 8, 10, 12, 16])
    def test_every_depth(self, tmp_path: Path, codec: str, bits: int) -> None:
        imagecodecs = pytest.importorskip("imagecodecs")
        path, top = tmp_path / f"a.{codec}", 2**bits - 1
        dtype = np.uint8 if bits <= 8 else np.uint16
        rgb, grey, alpha = ((x >> (16 - bits)).astype(dtype) for x in (RGB16, GREY16, ALPHA16))
        for array, wanted, opacity in (
            (grey, grey, None),
            (rgb, rgb, None),
            (np.dstack([grey, alpha]), grey, alpha),
            (np.dstack([rgb, alpha]), rgb, alpha),
        ):
            options = {"level": 0, "reversible": True, "codecformat": codec, "bitspersample": bits}
            path.write_bytes(imagecodecs.jpeg2k_encode(array, planar=False, **options))
            notes = () if opacity is None else (ALPHA_NOTE,)
            check(load(path, *notes), wanted, top, 8 if bits <= 8 else 16, opacity)

    def test_pillows(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jp2"
        PillowImage.fromarray(np.dstack([RGB8, ALPHA8])).save(path)
        check(load(path), RGB8, 255, 8, ALPHA8)
        data = path.read_bytes()
        assert b"cdef" in data
        # The alpha channel's entry: channel 3, opacity; 2 means that it is multiplied into the colours.
        premultiplied = data.replace(struct.pack(">3H", 3, 1, 0), struct.pack(">3H", 3, 2, 0))
        assert premultiplied != data
        path.write_bytes(premultiplied)
        image = load(path, "multiplied by alpha, are divided by it")
        found = image.pixels[0].numpy().transpose(1, 2, 0)
        wanted = np.minimum(RGB8 / np.maximum(ALPHA8, 1)[..., None], 1) * (ALPHA8 > 0)[..., None]
        assert np.abs(found - wanted).max() < 1e-6
        pytest.importorskip("imagecodecs")
        PillowImage.fromarray(GREY16).save(path)
        check(load(path), GREY16, 65535, 16)

    def test_signed_is_refused(self, tmp_path: Path) -> None:
        imagecodecs = pytest.importorskip("imagecodecs")
        (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode((GREY16 >> 1).astype(np.int16), level=0))
        with pytest.raises(InputError, match="expected unsigned channels of one size"):
            load_image(tmp_path / "a.jp2")


class TestOtherFormats:
    @pytest.mark.parametrize("top", [1, 15, 100, 255, 256, 1023, 4095, 65535])
    def test_pnm(self, tmp_path: Path, top: int) -> None:
        path = tmp_path / "a.pnm"
        rgb = (RGB16.astype(np.uint32) * top // 65535).astype(np.uint16)
        for kind, array in ((2, rgb[..., 0]), (3, rgb), (5, rgb[..., 0]), (6, rgb)):
            stored = array.astype(np.uint8 if top < 256 else ">u2").tobytes()
            if kind < 4:
                stored = b" # a comment\n".join(b"%d" % sample for sample in array.ravel())
            path.write_bytes(b"P%d\n# a comment\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, top) + stored)
            check(load(path), array, top, 8 if top < 256 else 16)

    @pytest.mark.parametrize(("top", "over"), [(100, 101), (1000, 1001)])
    def test_pnm_above_its_white(self, tmp_path: Path, top: int, over: int) -> None:
        samples = np.full((16, 16), top, np.uint8 if top < 256 else ">u2")
        samples[3, 4] = over
        for kind in (2, 5):
            stored = samples.tobytes() if kind == 5 else b" ".join(b"%d" % s for s in samples.ravel())
            (tmp_path / "a.pgm").write_bytes(b"P%d 16 16 %d\n" % (kind, top) + stored)
            with pytest.raises(
                InputError, match=f"expected samples up to {top}, as the header says, got {over}"
            ):
                load_image(tmp_path / "a.pgm")

    def test_pfm(self, tmp_path: Path) -> None:
        floats = (GREY16 / 65535).astype("<f4")
        head = b"Pf\n%d %d\n-1.0\n" % (WIDTH, HEIGHT)
        (tmp_path / "a.pfm").write_bytes(head + floats[::-1].tobytes())
        check(load(tmp_path / "a.pfm", "float32 samples are taken as 0 to 1"), floats, 1, 16)

    @pytest.mark.parametrize("bits", [8, 10, 12])
    def test_avif(self, tmp_path: Path, bits: int) -> None:
        imagecodecs = pytest.importorskip("imagecodecs")
        rgb, alpha = (
            (x >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16) for x in (RGB16, ALPHA16)
        )
        options = {"level": 100, "bitspersample": bits, "pixelformat": "444"}
        for array, opacity in ((rgb, None), (np.dstack([rgb, alpha]), alpha)):
            (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(array, **options))
            check(load(tmp_path / "a.avif"), rgb, 2**bits - 1, 8 if bits == 8 else 16, opacity)

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        flat = np.full((HEIGHT, WIDTH, 3), (200, 90, 30), np.uint8)
        PillowImage.fromarray(flat).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
        image = load(tmp_path / "a.jpg", "CMYK is converted to RGB by (1 - ink) (1 - black)")
        assert np.abs(image.pixels[0].numpy().transpose(1, 2, 0) * 255 - flat).max() < 3

    @pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
    def test_animations(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        frames = [
            PillowImage.fromarray(np.roll(RGB8, 7 * i, 1)).quantize(16).convert("RGB") for i in range(3)
        ]
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        image = load(path, "of several frames the first is read")
        wanted = np.asarray(frames[0])
        check(
            image, wanted, 255, 8, image.alpha if image.alpha is None else np.full_like(wanted[..., 0], 255)
        )

    @pytest.mark.parametrize("suffix", [".tga", ".pcx", ".sgi", ".bmp"])
    def test_eight_bits(self, tmp_path: Path, suffix: str) -> None:
        PillowImage.fromarray(RGB8).save(tmp_path / f"a{suffix}")
        check(load(tmp_path / f"a{suffix}"), RGB8, 255, 8)

    def test_sgi_of_16_bits_is_refused(self, tmp_path: Path) -> None:
        PillowImage.fromarray(GREY8).save(tmp_path / "a.sgi", bpc=2)
        with pytest.raises(InputError, match="expected SGI of 8 bits, got 16"):
            load_image(tmp_path / "a.sgi")


class TestProfiles:
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".avif"])
    def test_are_read(self, tmp_path: Path, suffix: str) -> None:
        if suffix not in PillowImage.registered_extensions():
            pytest.skip("this Pillow does not write it")
        path = tmp_path / f"a{suffix}"
        PillowImage.fromarray(RGB8).save(path, icc_profile=SRGB)
        assert load(path).icc_profile == SRGB
        PillowImage.fromarray(RGB8).save(path)
        assert load(path).icc_profile is None

    def test_is_read_from_jpeg2000(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jp2"
        PillowImage.fromarray(RGB8).save(path)
        data = path.read_bytes()
        start = data.index(b"colr") - 4
        old = struct.unpack(">I", data[start : start + 4])[0]
        box = struct.pack(">I", 11 + len(SRGB)) + b"colr\x02\0\0" + SRGB
        header = data.index(b"jp2h") - 4
        size = struct.unpack(">I", data[header : header + 4])[0] + len(box) - old
        new = data[:header] + struct.pack(">I", size) + data[header + 4 : start] + box + data[start + old :]
        path.write_bytes(new)
        image = load(path)
        check(image, RGB8, 255, 8)
        assert image.icc_profile == SRGB

    @pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
    @pytest.mark.parametrize("bits", [8, 16])
    def test_are_written(self, tmp_path: Path, suffix: str, bits: int) -> None:
        if suffix == ".jpg" and bits == 16:
            pytest.skip("JPEG has 8 bits")
        path = tmp_path / f"a{suffix}"
        for channels, profile in ((1, GREY_PROFILE), (3, SRGB)):
            for alpha in (None, torch.ones(HEIGHT, WIDTH)) if suffix != ".jpg" else (None,):
                image = torch.rand(1, channels, HEIGHT, WIDTH)
                save_image(path, image, bits=bits, alpha=alpha, icc_profile=profile)
                assert load(path).icc_profile == profile
                if suffix == ".png":
                    assert PillowImage.open(path).info["icc_profile"] == profile
                if suffix == ".tif":
                    with tifffile.TiffFile(path) as file:
                        assert bytes(file.pages[0].tags.valueof(34675)) == profile

    def test_that_do_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        PillowImage.fromarray(RGB8).save(path, icc_profile=b"no profile")
        assert load(path, "the ICC profile is left out: it is damaged").icc_profile is None
        PillowImage.fromarray(GREY8).save(path, icc_profile=SRGB)
        assert load(path, "left out: it is for RGB, the image is GRAY").icc_profile is None
        for profile, fault in (
            (b"none", "it is damaged"),
            (GREY_PROFILE, "it is for GRAY, the image is RGB"),
        ):
            with pytest.raises(InputError, match=f"icc_profile: expected .* but {fault}"):
                save_image(path, torch.rand(3, 16, 16), icc_profile=profile)


@pytest.mark.usefixtures("without_imagecodecs")
class TestWithoutImagecodecs:
    def test_what_needs_it_says_so_in_one_line(self, tmp_path: Path) -> None:
        data = {"a.jp2": io.BytesIO()}
        PillowImage.fromarray(GREY16).save(data["a.jp2"], "JPEG2000")
        (tmp_path / "a.jp2").write_bytes(data["a.jp2"].getvalue())
        with pytest.raises(
            InputError, match="JPEG 2000 of 16 bits needs the package imagecodecs: pip install"
        ):
            load_image(tmp_path / "a.jp2")

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("bits", [8, 16])
    def test_what_is_written_is_read(self, tmp_path: Path, suffix: str, bits: int) -> None:
        for channels in (1, 3):
            for alpha in (None, torch.rand(HEIGHT, WIDTH)):
                path = tmp_path / f"a{suffix}"
                image = torch.rand(1, channels, HEIGHT, WIDTH)
                save_image(path, image, bits=bits, alpha=alpha)
                found = load(path)
                assert (found.pixels - image).abs().max() < 0.5001 / (2**bits - 1)
                assert (found.alpha is None) == (alpha is None)
