"""The pictures of a run are written, legible and hold what they say."""

from __future__ import annotations

import math
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from oes_fast.errors import InputError, OutputError
from oes_fast.io import plots
from oes_fast.io.figures import FORMATS
from oes_fast.io.plots import (
    MIN_PANEL,
    layer_densities,
    layer_density,
    probability_histogram,
    psnr_curve,
    side_by_side,
    spectra,
    spread_picture,
)


def read(path) -> np.ndarray:
    with PillowImage.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(picture: np.ndarray, panel: np.ndarray) -> list[tuple[int, int]]:
    """Where ``panel`` stands in ``picture``, pixel by pixel."""
    height, width = panel.shape[:2]
    corners = np.argwhere((picture == panel[0, 0]).all(-1))
    return [
        (int(y), int(x)) for y, x in corners if np.array_equal(picture[y : y + height, x : x + width], panel)
    ]


@pytest.mark.parametrize("size", [(330, 320), (512, 512), (401, 333), (257, 799)])
def test_images_are_shown_pixel_by_pixel(tmp_path, size):
    path = tmp_path / "a.png"
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (1, 3, *size), generator=generator)
    grey = torch.randint(0, 256, (1, *size), generator=generator)
    side_by_side(path, [("noisy 20.31 dB", levels / 255), ("restored 28.86 dB", grey / 255)])
    picture = read(path)
    first = find(picture, levels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    second = find(picture, grey.expand(3, -1, -1).permute(1, 2, 0).numpy().astype(np.uint8))
    assert len(first) == len(second) == 1
    assert first[0][0] == second[0][0]
    assert first[0][1] + size[1] <= second[0][1]
    title = picture[: first[0][0]]
    assert (title < 100).any()
    assert (picture[0] == 255).all()


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path):
    path = tmp_path / "a.png"
    levels = torch.randint(0, 256, (3, 64, 50), generator=torch.Generator().manual_seed(0))
    side_by_side(path, [("a", levels / 255)])
    factor = math.ceil(MIN_PANEL / 50)
    large = levels.permute(1, 2, 0).numpy().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    assert len(find(read(path), large)) == 1


def test_titles_of_any_length_and_content_fit(tmp_path):
    path = tmp_path / "a.png"
    image = torch.full((1, 1, 64, 64), 0.5)
    side_by_side(path, [("one", image)])
    short = read(path).shape
    side_by_side(path, [("many words " * 12 + "$_x^2$", image), ("", image), ("x" * 300, image)])
    long = read(path)
    assert long.shape[0] > short[0]
    assert (long[:, :2] == 255).all()
    assert (long[:, -2:] == 255).all()


def test_panoramas_are_thinned_to_what_can_be_drawn(tmp_path):
    path = tmp_path / "a.png"
    side_by_side(path, [("a", torch.zeros(1, 20, 20_000)), ("b", torch.zeros(1, 20, 20_000))])
    assert read(path).shape[1] < 30_000


def test_out_of_range_pixels_are_clipped(tmp_path):
    path = tmp_path / "a.png"
    image = torch.full((1, 320, 320), 0.5)
    image[0, :, :160], image[0, :160, 160:] = -2, 3
    image[0, 0, 0] = math.nan
    side_by_side(path, [("a", image)])
    wanted = (image.nan_to_num(0).clamp(0, 1) * 255 + 0.5).to(torch.uint8).expand(3, -1, -1)
    assert len(find(read(path)[40:], wanted[:, 100:].permute(1, 2, 0).numpy())) >= 1


