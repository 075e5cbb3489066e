"""Pictures of a comparison: curves, images beside each other, densities of layers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from oes_fast.comparison.cells import Cell, label
from oes_fast.comparison.classical import CLASSICAL
from oes_fast.comparison.settings import BASELINES
from oes_fast.comparison.summary import curve
from oes_fast.io.figures import COLORS, DPI, GREY, new_figure, rgb_levels, save_figure, tidy, whole_ticks
from oes_fast.io.image import load_image
from oes_fast.pruning import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[Cell, Mapping[str, Any]]
Plot = Callable[[Path, Path, Mapping[str, Tensor], Results], None]  # file, folder, images, results

_DRAWN = 400  # points of a curve
_COLUMNS = 6  # images in a row
_MIN_PANEL = 220  # pixels an image is wide at least, so that its title is legible
_MAX_SIDE = 30_000  # pixels of a picture; Agg refuses twice as many
_TEXT = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
_MARGIN = {"psnr": 1.5, "ssim": 0.05}  # shown below the noisy image: curves begin far lower

_ORDER = ("oes", "imp", "random", "magnitude", "snip", "grasp", "synflow", *BASELINES)
_PALETTE = (*COLORS, "#882255", "#000000", "#44aa99", "#999933")
_COLOR = dict(zip(_ORDER, _PALETTE, strict=True))
_DASHES = {"nlm": (0, (4, 2)), "tv": (0, (1, 1)), "bm3d": (0, (6, 2, 1, 2))}


def psnr(path: Path, root: Path, images: Mapping[str, Tensor], results: Results) -> None:
    """PSNR of the outputs over the steps: mean over the seeds, and one standard deviation to both sides."""
    _curves(path, results, "psnr")


def ssim(path: Path, root: Path, images: Mapping[str, Tensor], results: Results) -> None:
    """SSIM of the outputs over the steps, drawn likewise."""
    _curves(path, results, "ssim")


def final_images(path: Path, root: Path, images: Mapping[str, Tensor], results: Results) -> None:
    """Clean and noisy image and the last output of every method, of the first seed that is done."""
    rows = []
    for image, cells in _by_image(results).items():
        noisy = results[cells[0]]["psnr"]["noisy"]
        panels = [(f"{image}, clean (noisy: {noisy:.2f} dB)", images[image])]
        panels += [(_title(cell, results[cell], "end"), _load(root, cell, "")) for cell in cells]
        rows += _wrapped(panels)
    panel_grid(path, rows)


def masked_images(path: Path, root: Path, images: Mapping[str, Tensor], results: Results) -> None:
    """What the weights that training starts from give under each mask, of the first seed that is done."""
    rows = []
    for cells in _by_image(results).values():
        panels = [
            (_title(cell, results[cell], "masked"), _load(root, cell, "_masked"))
            for cell in cells
            if cell.method in METHODS
        ]
        rows += _wrapped(panels)
    panel_grid(path, rows)


def layer_densities(path: Path, root: Path, images: Mapping[str, Tensor], results: Results) -> None:
    """Share of every layer that the masks keep: means over images and seeds, a panel for each density."""
    densities = _densities(results) or [None]
    names = next((_names(result) for result in results.values() if "layers" in result), [])
    figure = new_figure(4.2 * len(densities) + 2.2, 2.2 + 0.2 * max(len(names), 4), layout="constrained")
    for column, density in enumerate(densities):
        axes = figure.add_subplot(1, len(densities), column + 1)
        for method in _methods(results, METHODS):
            kept = [
                [layer["density"] for layer in result["layers"]]
                for cell, result in results.items()
                if (cell.method, cell.density) == (method, density) and _names(result) == names
            ]
            if kept:
                shares = 100 * np.mean(kept, axis=0)
                axes.plot(
                    shares, range(len(names)), "o-", color=_COLOR[method], label=method,
                    linewidth=1, markersize=4,
                )  # fmt: skip
        if density is not None:
            axes.axvline(100 * density, color=GREY, linestyle="--", linewidth=1, label="all layers")
            axes.set_title(f"{100 * density:g} % kept", fontsize=11)
        axes.set_yticks(
            range(len(names)), names if column == 0 else [""] * len(names), fontsize=8, family="monospace"
        )
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xscale("symlog", linthresh=1.0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("kept (% of the layer)")
        tidy(axes)
    _legend(figure)
    save_figure(figure, path)


OF_MASKS = ("densities", "masked")  # what there is nothing to draw in without a mask
PLOTS: dict[str, Plot] = {
    "psnr": psnr,
    "ssim": ssim,
    "images": final_images,
    "densities": layer_densities,
    "masked": masked_images,
}


def _curves(path: Path, results: Results, kind: str) -> None:
    images = list(dict.fromkeys(cell.image for cell in results))
    densities = _densities(results) or [None]
    figure = new_figure(5.2 * len(densities) + 0.4, 3.6 * len(images) + 1.0, layout="constrained")
    for row, image in enumerate(images):
        for column, density in enumerate(densities):
            axes = figure.add_subplot(len(images), len(densities), row * len(densities) + column + 1)
            _panel(axes, {c: r for c, r in results.items() if c.image == image}, density, kind)
            title = image if density is None else f"{image}, {100 * density:g} % of the weights"
            axes.set_title(title.replace("$", r"\$"), fontsize=11)
            axes.set_ylabel(_TEXT[kind])
            axes.set_xlabel("step")
    _legend(figure)
    save_figure(figure, path)


def _panel(axes: Axes, results: Results, density: float | None, kind: str) -> None:
    noisy = [result[kind]["noisy"] for result in results.values()]
    low = float(np.mean(noisy))
    axes.axhline(low, color=GREY, linestyle="-", linewidth=1, label="noisy image")
    top, best = low, -math.inf
    for method in _methods(results, _ORDER):
        own = [r for c, r in results.items() if c.method == method and c.density in (density, None)]
        columns = curve(own, kind)
        places = _spaced(columns["step"])
        if not places:
            continue
        steps = [columns["step"][i] for i in places]
        mean = np.array([columns["mean"][i] for i in places])
        spread = np.array([columns["spread"][i] or 0.0 for i in places])
        style = "--" if method in BASELINES else "-"
        marker = "o" if len(steps) == 1 else None
        axes.plot(
            steps, mean, style, color=_COLOR[method], linewidth=1.4, label=method, marker=marker, markersize=4
        )
        axes.fill_between(steps, mean - spread, mean + spread, color=_COLOR[method], alpha=0.2, linewidth=0)
        top, best = max(top, float((mean + spread).max())), max(best, float(mean.max()))
    for method in _methods(results, CLASSICAL):
        level = float(np.mean([r[kind]["end"] for c, r in results.items() if c.method == method]))
        axes.axhline(level, color="#333333", linestyle=_DASHES[method], linewidth=1.2, label=method)
        top = max(top, level)
    drawn = math.isfinite(best)
    axes.set_ylim((min(low, best) if drawn else low) - _MARGIN[kind], top + 0.3 * _MARGIN[kind])
    if drawn:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
    else:
        whole_ticks(axes.xaxis)
    tidy(axes)


def _spaced(steps: Sequence[int]) -> list[int]:
    """Places of the steps to draw on a logarithmic axis: without step 0, not closer than can be seen."""
    places: list[int] = []
    after = 0.0
    for place, step in enumerate(steps):
        if step > 0 and (step >= after or place == len(steps) - 1):
            places.append(place)
            after = step * max(1.0, steps[-1] / 100) ** (1 / _DRAWN)
    return places


def _legend(figure: Any) -> None:
    """One for all panels, below them; every name once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if found:
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", frameon=False,
            ncols=max(3, int(figure.get_figwidth() / 1.5)),
        )  # fmt: skip


