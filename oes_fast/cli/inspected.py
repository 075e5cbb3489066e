"""What there is to say of masks, as tables and for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from oes_fast.analysis import Layer, LiveChannels, Overlap, dead_channels, layer_densities, overlap
from oes_fast.cli.console import warn
from oes_fast.cli.display import lost_output
from oes_fast.cli.figures import Figures
from oes_fast.cli.masks import FoundMask
from oes_fast.cli.model import DEFAULT
from oes_fast.cli.report import describe_mask, plain
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout
from oes_fast.mask import Mask
from oes_fast.mask_notes import seed_of
from oes_fast.models.base import ImageGenerator
from oes_fast.recipe import Recipe

DENSE = "dense"


@dataclass
class Inspected:
    """A mask, or the network without one, and what was found out about it.

    Attributes:
        label: that names it.
        path: of its file, None for the network without a mask.
        mask: what is kept, None for everything.
        net: the network on the device "meta", None where it is not known.
        layers: kept of each, none where the network is not known.
        channels: alive in each convolution.
        figures: of an image, where they were asked for.
    """

    label: str
    path: Path | None
    mask: Mask | None
    net: ImageGenerator | None
    layers: list[Layer]
    channels: list[LiveChannels]
    figures: Figures | None = None

    @classmethod
    def of(cls, found: FoundMask, label: str) -> Inspected:
        """What the mask alone tells."""
        return cls._of(label, found.path, found.mask, found.net)

    @classmethod
    def dense(cls, masks: Sequence[Inspected]) -> Inspected:
        """The network of the first mask whose network is known.

        Raises:
            InputError: there is none.
        """
        net = next((each.net for each in masks if each.net is not None), None)
        if net is None:
            raise InputError("--dense: expected a mask whose network is known, got none; see --channels")
        return cls._of(DENSE, None, None, net)

    @classmethod
    def _of(cls, label: str, path: Path | None, mask: Mask | None, net: ImageGenerator | None) -> Inspected:
        layers = [] if net is None else layer_densities(net, mask)
        channels = [] if net is None or net.dims != 2 else dead_channels(net, mask)
        return cls(label, path, mask, net, layers, channels)

    @property
    def kept(self) -> int:
        """Weights kept."""
        return self.count if self.mask is None else self.mask.kept

    @property
    def count(self) -> int:
        """Weights there are."""
        if self.mask is not None:
            return self.mask.flat.numel()
        assert self.net is not None
        return FlatLayout.of(self.net).numel

    @property
    def recipe(self) -> Recipe:
        """Of its network, the default where that is not known."""
        made = None if self.net is None else self.net.recipe
        return made or Recipe(DEFAULT)

    @property
    def seed(self) -> int | None:
        """Of the weights that the mask was found on, None if that is unknown."""
        return None if self.mask is None else seed_of(self.mask)

    def describe(self) -> dict[str, Any]:
        """For the JSON result."""
        return {
            "label": self.label,
            "file": self.path,
            "mask": None if self.mask is None else describe_mask(self.mask),
            "network_known": self.net is not None,
            "layers": [plain(layer) for layer in self.layers],
            "channels": [{**asdict(each), "dead": each.dead} for each in self.channels],
            "figures": None if self.figures is None else self.figures.describe(),
        }


@dataclass(frozen=True)
class Pair:
    """Two masks of one network.

    Attributes:
        labels: of both.
        overlap: what they have in common.
    """

    labels: tuple[str, str]
    overlap: Overlap

    def describe(self) -> dict[str, Any]:
        """For the JSON result."""
        found = self.overlap
        return {
            "masks": self.labels,
            **asdict(found),
            "share": found.share,
            "expected_by_layer": found.expected_by_layer,
        }


def labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each file: its stem, or its path where two have the same."""
    stems = [path.stem for path in paths]
    named = [stem if stems.count(stem) == 1 else os.fspath(p) for stem, p in zip(stems, paths, strict=True)]
    return [f"{name} ({i + 1})" if named.count(name) > 1 else name for i, name in enumerate(named)]


def find_pairs(masks: Sequence[Inspected]) -> list[Pair]:
    """Every two masks that belong to one network."""
    pairs = []
    for i, first in enumerate(masks):
        for second in masks[i + 1 :]:
            a, b = first.mask, second.mask
            if a is not None and b is not None and a.fingerprint == b.fingerprint:
                pairs.append(Pair((first.label, second.label), overlap(a, b, first.net)))
    return pairs


