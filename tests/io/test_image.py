"""Images of every kind come in as float planes, go out rounded, and bad ones are refused in one line."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage
from PIL import ImageOps
from skimage.metrics import peak_signal_noise_ratio

from oes_fast.errors import ImageWarning, InputError, OutputError
from oes_fast.io.image import load_image, psnr, save_image, skimage_names
from oes_fast.noise import add_noise

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
GREY16 = RGB16[..., 0].copy()
ORIENTATION = 0x0112


def planes(array: np.ndarray, top: int) -> torch.Tensor:
    """What load_image should make of ``array`` [H, W] or [H, W, C]."""
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy((array / top).astype(np.float32).transpose(2, 0, 1))[None]


def agree(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".ppm", ".gif"])
def test_rgb_and_grey_of_8_bits(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    palette = PillowImage.fromarray(RGB8).quantize(200)
    for array in (RGB8, GREY8):
        source = palette if suffix == ".gif" else PillowImage.fromarray(array)
        source.save(path, lossless=True)
        image = load_image(path)
        wanted = np.asarray(source.convert("RGB")) if suffix == ".gif" else array
        if suffix == ".webp" and array.ndim == 2:
            wanted = np.dstack([array] * 3)  # WebP has no grey
        assert agree(image.pixels, planes(wanted, 255))
        assert image.pixels.dtype == torch.float32
        assert image.pixels.is_contiguous()
        assert (image.alpha, image.bits, image.name) == (None, 8, "a")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_of_pillow(tmp_path, mode):
    source = PillowImage.fromarray(GREY16) if mode == "I;16" else PillowImage.fromarray(RGB8).convert(mode)
    if mode in ("LA", "RGBA"):
        source.putalpha(PillowImage.fromarray(GREY8))
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    source.save(path)
    with pytest.warns(ImageWarning) if mode == "CMYK" else nullcontext():
        image = load_image(path)
    colour = "L" if mode in ("1", "L", "LA") else "RGB"
    wanted = planes(GREY16, 65535) if mode == "I;16" else planes(np.asarray(source.convert(colour)), 255)
    assert agree(image.pixels, wanted)
    assert image.bits == (16 if mode == "I;16" else 8)
    if mode in ("LA", "RGBA"):
        assert agree(image.alpha, planes(GREY8, 255))
    else:
        assert image.alpha is None


def test_palettes_and_colour_keys_with_transparency(tmp_path):
    path = tmp_path / "a.png"
    source = PillowImage.fromarray(RGB8).quantize(16)
    source.info["transparency"] = 3
    source.save(path)
    image = load_image(path)
    assert image.pixels.shape == (1, 3, 20, 30)
    assert torch.equal(image.alpha[0, 0] == 0, torch.from_numpy(np.asarray(source) == 3))
    PillowImage.fromarray(GREY8).save(path, transparency=int(GREY8[0, 0]))
    image = load_image(path)
    assert image.pixels.shape == (1, 1, 20, 30)
    assert torch.equal(image.alpha[0, 0] == 0, torch.from_numpy(GREY8[0, 0] == GREY8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    for name, array, top in (("a.png", RGB8, 255), ("b.png", GREY16, 65535), ("c.tif", RGB8, 255)):
        path = tmp_path / name
        PillowImage.fromarray(array).save(path, exif=exif)
        with PillowImage.open(path) as source:
            wanted = planes(np.asarray(ImageOps.exif_transpose(source)), top)
        assert agree(load_image(path).pixels, wanted)
        assert torch.equal(load_image(path).pixels, planes(array, top)) == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_as_8_bit_tiff_is(tmp_path, orientation):
    found = []
    for array in (RGB16, (RGB16 >> 8).astype(np.uint8), GREY16):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, array, extratags=[(ORIENTATION, 3, 1, orientation, True)])
        found.append(load_image(path))
    assert [image.bits for image in found] == [16, 8, 16]
    assert agree(found[0].pixels, found[1].pixels, 1 / 255)
    assert agree(found[0].pixels[:, :1], found[2].pixels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_float_tiff(tmp_path, dtype, shape):
    path = tmp_path / "a.tif"
    array = RNG.random(shape).astype(dtype)
    kind = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(path, array, photometric=kind)
    with pytest.warns(ImageWarning, match="float.. samples are taken as 0 to 1"):
        image = load_image(path)
    assert agree(image.pixels, planes(array, 1))
    assert image.bits == 16
    for value, message in (
        (np.nan, "1 NaN or infinite"),
        (np.inf, "1 NaN or infinite"),
        (2.5, r"from 0 to 1, got .* to 2\.5"),
    ):
        broken = array.copy()
        broken.flat[7] = value
        tifffile.imwrite(path, broken, photometric=kind)
        with pytest.raises(InputError, match=message):
            load_image(path)
    tifffile.imwrite(path, (GREY16.astype(np.int32) - 5000))
    with pytest.raises(InputError, match="pixels from 0 to 65535"):
        load_image(path)


def test_of_several_frames_the_first_is_read(tmp_path):
    path = tmp_path / "a.tif"
    frames = [PillowImage.fromarray(array) for array in (GREY8, 255 - GREY8)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.warns(ImageWarning, match="of several pages the first is read"):
        assert agree(load_image(path).pixels, planes(GREY8, 255))


def test_the_suffix_does_not_matter(tmp_path):
    PillowImage.fromarray(GREY8).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.weird")
    assert load_image(str(tmp_path / "a.weird")).pixels.shape == (1, 1, 20, 30)


def test_pictures_of_scikit_image():
    names = skimage_names()
    assert {"astronaut", "camera", "coffee", "chelsea", "cat"} <= set(names)
    image = load_image("skimage:astronaut")
    assert agree(image.pixels, planes(skimage.data.astronaut(), 255))
    assert (image.bits, image.name) == (8, "astronaut")
    assert load_image("skimage:camera").pixels.shape == (1, 1, 512, 512)
    assert torch.equal(load_image("skimage:cat").pixels, load_image("skimage:chelsea").pixels)
    for name in names:
        pixels = load_image(f"skimage:{name}").pixels
        assert 0 <= pixels.min() < pixels.max() <= 1
    for name in ("cells3d", "", "../__init__", "nothing"):
        with pytest.raises(InputError, match=r"expected skimage: and one of astronaut, .*; got '"):
            load_image(f"skimage:{name}")


def test_size_crops_the_middle_and_resamples(tmp_path):
    path = tmp_path / "a.png"
    PillowImage.fromarray(RGB8).save(path)
    assert agree(load_image(path, size=20).pixels, planes(RGB8[:, 5:25], 255))
    assert load_image(path, size=16).pixels.shape == (1, 3, 16, 16)
    assert load_image(path, size=64).pixels.shape == (1, 3, 64, 64)
    tifffile.imwrite(path, np.dstack([RGB16, GREY16]), photometric="rgb", extrasamples=["unassalpha"])
    image = load_image(path, size=16)
    assert image.alpha.shape == (1, 1, 16, 16)
    assert image.bits == 16
    # Antialiased: a fine checkerboard becomes even grey.
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    PillowImage.fromarray(board).save(path)
    assert load_image(path, size=32).pixels.std() < 0.02
    for wrong in (15, 0, -3):
        with pytest.raises(InputError, match="size: expected an integer >= 16"):
            load_image(path, size=wrong)


def test_bad_files_are_refused_in_one_line(tmp_path):
    PillowImage.fromarray(RGB8).save(tmp_path / "whole.png")
    PillowImage.fromarray(np.tile(RGB8, (9, 9, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "text.png").write_text("not an image\n" * 50)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    (tmp_path / "head.png").write_bytes((tmp_path / "whole.png").read_bytes()[:20])
    for name, size in (("one", (1, 1)), ("flat", (300, 15))):
        PillowImage.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "folder.png").mkdir()
    expected = {
        "none.png": "does not exist",
        "folder.png": "got a folder",
        "text.png": "expected an image",
        "empty.png": "expected an image",
        "half.png": "expected a complete image",
        "half.jpg": "expected a complete image",
        "head.png": "expected a",
        "one.png": "expected at least 16 x 16 pixels, got 1 x 1",
        "flat.png": "expected at least 16 x 16 pixels, got 300 x 15",
    }
    for name, message in expected.items():
        with pytest.raises(InputError, match=message) as error:
            load_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)


@settings(max_examples=80, deadline=None)
@given(
    suffix=st.sampled_from([".png", ".tif", ".jpg"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5),
    keep=st.floats(0.1, 1),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, suffix, changes, keep):
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    PillowImage.fromarray(RGB8).save(path)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data[: max(1, int(keep * len(data)))])
    try:
        pixels = load_image(path).pixels
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 (a file that is read is right too)
    else:
        assert 0 <= pixels.min() <= pixels.max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_what_is_saved_comes_back(tmp_path, suffix, bits, channels, with_alpha):
    path = tmp_path / f"a{suffix}"
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, 20, 30, generator=generator, dtype=torch.float64)
    alpha = torch.rand(1, 1, 20, 30, generator=generator) if with_alpha else None
    save_image(path, image, bits=bits, alpha=alpha)
    found = load_image(path)
    assert found.bits == bits
    half_a_level = 0.5001 / (2**bits - 1)
    assert agree(found.pixels, image.float(), half_a_level)
    if with_alpha:
        assert agree(found.alpha, alpha, half_a_level)
    else:
        assert found.alpha is None
    # What has the levels of the file is stored exactly, to the bit.
    save_image(path, found.pixels, bits=bits, alpha=found.alpha)
    again = load_image(path)
    assert torch.equal(again.pixels, found.pixels)
    assert again.alpha is None if found.alpha is None else torch.equal(again.alpha, found.alpha)


def test_values_are_clipped_and_rounded(tmp_path):
    path = tmp_path / "a.png"
    image = torch.full((1, 16, 16), 0.5)
    image[0, 0, :6] = torch.tensor([-3.0, 7.0, 127.6 / 255, 127.4 / 255, math.inf, -math.inf])
    for dtype in (torch.float32, torch.float64):
        save_image(path, image.to(dtype))
        row = np.asarray(PillowImage.open(path))[0]
        assert row[:6].tolist() == [0, 255, 128, 127, 255, 0]
    save_image(path, torch.full((3, 16, 16), 0.25, dtype=torch.bfloat16).requires_grad_())
    image[0, 3, 3] = math.nan
    with pytest.raises(InputError, match="image: expected numbers, got 1 NaN of 256"):
        save_image(path, image)


def test_jpeg_falls_back_to_8_bits_without_alpha(tmp_path):
    path = tmp_path / "a.jpg"
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    with pytest.warns(ImageWarning, match="JPEG leaves out 8 of the 16 bits and alpha"):
        save_image(path, ramp, bits=16, alpha=torch.ones(64, 64))
    found = load_image(path)
    assert (found.bits, found.alpha) == (8, None)
    assert agree(found.pixels, ramp, 0.02)
    with pytest.warns(ImageWarning, match="JPEG leaves out alpha"):
        save_image(path, ramp[:, :1], alpha=torch.ones(1, 64, 64))
    assert load_image(path).pixels.shape == (1, 1, 64, 64)


def test_what_cannot_be_saved_is_refused(tmp_path):
    image = torch.rand(3, 16, 16)
    for name in ("a.xyz", "a", "a.gif"):
        with pytest.raises(InputError, match=r"expected a name that ends in \.png"):
            save_image(tmp_path / name, image)
    path = tmp_path / "a.png"
    for wrong in (
        torch.rand(2, 16, 16),
        torch.rand(2, 3, 16, 16),
        torch.rand(16, 16),
        torch.rand(1, 3, 0, 4),
    ):
        with pytest.raises(InputError, match="image: expected shape"):
            save_image(path, wrong)
    with pytest.raises(InputError, match="dtype"):
        save_image(path, torch.zeros(3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="alpha: expected"):
        save_image(path, image, alpha=torch.ones(8, 8))
    with pytest.raises(InputError, match=r"alpha: expected a torch\.Tensor, got str"):
        save_image(path, image, alpha="half")
    for bits in (12, "8", None, torch.zeros(0)):
        with pytest.raises(InputError, match="bits: expected 8 or 16, got"):
            save_image(path, image, bits=bits)
    with pytest.raises(InputError, match="image: expected a dense tensor, got one of layout"):
        save_image(path, image.to_sparse())
    with pytest.raises(InputError, match="image: expected a tensor with values, got one on the meta device"):
        save_image(path, image.to("meta"))
    with pytest.raises(OutputError, match="does not exist"):
        save_image(tmp_path / "none" / "a.png", image)
    assert os.listdir(tmp_path) == []


def test_noise_is_seeded_and_leaves_the_global_state():
    clean = torch.full((1, 3, 64, 64), 0.5)
    before = torch.get_rng_state()
    first, again, other = add_noise(clean, 0.1, 0), add_noise(clean, 0.1, 0), add_noise(clean, 0.1, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float((first - clean).std()) - 0.1) < 0.003
    assert torch.equal(add_noise(clean, 0, 0), clean)
    strong = add_noise(clean, 1, 0)
    assert strong.min() == 0
    assert strong.max() == 1
    assert (clean == 0.5).all()
    assert add_noise(clean.double(), 0.1, 0).dtype == torch.float64


def test_noise_refuses_wrong_levels_and_pixels():
    clean = torch.full((1, 1, 16, 16), 0.5)
    with pytest.raises(InputError, match=r"sigma: .*units of the \[0, 1\] range, got 25 .*25/255 = 0.098"):
        add_noise(clean, 25, 0)
    for sigma in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma: expected a finite number >= 0"):
            add_noise(clean, sigma, 0)
    with pytest.raises(InputError, match="seed"):
        add_noise(clean, 0.1, -1)
    with pytest.raises(InputError, match="pixels: expected a tensor with values, got one on the meta device"):
        add_noise(clean.to("meta"), 0.1, 0)
    with pytest.raises(InputError, match="pixels: expected finite values, got 256 NaN"):
        add_noise(clean * math.nan, 0.1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_psnr_is_that_of_scikit_image(dtype):
    clean = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    noisy = add_noise(clean, 0.1, 0)
    wanted = peak_signal_noise_ratio(clean.double().numpy(), noisy.double().numpy(), data_range=1)
    assert psnr(noisy, clean) == pytest.approx(wanted, rel=1e-12)
    assert psnr(clean, clean) == math.inf
    assert psnr(clean * 0, clean * 0 + 0.1) == pytest.approx(20, abs=1e-5)
    with pytest.raises(InputError, match=r"output: expected shape \(1, 3, 32, 32\), got \(3, 32, 32\)"):
        psnr(noisy[0], clean)


def test_psnr_of_what_is_infinite_or_nowhere():
    clean = torch.rand(1, 1, 4, 4)
    assert psnr(clean / 0, clean) == -math.inf
    assert math.isnan(psnr(clean * math.nan, clean))
    with pytest.raises(InputError, match="output: expected a tensor with values"):
        psnr(clean.to("meta"), clean)
