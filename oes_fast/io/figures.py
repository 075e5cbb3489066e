"""What every picture is drawn with: colours, figures without a window, files written whole.

Matplotlib is imported where the first figure is made: it takes half a second, and few commands draw.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast.errors import InputError
from oes_fast.io.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg", ".jpg")
DPI = 100
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by everyone
GREY = "#666666"


def rgb_levels(title: str, image: Tensor) -> np.ndarray:
    """An image as uint8 [H, W, 3].

    Args:
        title: what a message calls it.
        image: float clipped to [0, 1], shape [C, H, W] or [1, C, H, W] with C = 1 (grey) or 3 (RGB).

    Raises:
        InputError: it is none.
    """
    check_tensor(title, image, dtypes=(torch.float16, torch.bfloat16, torch.float32, torch.float64))
    planes = image.detach()[0] if image.ndim == 4 and image.shape[0] == 1 else image.detach()
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or planes.numel() == 0:
        raise InputError(f"{title}: expected shape (1, 1, H, W) or (1, 3, H, W), got {tuple(image.shape)}")
    # Whole levels in three channels are drawn as they are; a grey colour map would shift some by one.
    levels = (planes.to("cpu", torch.float64).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """A white figure of so many inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes) -> None:
    """A light grid behind the data, and no frame at the top and right."""
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure, atomically.

    Raises:
        InputError: an unknown suffix.
        OutputError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {suffix or 'none'}")
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=DPI, format=suffix[1:]))
