"""From the results of the cells to means and spreads over the seeds: for people, for programs, for tables."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oes_fast.comparison.cells import Cell, label
from oes_fast.io.files import atomic_write
from oes_fast.pipelines.progress import duration

ALL = "all images"
_POINTS = 100  # of a curve in the JSON
_FLAGS = {
    "collapsed": "the output of a cell is flat, its network collapsed",
    "diverged": "the loss of a cell left for good",
    "empty": "a layer of a cell has lost all its weights",
}


@dataclass(frozen=True)
class Figure:
    """Mean and spread of one number over cells.

    Attributes:
        mean: of those that are known; None where none is.
        spread: standard deviation (n - 1), None for fewer than two.
        count: cells that have it.
    """

    mean: float | None
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Figure:
        """Of numbers of which some may be None."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        spread = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known) if known else None, spread, len(known))


@dataclass(frozen=True)
class Row:
    """One method at one density on one image, or on all of them.

    Attributes:
        image: its label, or "all images": means over those of the images, spreads over the seeds' means.
        method: name.
        density: None where there is no mask.
        seeds: cells that the figures are of.
        noisy: PSNR of the noisy image in dB.
        masked: of the image of the weights that training starts from, under the mask.
        peak: highest PSNR of the output over the recorded steps.
        peak_step: where it is.
        end: of the last output, or of what a classical denoiser gives.
        average: of the running average of the outputs at the end; for sgld, of the posterior mean.
        ssim: of the last output.
        seconds: of mask and training.
        mask_seconds: of the mask alone.
        collapsed: cells whose output is flat; of all images, seeds with such a cell.
        diverged: cells whose loss left for good.
        empty: cells of which a layer has lost all its weights.
        curves: by "psnr" and "ssim": steps, mean and spread, thinned.
    """

    image: str
    method: str
    density: float | None
    seeds: int
    noisy: Figure
    masked: Figure
    peak: Figure
    peak_step: Figure
    end: Figure
    average: Figure
    ssim: Figure
    seconds: Figure
    mask_seconds: Figure
    collapsed: int
    diverged: int
    empty: int
    curves: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def rows(results: Mapping[Cell, Mapping[str, Any]]) -> list[Row]:
    """A row for every image, method and density; with several images, one for all of them as well."""
    found: dict[tuple[str, str, float | None], list[Cell]] = {}
    for cell in results:
        found.setdefault((cell.image, cell.method, cell.density), []).append(cell)
    images = list(dict.fromkeys(cell.image for cell in results))
    methods = list(dict.fromkeys((cell.method, cell.density) for cell in results))
    table = [
        _row(image, method, density, [results[cell] for cell in found[image, method, density]])
        for image in images
        for method, density in methods
        if (image, method, density) in found
    ]
    if len(images) > 1:
        for method, density in methods:
            by_seed: dict[int, list[Mapping[str, Any]]] = {}
            for cell, result in results.items():
                if (cell.method, cell.density) == (method, density):
                    by_seed.setdefault(cell.seed, []).append(result)
            whole = [_mean_result(group) for group in by_seed.values() if len(group) == len(images)]
            if whole:
                table.append(_row(ALL, method, density, whole))
    return table


def _row(image: str, method: str, density: float | None, results: Sequence[Mapping[str, Any]]) -> Row:
    def of(part: str, name: str) -> Figure:
        return Figure.of([result.get(part, {}).get(name) for result in results])

    return Row(
        image=image,
        method=method,
        density=density,
        seeds=len(results),
        noisy=of("psnr", "noisy"),
        masked=of("psnr", "masked"),
        peak=of("psnr", "peak"),
        peak_step=of("psnr", "peak_step"),
        end=of("psnr", "end"),
        average=of("psnr", "average"),
        ssim=of("ssim", "end"),
        seconds=of("seconds", "total"),
        mask_seconds=of("seconds", "mask"),
        collapsed=sum(int(result.get("collapsed", False)) for result in results),
        diverged=sum(int(result.get("diverged", False)) for result in results),
        empty=sum(bool(result.get("empty_layers")) for result in results),
        curves={} if image == ALL else {kind: thinned(curve(results, kind)) for kind in ("psnr", "ssim")},
    )


