"""Pictures of comparisons: what is drawn is what there is, whatever methods there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from oes_fast.comparison import plots
from oes_fast.comparison.cells import Cell
from oes_fast.io.image import save_image


def result(cell: Cell, level: float) -> dict:
    steps = [0, 10, 20, 30]
    found: dict = {"psnr": {"noisy": 20.0, "end": level}, "ssim": {"noisy": 0.4, "end": level / 40}}
    if cell.method in ("nlm", "tv", "bm3d"):
        return found
    found["curve"] = {"step": steps, "psnr": [8.0, level - 2, level + 1, level]}
    found["ssim_curve"] = [[step, 0.01 * step] for step in steps]
    if cell.density is not None:
        found["psnr"]["masked"] = 12.0
        found["layers"] = [
            {"name": "conv 1: 3x3, 4 > 8", "density": cell.density},
            {"name": "conv 2: 3x3, 8 > 8", "density": 0.0},
        ]
    return found


CELLS = [
    Cell("pepper", method, density, seed)
    for seed in (0, 1)
    for method, density in [("oes", 0.05), ("oes", 0.1), ("imp", 0.05), ("sgld", None), ("tv", None)]
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are drawn, in the place of files."""
    figures: list = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def results(cells: list[Cell]) -> dict:
    return {cell: result(cell, 26.0 + 2 * cell.seed) for cell in cells}


def test_curves_are_means_with_their_spread(drawn: list, tmp_path: Path) -> None:
    plots.psnr(tmp_path / "a.png", tmp_path, {}, results(CELLS))
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        "pepper, 5 % of the weights",
        "pepper, 10 % of the weights",
    ]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines) == ["noisy image", "oes", "imp", "sgld", "tv"]
    assert list(lines["oes"].get_xdata()) == [10, 20, 30]
    assert list(lines["oes"].get_ydata()) == [25.0, 28.0, 27.0]
    band = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData)
    assert (band.y0, band.y1) == pytest.approx((25 - 2**0.5, 28 + 2**0.5))
    assert set(lines["tv"].get_ydata()) == {27.0}
    assert [line.get_label() for line in figure.axes[1].get_lines()] == ["noisy image", "oes", "sgld", "tv"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["noisy image", "oes", "imp", "sgld", "tv"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom < 20 < 28 + 2**0.5 < top


def test_densities_of_layers(drawn: list, tmp_path: Path) -> None:
    plots.layer_densities(tmp_path / "a.png", tmp_path, {}, results(CELLS))
    (figure,) = drawn
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines) == ["imp", "oes", "all layers"]
    assert list(lines["oes"].get_xdata()) == pytest.approx([5.0, 0.0])
    assert figure.axes[0].get_yticklabels()[0].get_text() == "conv 1: 3x3, 4 > 8"


@pytest.mark.parametrize(
    "cells",
    [CELLS, [c for c in CELLS if c.method == "tv"], [c for c in CELLS if c.method == "sgld"], CELLS[:1]],
    ids=["all", "classical", "network", "one"],
)
@pytest.mark.parametrize("name", plots.PLOTS)
def test_every_picture_is_written(name: str, cells: list[Cell], tmp_path: Path) -> None:
    if name in plots.OF_MASKS and not any(cell.density for cell in cells):
        return
    (tmp_path / "cells").mkdir()
    for cell in cells:
        for ending in ("", "_masked"):
            save_image(tmp_path / "cells" / f"{cell.name}{ending}.png", torch.rand(1, 3, 20, 30))
    images = {"pepper": torch.rand(1, 3, 20, 30)}
    plots.PLOTS[name](tmp_path / "a.png", tmp_path, images, results(cells))
    with PillowImage.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 100
        assert max(picture.size) < 3000


def test_panels_hold_the_images_pixel_by_pixel(tmp_path: Path) -> None:
    first, second = (torch.randint(0, 256, (1, 3, 230, side)) / 255 for side in (240, 250))
    plots.panel_grid(tmp_path / "a.png", [[("first", first), ("second", second)], [("third", first)]])
    with PillowImage.open(tmp_path / "a.png") as image:
        picture = np.asarray(image.convert("RGB"))
    for panel, count in ((first, 2), (second, 1)):
        levels = (panel[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        corners = np.argwhere((picture == levels[0, 0]).all(-1))
        found = [
            (y, x)
            for y, x in corners
            if np.array_equal(picture[y : y + levels.shape[0], x : x + levels.shape[1]], levels)
        ]
        assert len(found) == count
