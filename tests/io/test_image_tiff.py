"""Every kind of TIFF gives the samples that were put in it, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_samples import (
    ALPHA8,
    ALPHA16,
    ALPHA_NOTE,
    GREY8,
    GREY16,
    RGB8,
    RGB16,
    SRGB,
    check,
    load,
    png,
)
from PIL import Image as PillowImage

from oes_fast.errors import InputError
from oes_fast.io.image import load_image

BITS = GREY16 > 30000
PLANAR = {"photometric": "rgb", "planarconfig": "separate"}
GREY = {"photometric": "minisblack"}
GREY_ALPHA = {"photometric": "minisblack", "planarconfig": "contig"}


class TestTiff:
    @pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "lzma", "packbits"])
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    def test_compressions(self, tmp_path: Path, compression: str | None, byteorder: str) -> None:
        if compression:
            pytest.importorskip("imagecodecs")
        path = tmp_path / "a.tif"
        common = {"compression": compression, "byteorder": byteorder}
        for predictor in (False, True) if compression else (False,):
            for array in (GREY8, GREY16, RGB8, RGB16):
                kind = "rgb" if array.ndim == 3 else "minisblack"
                tifffile.imwrite(path, array, photometric=kind, predictor=predictor, **common)
                bits = 8 * array.itemsize
                check(load(path), array, 2**bits - 1, bits)
            if compression:
                floats = (RGB16 / 65535).astype(np.float32)
                more = {"predictor": 3 if predictor else 1, "photometric": "rgb"}
                tifffile.imwrite(path, floats, **more, **common)
                check(load(path, "float32 samples are taken as 0 to 1"), floats, 1, 16)

    @pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 3}, {"tile": (16, 16)}, {"bigtiff": True}])
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_layouts(self, tmp_path: Path, layout: dict[str, object], compression: str | None) -> None:
        path = tmp_path / "a.tif"
        alpha = {"extrasamples": ["unassalpha"], "compression": compression, **layout}
        with_alpha = np.dstack([RGB16, ALPHA16])
        tifffile.imwrite(path, RGB16, photometric="rgb", compression=compression, **layout)
        check(load(path), RGB16, 65535, 16)
        planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
        tifffile.imwrite(path, planes, compression=compression, **PLANAR, **layout)
        for _ in range(3):  # planes were read as what the memory held
            check(load(path), RGB16, 65535, 16)
        tifffile.imwrite(path, with_alpha, photometric="rgb", **alpha)
        check(load(path), RGB16, 65535, 16, ALPHA16)
        tifffile.imwrite(path, np.ascontiguousarray(with_alpha.transpose(2, 0, 1)), **PLANAR, **alpha)
        check(load(path), RGB16, 65535, 16, ALPHA16)
        tifffile.imwrite(path, np.dstack([GREY16, ALPHA16]), **GREY_ALPHA, **alpha)
        check(load(path), GREY16, 65535, 16, ALPHA16)

    def test_white_is_zero(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        white = {"photometric": "miniswhite"}
        tifffile.imwrite(path, GREY8, **white)
        check(load(path), 255 - GREY8, 255, 8)
        tifffile.imwrite(path, GREY16, byteorder=">", **white)
        check(load(path), 65535 - GREY16, 65535, 16)
        tifffile.imwrite(path, BITS, **white)
        check(load(path), ~BITS, 1, 8)
        tifffile.imwrite(path, BITS, **GREY)
        check(load(path), BITS, 1, 8)
        floats = (GREY16 / 65535).astype(np.float32)
        tifffile.imwrite(path, floats, **white)
        check(load(path, "float32"), 1 - floats, 1, 16)
        tifffile.imwrite(path, GREY8.astype(np.int16), **white)
        with pytest.raises(InputError, match="unsigned or float samples where white is zero, got int16"):
            load_image(path)

    @pytest.mark.parametrize("compression", ["raw", "group3", "group4", "tiff_ccitt", "packbits"])
    def test_fax(self, tmp_path: Path, compression: str) -> None:
        if not hasattr(pytest.importorskip("imagecodecs"), "ccittfax4_decode"):
            pytest.skip("this imagecodecs does not read it")
        PillowImage.fromarray(BITS).save(tmp_path / "a.tif", compression=compression)
        check(load(tmp_path / "a.tif"), BITS, 1, 8)

    @pytest.mark.parametrize("bits", [2, 4, 6, 10, 12, 14])
    def test_packed_samples(self, tmp_path: Path, bits: int) -> None:
        pytest.importorskip("imagecodecs")
        array = (GREY16 >> (16 - bits)).astype(np.uint16 if bits > 8 else np.uint8)
        try:
            tifffile.imwrite(tmp_path / "a.tif", array, bitspersample=bits, **GREY)
        except NotImplementedError:
            pytest.skip("this imagecodecs does not write it")
        check(load(tmp_path / "a.tif"), array, 2**bits - 1, 16 if bits > 8 else 8)

    def test_palette(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        for scale, wanted, top in ((257, RGB8, 255), (256, RGB8, 255), (1, RGB16, 65535)):
            table = wanted.reshape(-1, 3)[:256].T.astype(np.uint16) * scale
            tifffile.imwrite(path, GREY8, photometric="palette", colormap=table)
            check(load(path), wanted.reshape(-1, 3)[:256][GREY8], top, 8 if top == 255 else 16)
        source = PillowImage.fromarray(np.dstack([RGB8, GREY8])).convert("PA")
        source.save(path)
        check(
            load(path), np.asarray(source.convert("RGB")), 255, 8, np.asarray(source.convert("RGBA"))[..., 3]
        )

    def test_alpha_multiplied_into_the_colours_is_divided_out(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        alpha = ALPHA16.copy()
        alpha[0, 0] = 0
        opacity = alpha[..., None] / 65535
        for array, kind in ((RGB16, "rgb"), (GREY16[..., None], "minisblack")):
            multiplied = np.dstack([(array * opacity).round().astype(np.uint16), alpha])
            common = {"planarconfig": "contig", "extrasamples": ["assocalpha"]}
            tifffile.imwrite(path, multiplied, photometric=kind, **common)
            image = load(path, "multiplied by alpha, are divided by it")
            found = image.pixels[0].numpy().transpose(1, 2, 0)
            solid = alpha > 10000
            assert np.abs(found - array / 65535)[solid].max() < 1e-4
            assert (found[0, 0] == 0).all()
            assert np.abs(image.alpha[0, 0].numpy() - alpha / 65535).max() < 1e-7
            assert image.bits == 16
            assert 0 <= found.min() <= found.max() <= 1

    def test_extra_channels(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, np.dstack([RGB16, ALPHA16]), photometric="rgb", extrasamples=["unspecified"])
        check(load(path, ALPHA_NOTE), RGB16, 65535, 16, ALPHA16)
        tifffile.imwrite(path, np.dstack([RGB16, ALPHA16, GREY16]), photometric="rgb", planarconfig="contig")
        with pytest.raises(InputError, match=r"expected 3 channels and at most one of alpha .* got 5"):
            load_image(path)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_cmyk(self, tmp_path: Path, dtype: type) -> None:
        path, top = tmp_path / "a.tif", np.iinfo(dtype).max
        rgb, ink = (RGB8, ALPHA8) if dtype is np.uint8 else (RGB16, ALPHA16)
        tifffile.imwrite(path, np.dstack([top - rgb, 0 * ink]), photometric="separated", iccprofile=SRGB)
        image = load(path, "CMYK is converted to RGB", "profile is left out: it is for CMYK")
        check(image, rgb, top, 8 * np.dtype(dtype).itemsize)
        assert image.icc_profile is None
        tifffile.imwrite(path, np.dstack([top - rgb, ink]), photometric="separated")
        wanted = (rgb.astype(np.float64) * (top - ink[..., None].astype(np.float64)) / top).round()
        assert np.abs(load(path, "CMYK").pixels[0].numpy().transpose(1, 2, 0) * top - wanted).max() < 1.01

    def test_ycbcr(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        source = PillowImage.fromarray(RGB8).convert("YCbCr")
        source.save(path)
        check(load(path), np.asarray(source.convert("RGB")), 255, 8)
        ramp = np.broadcast_to(np.arange(0, 256, 4, np.uint8)[:, None], (64, 64, 3)).copy()
        ramp[..., 1] = 255 - ramp[..., 1]
        pytest.importorskip("imagecodecs")
        PillowImage.fromarray(ramp).save(path, compression="jpeg", quality=95)
        found = load(path).pixels[0].numpy().transpose(1, 2, 0)
        assert np.abs(found - ramp / 255).max() < 0.03

    @pytest.mark.parametrize("compression", ["webp", "jpeg2000", "jpegxl", "png", "lerc", "jpegxr"])
    def test_images_within(self, tmp_path: Path, compression: str) -> None:
        pytest.importorskip("imagecodecs")
        tifffile.imwrite(tmp_path / "a.tif", RGB8, photometric="rgb", compression=compression)
        check(load(tmp_path / "a.tif"), RGB8, 255, 8)

    def test_ranges_are_said(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        for dtype, array, top in (
            (np.int16, GREY16 >> 1, 32767),
            (np.int32, GREY16, 65535),
            (np.uint32, GREY16, 65535),
            (np.uint32, GREY16.astype(np.uint32) * 65537, 2**32 - 1),
            (np.float16, (GREY16 / 65535).astype(np.float16), 1),
            (np.float64, GREY16 / 65535, 1),
        ):
            tifffile.imwrite(path, array.astype(dtype), **GREY)
            check(load(path, f"{np.dtype(dtype)} samples are taken as 0 to {top}"), array, top, 16)
        tifffile.imwrite(path, GREY16 >> 4, **GREY)
        said = "the brightest sample is 4095 of 65535: 16 bits that hold 12 are taken as 0 to 65535"
        check(load(path, said), GREY16 >> 4, 65535, 16)
        png(tmp_path / "a.png", 2, 16, RGB16 >> 6)
        check(load(tmp_path / "a.png", "is 1023 of 65535: 16 bits that hold 10"), RGB16 >> 6, 65535, 16)

    def test_ranges_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        for array, message in (
            (GREY16.astype(np.int16), "int16 pixels from 0 to 32767, got -"),
            (GREY8.astype(np.int8), "8 or 16 bits or float, got int8"),
            (GREY8.astype(np.uint64), "8 or 16 bits or float, got uint64"),
            (GREY8.astype(np.complex64), "8 or 16 bits or float, got complex64"),
            (GREY8.astype(np.float32), "float32 pixels from 0 to 1, got 0 to 255"),
            (GREY8.astype(np.float16), "float16 pixels from 0 to 1, got 0 to 255"),
        ):
            tifffile.imwrite(path, array, **GREY)
            with pytest.raises(InputError, match=message) as error:
                load_image(path)
            assert "\n" not in str(error.value)

    def test_pages(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        note = "of several pages the first is read"
        tifffile.imwrite(path, np.stack([GREY16, GREY16[::-1], GREY16]), **GREY)
        check(load(path, note), GREY16, 65535, 16)
        tifffile.imwrite(path, np.stack([GREY16, GREY16[::-1]]), imagej=True)
        check(load(path, note), GREY16, 65535, 16)
        with tifffile.TiffWriter(path) as file:  # a thumbnail before the image is none of them
            file.write(RGB16[::2, ::2], photometric="rgb", subfiletype=1)
            file.write(RGB16, photometric="rgb")
        check(load(path), RGB16, 65535, 16)
        tifffile.imwrite(path, np.stack([GREY16] * 16), volumetric=True, tile=(16, 16, 16))
        with pytest.raises(InputError, match="expected an image, got a volume of 16 planes"):
            load_image(path)

    def test_other_colours_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        for kind in ("cielab", "icclab", "logluv", "linear_raw"):
            tifffile.imwrite(path, RGB8, photometric=kind)
            with pytest.raises(InputError, match=f"grey, RGB, palette, CMYK or YCbCr, got {kind.upper()}"):
                load_image(path)