def _mean_result(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over images of what the rows are made of."""
    mean: dict[str, Any] = {}
    for part in ("psnr", "ssim", "seconds"):
        names = results[0].get(part, {}).keys()
        mean[part] = {n: Figure.of([r.get(part, {}).get(n) for r in results]).mean for n in names}
    for flag in ("collapsed", "diverged", "empty_layers"):
        mean[flag] = any(result.get(flag) for result in results)
    return mean


def curve(results: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[Any]]:
    """Mean and spread of the PSNR or SSIM of the outputs at every step that all of the cells have.

    Args:
        results: of the cells.
        kind: "psnr" or "ssim".
    """
    found: dict[int, list[float]] = {}
    for result in results:
        if kind == "psnr":
            columns = result.get("curve", {})
            pairs = zip(columns.get("step", ()), columns.get("psnr", ()), strict=True)
        else:
            pairs = iter(result.get("ssim_curve", ()))
        for step, value in pairs:
            if value is not None:
                found.setdefault(int(step), []).append(value)
    steps = sorted(step for step, values in found.items() if len(values) == len(results))
    figures = [Figure.of(found[step]) for step in steps]
    return {"step": steps, "mean": [f.mean for f in figures], "spread": [f.spread for f in figures]}


def thinned(columns: Mapping[str, list[Any]], points: int = _POINTS) -> dict[str, list[Any]]:
    """The curve at about so many steps, dense where training is young, its last step among them."""
    steps = columns["step"]
    if len(steps) <= points:
        return dict(columns)
    last = len(steps) - 1
    # Half of the points evenly over the steps, half over their logarithm.
    even = {round(i * last / (points // 2)) for i in range(points // 2 + 1)}
    young = {round(math.expm1(i * math.log1p(last) / (points // 2))) for i in range(points // 2 + 1)}
    places = sorted(even | young)
    return {name: [column[i] for i in places] for name, column in columns.items()}


def brief(cell: Cell, result: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's figures without curves and layers, for the JSON of the whole."""
    left_out = ("format", "state", "curve", "ssim_curve", "layers", "settings", "cell")
    return {
        "name": cell.name,
        **asdict(cell),
        **{name: value for name, value in result.items() if name not in left_out},
    }


COLUMNS = (
    "image", "method", "density", "seed", "noise_seed", "kept", "psnr_noisy", "psnr_masked", "psnr_peak",
    "peak_step", "psnr_end", "psnr_average", "psnr_peak_average", "ssim_noisy", "ssim_masked", "ssim_peak",
    "ssim_end", "ssim_average", "seconds_mask", "seconds_train", "seconds_total", "steps", "collapsed",
    "diverged", "backend", "threads",
)  # fmt: skip


def write_csv(path: str | os.PathLike[str], results: Mapping[Cell, Mapping[str, Any]]) -> None:
    """A line for every cell that is done, atomically; what is not known is empty.

    Raises:
        OutputError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell, result in results.items():
        flat = {f"{part}_{n}": v for part in ("psnr", "ssim", "seconds") for n, v in result[part].items()}
        flat |= {"peak_step": result["psnr"].get("peak_step"), "kept": result.get("mask", {}).get("kept")}
        flat |= {"noise_seed": result["settings"]["noise_seed"]} | asdict(cell)
        writer.writerow({name: flat.get(name, result.get(name)) for name in COLUMNS})
    data = text.getvalue().encode("utf-8")
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def table(rows: Sequence[Row]) -> str:
    """The rows as text, at most 80 columns wide."""
    lines: list[str] = []
    for image in dict.fromkeys(row.image for row in rows):
        own = [row for row in rows if row.image == image]
        if lines:
            lines.append("")
        noisy = own[0].noisy.mean
        lines.append(f"{image}: noisy image {'-' if noisy is None else f'{noisy:.2f}'} dB; PSNR in dB")
        lines.append(f"{'':<18}{'seeds':>5} {'peak':>11} {'end':>11} {'average':>11} {'SSIM':>6} {'time':>8}")
        for row in own:
            seconds = "-" if row.seconds.mean is None else duration(row.seconds.mean)
            similarity = "-" if row.ssim.mean is None else f"{row.ssim.mean:.3f}"
            figures = " ".join(f"{_decibels(f):>11}" for f in (row.peak, row.end, row.average))
            flags = "".join(name[0].upper() for name in _FLAGS if getattr(row, name))
            name = label(row.method, row.density)
            lines.append(f"{name:<18}{row.seeds:>5} {figures} {similarity:>6} {seconds:>8} {flags}".rstrip())
    lines += [
        f"{name[0].upper()}: {said}" for name, said in _FLAGS.items() if any(getattr(r, name) for r in rows)
    ]
    return "\n".join(lines)


def _decibels(figure: Figure) -> str:
    if figure.mean is None:
        return "-"
    return f"{figure.mean:.2f}" if figure.spread is None else f"{figure.mean:.2f}±{figure.spread:.2f}"