def print_masks(masks: Sequence[Inspected], pairs: Sequence[Pair]) -> None:
    """Print settings, layers, channels and overlaps on stdout."""
    for each in masks:
        if each.mask is not None:
            known = "" if each.net is not None else ", which is not known: no layers are shown"
            print(f"{each.label}: {each.path}")
            print(f"  network {each.mask.fingerprint}{known}")
            for name, value in each.mask.settings.items():
                print(f"  {name} {value if isinstance(value, str) else json.dumps(value)}")
    print()
    header = ["", *(each.label for each in masks)]
    rows = _by_name(masks, lambda each: [(layer.name, _density(layer)) for layer in each.layers])
    _print_columns(
        [
            ["Kept, %", *header[1:]],
            *rows,
            ["all", *(f"{100 * each.kept / each.count:.2f}" for each in masks)],
            ["weights", *(f"{each.kept:,}" for each in masks)],
        ]
    )
    rows = _by_name(masks, lambda each: [(c.name, _channels(c)) for c in each.channels])
    if rows:
        print()
        _print_columns([["Channels alive", *header[1:]], *rows])
        if any(channel.constant for each in masks for channel in each.channels):
            print("alive + constant / all: a constant channel is one number over the whole image")
    if pairs:
        print()
        _print_columns(
            [
                ["Overlap", "shared", "of the one", "of the other", "Jaccard", "by chance", "by layer"],
                *map(_pair, pairs),
            ]
        )
        print("by chance: shared by random masks as dense as these; by layer: as dense in every layer")
    _check_output()


def print_figures(masks: Sequence[Inspected]) -> None:
    """Print the figures of an image on stdout."""
    shown = [(each.label, each.figures) for each in masks if each.figures is not None]
    rows: list[list[str]] = [["At the initial weights", *(label for label, _ in shown)]]

    def row(name: str, text: Callable[[Figures], str]) -> None:
        rows.append([name, *(text(figures) for _, figures in shown)])

    first = shown[0][1]
    ball = f"{'|e/w|' if first.sharpness.adaptive else '|e|'} <= {first.sharpness.rho:g}"
    row("seed", lambda f: str(f.seed))
    row("loss", lambda f: f"{f.sharpness.loss:.4g}")
    row("Jacobian, Frobenius", lambda f: _within(f"{f.jacobian.frobenius:.4g}", f.jacobian.frobenius_error))
    row("Jacobian, spectral", lambda f: f"{f.jacobian.spectral:.4g}" if f.jacobian.iterations else "-")
    row(f"sharpness, {ball}", lambda f: f"{f.sharpness.largest:.4g}")
    row("  along the gradient", lambda f: f"{f.sharpness.first_order:.4g}")
    row("  mean, on the edge", lambda f: _within(f"{f.sharpness.average:.2g}", f.sharpness.average_error))
    count = 0 if first.eigenvalues is None else len(first.eigenvalues.values)
    for i in range(count):
        row(f"Hessian, eigenvalue {i + 1}", partial(_eigenvalue, i))
    if first.spectrum is not None:
        row("Hessian, trace", _trace)
        row("  smallest point", lambda f: "-" if f.spectrum is None else f"{f.spectrum.smallest:.4g}")
    row("seconds", lambda f: f"{f.seconds:.0f}")
    print()
    _print_columns(rows)
    _check_output()


def _by_name(
    masks: Sequence[Inspected], cells: Callable[[Inspected], list[tuple[str, str]]]
) -> list[list[str]]:
    """Rows of name and one cell a mask; a dash where a mask has no such row."""
    columns = [dict(cells(each)) for each in masks]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "-") for column in columns)] for name in names]


def _eigenvalue(i: int, figures: Figures) -> str:
    return "-" if figures.eigenvalues is None else f"{float(figures.eigenvalues.values[i]):.4g}"


def _trace(figures: Figures) -> str:
    spectrum = figures.spectrum
    return "-" if spectrum is None else _within(f"{spectrum.trace:.4g}", spectrum.trace_error)


def _within(value: str, error: float) -> str:
    """A figure and its standard error, which one random vector does not have."""
    return value if math.isnan(error) else f"{value} +- {error:.2g}"


def _density(layer: Layer) -> str:
    return f"{100 * layer.density:.2f}"


def _channels(each: LiveChannels) -> str:
    constant = f" + {each.constant}" if each.constant else ""
    return f"{each.alive}{constant} / {each.channels}"


def _pair(pair: Pair) -> list[str]:
    found = pair.overlap
    by_layer = found.expected_by_layer
    return [
        " and ".join(pair.labels),
        f"{found.shared:,}",
        *(f"{100 * share:.1f} %" for share in found.share),
        f"{found.jaccard:.3f}",
        f"{found.expected:,.0f} +- {found.deviation:,.0f}",
        "-" if by_layer is None else f"{by_layer:,.0f}",
    ]


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def _check_output() -> None:
    if (reason := lost_output()) is not None:
        warn(f"standard output: cannot write: {reason}")
