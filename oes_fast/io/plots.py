"""Pictures of a run. Drawn with matplotlib's figure objects alone: no window, no global state."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast.errors import InputError
from oes_fast.io.figures import COLORS, DPI, GREY, new_figure, rgb_levels, save_figure, tidy, whole_ticks

MIN_PANEL = 320  # pixels a panel is wide at least, so that its title is legible
MAX_WIDTH = 30_000  # pixels that a picture may have in a row; Agg refuses twice as many
MARKERS = ("o", "s", "^", "D")
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # keeps lines out of the numbers


def side_by_side(path: str | os.PathLike[str], panels: list[tuple[str, Tensor]]) -> None:
    """Images beside each other under their titles, every image pixel one pixel of the picture.

    Small images are enlarged by a whole factor; a row beyond 30,000 pixels is thinned to fit.

    Args:
        path: picture to write.
        panels: (title such as "noisy 20.31 dB", float image clipped to [0, 1]), images of one height and
            width and shape [C, H, W] or [1, C, H, W] with C = 1 (grey) or 3 (RGB).

    Raises:
        InputError: no panels, images of several sizes, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    if not panels:
        raise InputError("panels: expected at least one image, got none")
    arrays = [rgb_levels(title, image) for title, image in panels]
    if len({array.shape[:2] for array in arrays}) > 1:
        sizes = ", ".join(f"{array.shape[1]} x {array.shape[0]}" for array in arrays)
        raise InputError(f"panels: expected images of one size, got {sizes}")
    height, width = arrays[0].shape[:2]
    enlarge = max(1, math.ceil(MIN_PANEL / width))
    thin = max(1, math.ceil(width * len(arrays) / MAX_WIDTH))
    arrays = [array[::thin, ::thin] for array in arrays]
    height, width = arrays[0].shape[0] * enlarge, arrays[0].shape[1] * enlarge

    font = max(15, min(28, width // 24))  # pixels
    # 0.6 of the font's size is a generous width for the average letter.
    titles = [textwrap.wrap(title, max(8, int(width / (0.6 * font)))) or [""] for title, _ in panels]
    gap = max(8, width // 64)
    head = int(1.35 * font * max(map(len, titles))) + gap
    total_width = len(arrays) * (width + gap) + gap
    total_height = head + height + gap
    figure = new_figure(total_width / DPI, total_height / DPI)
    for i, (array, title) in enumerate(zip(arrays, titles, strict=True)):
        left = gap + i * (width + gap)
        box = (left / total_width, gap / total_height, width / total_width, height / total_height)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        axes.imshow(array, interpolation="nearest", aspect="auto")
        figure.text(
            (left + width / 2) / total_width,
            (gap + height + gap / 2) / total_height,
            "\n".join(title),
            ha="center",
            va="bottom",
            fontsize=font * 72 / DPI,
            parse_math=False,
        )
    save_figure(figure, path)


def spread_picture(path: str | os.PathLike[str], spread: Tensor) -> None:
    """How far several images lie apart at each pixel, in colours beside a bar that says what they mean.

    Args:
        path: picture to write.
        spread: standard deviations in units of pixel values, float >= 0, shape [1, C, H, W] with C = 1 or 3;
            of colours the root of the mean square is drawn. The few highest, a pixel in 500, share a colour.

    Raises:
        InputError: another shape or dtype, what is not finite, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    check_tensor("spread", spread, shape=(1, None, None, None), finite=True)
    values = spread.detach()[0].to("cpu", torch.float64).square().mean(0).sqrt().numpy()
    top = float(np.quantile(values, 0.998)) or float(values.max()) or 1.0
    thin = max(1, math.ceil(max(values.shape) / MAX_WIDTH))
    values = values[::thin, ::thin]
    height, width = values.shape
    enlarge = max(1, math.ceil(MIN_PANEL / width))
    picture = width * enlarge / DPI, height * enlarge / DPI  # inches
    figure = new_figure(picture[0] + 1.8, picture[1] + 0.4)
    box = figure.get_size_inches()
    axes = figure.add_axes((0.2 / box[0], 0.2 / box[1], picture[0] / box[0], picture[1] / box[1]))
    axes.set_axis_off()
    drawn = axes.imshow(values, cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest", aspect="auto")
    bar = figure.add_axes(((picture[0] + 0.4) / box[0], 0.2 / box[1], 0.2 / box[0], picture[1] / box[1]))
    figure.colorbar(
        drawn,
        cax=bar,
        extend="max" if values.max() > top else "neither",
        label="standard deviation over the runs,\nin pixel values (white is 1)",
    )
    save_figure(figure, path)


def psnr_curve(
    path: str | os.PathLike[str],
    curves: dict[str, tuple[list[int], list[float]]],
    noisy: float | None = None,
    mean: float | None = None,
) -> None:
    """PSNR against steps, each curve with its peak and its end in the legend.

    Args:
        path: picture to write.
        curves: (steps, PSNR in dB) by name; what is not finite is left out.
        noisy: PSNR of the noisy image in dB, drawn as a horizontal line.
        mean: the same of the mean image of several runs.

    Raises:
        InputError: steps and values of different number, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    figure = new_figure(8, 4.8, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        if len(steps) != len(values):
            raise InputError(f"curves: expected as many steps as values, got {len(steps)} and {len(values)}")
        points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
        if not points:
            continue
        color = COLORS[i % len(COLORS)]
        peak_step, peak = max(points, key=lambda point: point[1])
        # A dollar sign would start a formula.
        label = name.replace("$", r"\$")
        label += f": peak {peak:.2f} dB at {peak_step:,}, end {points[-1][1]:.2f} dB"
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.5, marker=marker, label=label)
        axes.plot([peak_step], [peak], "o", color=color, markersize=5)
    for name, value, style in (("noisy image", noisy, "--"), ("mean image", mean, ":")):
        if value is not None and math.isfinite(value):
            axes.axhline(value, color=GREY, linestyle=style, linewidth=1, label=f"{name}: {value:.2f} dB")
    axes.set_xlabel("step")
    axes.set_ylabel("PSNR (dB)")
    whole_ticks(axes.xaxis)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", framealpha=0.9)
    tidy(axes)
    save_figure(figure, path)


def probability_histogram(path: str | os.PathLike[str], logits: Tensor) -> None:
    """How many weights have which probability sigmoid(s) of being kept; counts on a logarithmic axis.

    Args:
        path: picture to write.
        logits: s, float of any shape.

    Raises:
        InputError: ``logits`` is no float tensor or not finite, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    check_tensor("logits", logits, finite=True)
    probabilities = torch.sigmoid(logits.detach().flatten().to("cpu", torch.float64)).numpy()
    figure = new_figure(8, 4.8, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability of being kept, sigmoid(s)")
    axes.set_ylabel("number of weights")
    if probabilities.size:
        axes.hist(probabilities, bins=np.linspace(0, 1, 101).tolist(), color=COLORS[0], log=True)
        axes.set_ylim(bottom=0.7)  # a bin with a single weight shows
        above = int((probabilities > 0.5).sum())
        axes.set_title(
            f"{probabilities.size:,} weights, mean {probabilities.mean():.4f}, "
            f"{above:,} ({above / probabilities.size:.2%}) above 1/2",
            fontsize=11,
        )
    tidy(axes)
    save_figure(figure, path)


def layer_density(
    path: str | os.PathLike[str], names: Sequence[str], densities: Sequence[float], overall: float
) -> None:
    """Share of the weights kept in each parameter tensor, in network order, beside the overall share.

    Args:
        path: picture to write.
        names: of the parameter tensors.
        densities: of each, in [0, 1].
        overall: of all together, in [0, 1].

    Raises:
        InputError: names and densities of different number, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    if len(names) != len(densities):
        raise InputError(f"densities: expected {len(names)}, one for each name, got {len(densities)}")
    shares = [100 * d for d in densities]
    figure = new_figure(9, 1.6 + 0.19 * max(1, len(names)), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(names))
    axes.barh(rows, shares, color=COLORS[0], height=0.72)
    axes.axvline(100 * overall, color=GREY, linestyle="--", linewidth=1, label=f"all: {overall:.2%}")
    top = max([*shares, 100 * overall, 1e-9])
    for row, share in zip(rows, shares, strict=True):
        axes.text(share + 0.006 * top, row, f"{share:.3g}", va="center", fontsize=7.5, bbox=LABEL_BOX)
    axes.set_yticks(rows, names, fontsize=8, family="monospace", parse_math=False)
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.06 * top)
    axes.set_xlabel("kept (% of the tensor)")
    axes.legend(loc="lower right", framealpha=0.9)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    save_figure(figure, path)


def layer_densities(
    path: str | os.PathLike[str], names: Sequence[str], densities: Mapping[str, Sequence[float]]
) -> None:
    """Share of the weights kept in each layer under several masks, in network order: a mark for each mask.

    Args:
        path: picture to write.
        names: of the layers.
        densities: of each layer, in [0, 1], by the mask's name; NaN for a layer that the mask does not have.

    Raises:
        InputError: no masks, names and densities of different number, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    if not densities:
        raise InputError("densities: expected those of one mask at least, got none")
    figure = new_figure(9, 1.6 + 0.19 * max(1, len(names)) + 0.2 * len(densities), layout="constrained")
    axes = figure.add_subplot()
    top = 1e-9
    for i, (label, shares) in enumerate(densities.items()):
        if len(names) != len(shares):
            raise InputError(f"densities: expected {len(names)}, one for each name, got {len(shares)}")
        percent = [100 * share for share in shares]
        top = max([top, *(p for p in percent if math.isfinite(p))])
        beside = 0.3 * (i / max(1, len(densities) - 1) - 0.5) if len(densities) > 1 else 0.0
        axes.plot(
            percent,
            [row + beside for row in range(len(names))],  # marks of equal shares do not hide each other
            MARKERS[i // len(COLORS) % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            markersize=6,
            alpha=0.8,
            label=_text(label),
        )
    axes.set_yticks(range(len(names)), names, fontsize=8, family="monospace", parse_math=False)
    axes.tick_params(axis="x", top=True, labeltop=True)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.02 * top, 1.06 * top)
    axes.set_xlabel("kept (% of the layer)")
    figure.legend(loc="outside lower center", ncols=1, framealpha=0.9)
    tidy(axes)
    save_figure(figure, path)


def spectra(
    path: str | os.PathLike[str], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Densities of eigenvalues, on a logarithmic axis: most of them are next to zero.

    Args:
        path: picture to write.
        curves: (eigenvalues, density at each) by name, both float, as many of one as of the other.

    Raises:
        InputError: no curves, or a curve whose values do not fit each other, or an unknown suffix.
        OutputError: the file cannot be written.
    """
    if not curves:
        raise InputError("curves: expected one at least, got none")
    figure = new_figure(8, 4.8, layout="constrained")
    axes = figure.add_subplot()
    highest = 0.0
    for i, (label, (values, density)) in enumerate(curves.items()):
        if len(values) != len(density):
            raise InputError(
                f"curves: expected as many values as densities, got {len(values)} and {len(density)}"
            )
        highest = max([highest, *density])
        axes.plot(values, density, color=COLORS[i % len(COLORS)], linewidth=1.5, label=_text(label))
    axes.set_yscale("log")
    if highest > 0:
        axes.set_ylim(highest * 1e-7, highest * 3)
    axes.set_xlabel("eigenvalue of the Hessian")
    axes.set_ylabel("density")
    axes.legend(loc="upper right", framealpha=0.9)
    tidy(axes)
    save_figure(figure, path)


def _text(label: str) -> str:
    """A label as it is: a dollar sign would start a formula, an underscore at its head hide it."""
    return f" {label}".replace("$", r"\$") if label.startswith("_") else label.replace("$", r"\$")