def test_wrong_panels_are_refused(tmp_path):
    path = tmp_path / "a.png"
    image = torch.zeros(3, 20, 20)
    for panels, message in (
        ([], "at least one"),
        ([("a", image), ("b", image[:, 1:])], "one size, got 20 x 20, 20 x 19"),
        ([("a", image[:2])], "a: expected shape"),
        ([("a", image.long())], "dtype"),
    ):
        with pytest.raises(InputError, match=message):
            side_by_side(path, panels)
    assert not path.exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_plot_is_written_in_every_format(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    names = [f"1.7.1.7.1.{i}.weight" for i in range(86)]
    path = tmp_path / f"a{suffix}"
    curve = ([0, 10, 20], [12.0, 28.0, 27.0])
    draws = (
        lambda: psnr_curve(path, {"output": curve, "average $_x$": curve}, 20.31),
        lambda: side_by_side(path, [("a", torch.zeros(3, 20, 20))]),
        lambda: probability_histogram(path, torch.randn(1000, generator=generator)),
        lambda: layer_density(path, names, torch.rand(86, generator=generator).tolist(), 0.05),
        lambda: layer_densities(path, names, {"a": torch.rand(86, generator=generator).tolist()}),
        lambda: spectra(path, {"a": ([0.0, 1.0], [1.0, 0.5])}),
        lambda: spread_picture(path, torch.rand(1, 3, 20, 20, generator=generator)),
    )
    for draw in draws if suffix == ".png" else draws[:2]:  # one function writes them all
        draw()
        assert path.stat().st_size > 1000
        path.unlink()
    for draw in (
        lambda: psnr_curve(tmp_path / "a.xyz", {"output": curve}, None),
        lambda: probability_histogram(tmp_path / "a", torch.zeros(3)),
    ):
        with pytest.raises(InputError, match=r"expected a name that ends in \.png"):
            draw()
    with pytest.raises(OutputError, match="does not exist"):
        psnr_curve(tmp_path / "none" / f"a{suffix}", {"output": curve}, None)
    assert os.listdir(tmp_path) == []


def test_curves_that_are_empty_short_or_not_finite(tmp_path):
    path = tmp_path / "a.png"
    for curves, noisy in (
        ({}, None),
        ({"output": ([], [])}, 20.0),
        ({"output": ([5], [20.0])}, None),
        ({"output": ([0, 1, 2], [math.nan, math.inf, 20.0])}, math.inf),
    ):
        psnr_curve(path, curves, noisy)
        assert path.stat().st_size > 1000
    with pytest.raises(InputError, match="as many steps as values, got 2 and 1"):
        psnr_curve(path, {"output": ([1, 2], [3.0])}, None)


def test_the_mean_image_has_a_line_of_its_own(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    for mean in (29.89, None):
        psnr_curve(tmp_path / "a.png", {"output": ([0, 1], [12.0, 28.0])}, 20.31, mean)
    with_mean, without = ([t.get_text() for t in f.axes[0].get_legend().get_texts()] for f in figures)
    assert with_mean[1:] == ["noisy image: 20.31 dB", "mean image: 29.89 dB"]
    assert without == with_mean[:2]


def test_spreads_are_drawn_in_their_units(tmp_path, monkeypatch):
    figures = []
    spread = torch.linspace(0, 0.2, 1000).reshape(1, 1, 20, 50).repeat(1, 3, 1, 1)
    spread[:, :, 0, 0] = 9.0  # one pixel does not darken the others
    spread[:, 0], spread[:, 2] = 0, math.sqrt(2) * spread[:, 1]  # the mean of the squares is that of one
    spread_picture(tmp_path / "a.png", spread)
    assert read(tmp_path / "a.png").shape[1] > MIN_PANEL
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    for image in (spread, torch.zeros(1, 1, 20, 50), torch.rand(1, 1, 2, 40_000)):
        spread_picture(tmp_path / "b.png", image)
    drawn = [figure.axes[0].images[0] for figure in figures]
    np.testing.assert_allclose(drawn[0].get_array().data, spread[0, 1].numpy(), rtol=1e-5)
    assert 0.19 < drawn[0].get_clim()[1] < 0.21
    assert drawn[1].get_clim() == (0.0, 1.0)
    assert figures[2].get_size_inches()[0] * plots.DPI < 2**15
    assert "in pixel values" in figures[0].axes[1].get_ylabel()
    for image, says in (
        (spread[0], r"spread: expected shape \(1, any, any, any\)"),
        (spread * math.nan, "spread: expected finite values"),
    ):
        with pytest.raises(InputError, match=says):
            spread_picture(tmp_path / "c.png", image)


def test_histograms_of_extreme_logits(tmp_path):
    path = tmp_path / "a.png"
    for logits in (
        torch.zeros(0),
        torch.zeros(1),
        torch.full((10, 10), 300.0),
        torch.tensor([-900.0, 900.0]),
    ):
        probability_histogram(path, logits)
    with pytest.raises(InputError, match="logits: expected finite"):
        probability_histogram(path, torch.tensor([math.nan]))


def test_bars_are_the_counts_and_the_shares(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    logits = 3 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    probability_histogram(tmp_path / "a.png", logits)
    layer_density(tmp_path / "a.png", ["a", "b", "c"], [0.5, 0.0, 0.25], 0.3)
    histogram, shares = (figure.axes[0].patches for figure in figures)
    wanted, _ = np.histogram(torch.sigmoid(logits.double()).numpy(), bins=np.linspace(0, 1, 101))
    assert [bar.get_height() for bar in histogram] == wanted.tolist()
    assert [bar.get_width() for bar in shares] == [50, 0, 25]
    assert [text.get_text() for text in figures[1].axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_densities_need_a_name_each(tmp_path):
    layer_density(tmp_path / "a.png", [], [], 0.0)
    layer_density(tmp_path / "a.png", ["a"], [0.0], 0.0)
    tall = read(tmp_path / "a.png").shape[0]
    layer_density(tmp_path / "a.png", ["a"] * 100, [0.5] * 100, 0.5)
    # At least 16 pixels for every name, or they run into each other.
    assert read(tmp_path / "a.png").shape[0] - tall >= 99 * 16
    with pytest.raises(InputError, match="expected 2, one for each name, got 1"):
        layer_density(tmp_path / "a.png", ["a", "b"], [0.5], 0.5)


def test_nothing_global_is_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # what makes an import fail
    psnr_curve(tmp_path / "a.png", {"output": ([0, 10], [12.0, 28.0])}, 20.31)
    side_by_side(tmp_path / "b.png", [("a", torch.zeros(3, 20, 20))])


def test_layers_of_several_masks_have_a_mark_each(tmp_path):
    names = [f"conv {i}: $3_3$" for i in range(4)]
    layer_densities(tmp_path / "one.png", names, {"_a$_": [0.1, 0.2, 0.3, math.nan]})
    many = {f"mask {i}": [0.05 * i, 0.5, 0.0, 1.0] for i in range(9)}
    layer_densities(tmp_path / "many.png", names, many)
    one, nine = read(tmp_path / "one.png"), read(tmp_path / "many.png")
    assert nine.shape[0] > one.shape[0]
    assert len(colours_of(nine)) > len(colours_of(one))
    with pytest.raises(InputError, match="densities: expected 4, one for each name, got 3"):
        layer_densities(tmp_path / "bad.png", names, {"a": [0.1, 0.2, 0.3]})
    with pytest.raises(InputError, match="densities: expected those of one mask at least"):
        layer_densities(tmp_path / "bad.png", names, {})
    assert not (tmp_path / "bad.png").exists()


def test_spectra_are_drawn_on_a_logarithmic_axis(tmp_path):
    values = [float(x) for x in range(-20, 80)]
    bumps = [math.exp(-((x / 5) ** 2)) + 1e-4 * math.exp(-(((x - 60) / 5) ** 2)) for x in values]
    spectra(tmp_path / "a.png", {"a_$": (values, bumps), "zero": (values, [0.0] * 100)})
    picture = read(tmp_path / "a.png")
    blue = (picture == (0, 0x72, 0xB2)).all(-1)
    right = blue[: picture.shape[0], picture.shape[1] // 2 :]
    assert right.sum() > 20, "the small bump shows"
    with pytest.raises(InputError, match="as many values as densities, got 2 and 1"):
        spectra(tmp_path / "bad.png", {"a": ([0.0, 1.0], [1.0])})
    with pytest.raises(InputError, match="curves: expected one at least"):
        spectra(tmp_path / "bad.png", {})


def colours_of(picture: np.ndarray) -> set[tuple[int, ...]]:
    """Saturated colours of a picture."""
    strong = picture[(picture.max(-1).astype(int) - picture.min(-1)) > 60]
    return {tuple(pixel) for pixel in strong // 32}