def panel_grid(path: Path, rows: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
    """Rows of images under their titles; small ones are enlarged, a picture too large is thinned.

    Args:
        path: picture to write.
        rows: of (title, float image in 0..1, shape [1, C, H, W]), one at least; images may differ in size.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays = [[(title, rgb_levels(title, image)) for title, image in row] for row in rows if row]
    height = max(array.shape[0] for row in arrays for _, array in row)
    width = max(array.shape[1] for row in arrays for _, array in row)
    columns = max(len(row) for row in arrays)
    enlarge = max(1, math.ceil(_MIN_PANEL / width))
    thin = max(1, math.ceil(max(width * columns, (height + 60) * len(arrays)) / _MAX_SIDE))
    height, width = (-(-side // thin) * enlarge for side in (height, width))
    font = max(11, min(20, width // 24))  # pixels
    # 0.6 of the font's size is a generous width for the average letter.
    fits = max(8, int(width / (0.6 * font)))
    lines = max(len(textwrap.wrap(title, fits)) for row in arrays for title, _ in row)
    head, gap = int(1.35 * font * lines) + 6, 8
    total = columns * (width + gap) + gap, len(arrays) * (head + height + gap) + gap
    figure = new_figure(total[0] / DPI, total[1] / DPI)
    for i, row in enumerate(arrays):
        for j, (title, array) in enumerate(row):
            shown = array[::thin, ::thin]
            left = gap + j * (width + gap)
            top = gap + i * (head + height + gap) + head
            size = shown.shape[1] * enlarge, shown.shape[0] * enlarge
            box = (left / total[0], 1 - (top + size[1]) / total[1], size[0] / total[0], size[1] / total[1])
            axes = figure.add_axes(box)
            axes.set_axis_off()
            axes.imshow(shown, interpolation="nearest", aspect="auto")
            figure.text(
                (left + size[0] / 2) / total[0],
                1 - (top - 4) / total[1],
                "\n".join(textwrap.wrap(title, fits)),
                ha="center",
                va="bottom",
                fontsize=font * 72 / DPI,
                parse_math=False,
            )
    save_figure(figure, path)


def _wrapped(panels: Sequence[tuple[str, Tensor]]) -> list[Sequence[tuple[str, Tensor]]]:
    return [panels[i : i + _COLUMNS] for i in range(0, len(panels), _COLUMNS)]


def _by_image(results: Results) -> dict[str, list[Cell]]:
    """The cells of the first seed of every method and density, by image."""
    first: dict[tuple[str, str, float | None], Cell] = {}
    for cell in results:
        first.setdefault((cell.image, cell.method, cell.density), cell)
    found: dict[str, list[Cell]] = {}
    for cell in first.values():
        found.setdefault(cell.image, []).append(cell)
    return found


def _title(cell: Cell, result: Mapping[str, Any], figure: str) -> str:
    value = result["psnr"].get(figure)
    return label(cell.method, cell.density) + ("" if value is None else f": {value:.2f} dB")


def _load(root: Path, cell: Cell, ending: str) -> Tensor:
    return load_image(root / "cells" / f"{cell.name}{ending}.png").pixels


def _densities(results: Results) -> list[float | None]:
    return list(dict.fromkeys(cell.density for cell in results if cell.density is not None))


def _methods(results: Results, order: Sequence[str] | Mapping[str, Any]) -> list[str]:
    there = {cell.method for cell in results}
    return [method for method in order if method in there]


def _names(result: Mapping[str, Any]) -> list[str]:
    return [layer["name"] for layer in result.get("layers", ())]
