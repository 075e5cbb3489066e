"""Inverse problems with OES masks, random masks and the dense network, for docs/inverse-problems.md.

    OMP_NUM_THREADS=1 python -m benchmarks.inverse_problems --work inverse   # goes on where it was stopped
    python -m benchmarks.inverse_problems --work inverse --pictures          # the page's pictures

A seed is that of what the operator draws, of the noise, the weights, the input, the search and the random
masks. The search has the settings of the preset ``fast``. Every cell that is done is written at once; the
same command does what is missing.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skimage.data
import torch
from PIL import Image
from skimage.transform import resize
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.comparison import decibels, rounded
from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, ROOT, Result, caption, load, table
from oes_fast.bench.environment import environment
from oes_fast.comparison.measures import ssim
from oes_fast.io.plots import side_by_side
from oes_fast.pipelines.clean import clean_pixels
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.train import TrainResult

NAME = "inverse-problems"
SEARCH = PRESETS["fast"]
PICTURE_WIDTH = 960
FIGURES = ("psnr of measured", "peak", "peak step", "end", "average", "ssim of average")


def photograph(size: int) -> Tensor:
    """The astronaut, RGB."""
    return oes.load_image("skimage:astronaut", size=size).pixels


def phantom(size: int) -> Tensor:
    """Shepp and Logan's phantom of a head, [1, 1, size, size]."""
    plane = resize(skimage.data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    return torch.from_numpy(plane.astype(np.float32))[None, None].clamp(0, 1)


# Heading, what was measured, and the task of a size and a seed.
TASKS: dict[str, tuple[str, str, Callable[[int, int], oes.tasks.Task]]] = {
    "inpainting": (
        "Inpainting",
        "Half of the pixels are missing, the others have noise of 0.1",
        lambda size, seed: oes.tasks.inpainting(photograph(size), missing=0.5, sigma=0.1, seed=seed),
    ),
    "superresolution": (
        "Super-resolution",
        "The image has a quarter of the rows and of the columns, and noise of 0.02",
        lambda size, seed: oes.tasks.superresolution(photograph(size), 4, sigma=0.02, seed=seed),
    ),
    "deblurring": (
        "Deblurring",
        "The image is blurred by a Gaussian of 1.5 pixels, and has noise of 0.05",
        lambda size, seed: oes.tasks.deblurring(photograph(size), gaussian=1.5, sigma=0.05, seed=seed),
    ),
    "mri": (
        "Magnetic resonance",
        "A quarter of the columns of k-space was measured, with noise of 0.05, of Shepp and Logan's phantom",
        lambda size, seed: oes.tasks.mri(phantom(size), acceleration=4, sigma=0.05, seed=seed),
    ),
}


class Cell(NamedTuple):
    """What is run once.

    Attributes:
        task: its name.
        method: "oes", "random" or "dense".
        density: share of the weights kept, None for "dense".
        seed: of everything.
        search_steps: of "oes", None for the others.
    """

    task: str
    method: str
    density: float | None
    seed: int
    search_steps: int | None = None

    @property
    def label(self) -> str:
        """Of its files."""
        return "-".join(str(part) for part in self if part is not None)


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """The most telling ones first."""
    for seed in options.seeds:
        for task in options.tasks:
            for density in options.densities:
                yield Cell(task, "oes", density, seed, options.search_steps)
                yield Cell(task, "random", density, seed)
        for task in options.tasks:
            yield Cell(task, "dense", None, seed)


def run_cell(options: argparse.Namespace, cell: Cell) -> tuple[Result, Tensor]:
    """One cell's figures, and the picture of its average."""
    name, method, density, seed, _ = cell
    task = TASKS[name][2](options.size, seed)
    net, z = oes.fresh_generator(task.noisy, shape=task.shape, options=task.model_options, seed=seed)
    common: dict[str, Any] = {
        **task.arguments(),
        "verify": False,
        "record_every": options.record_every,
        "average": 0.99,
        "steps": options.train_steps,
        "checkpoint": options.work / f"{cell.label}.ckpt",
        "resume": True,
    }
    if method == "dense":
        fit = oes.baselines.dense_dip(net, z, task.noisy, lr=options.dense_lr, **common)
    else:
        assert density is not None
        if method == "oes":
            mask = searched(options, cell, task, net, z)
        else:
            mask = oes.pruning.random(net, density=density, seed=seed)
        fit = oes.train_sparse(net, mask, z, task.noisy, lr=options.train_lr, **common)
    assert fit.average is not None
    return figures(task, fit), task.shown(fit.average)


def searched(
    options: argparse.Namespace, cell: Cell, task: oes.tasks.Task, net: nn.Module, z: Tensor
) -> oes.Mask:
    """The mask of a search."""
    assert cell.density is not None
    assert cell.search_steps is not None
    asked = SEARCH.search_arguments() | {"density": cell.density, "steps": cell.search_steps}
    found = oes.search_mask(
        net,
        z,
        task.noisy,
        seed=cell.seed,
        verify=False,
        checkpoint=options.work / f"{cell.label}.search.ckpt",
        resume=True,
        **asked,
        **task.arguments(),
    )
    return found.mask


def figures(task: oes.tasks.Task, fit: TrainResult) -> Result:
    """PSNR in dB and SSIM of a training, against the clean picture."""
    assert task.clean is not None
    assert fit.average is not None
    clean, report = clean_pixels(task.clean), fit.report()
    return {
        "psnr of measured": oes.psnr(task.first, clean),
        "ssim of measured": ssim(task.first, clean),
        "peak": report["peak"],
        "peak step": report["peak_step"],
        "end": report["end"],
        "average": oes.psnr(task.shown(fit.average), clean),
        "ssim of end": ssim(task.shown(fit.output), clean),
        "ssim of average": ssim(task.shown(fit.average), clean),
        "collapsed": fit.collapsed,
        "diverged": fit.diverged,
        "weights": fit.mask.kept,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and images")
    parser.add_argument(
        "--pictures", action="store_true", help="draw docs/images/inverse-*.jpg and do no more"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.2, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--search-steps", type=int, default=SEARCH.search_steps)
    parser.add_argument("--train-steps", type=int, default=1000)
    parser.add_argument("--train-lr", type=float, default=1e-2)
    parser.add_argument("--dense-lr", type=float, default=1e-3)
    parser.add_argument("--record-every", type=int, default=10)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.pictures:
        for task in options.tasks:
            draw(options, task)
        return
    warnings.simplefilter("ignore", oes.OESWarning)  # what they say is in the result
    said = {name: value for name, value in vars(options).items() if name not in ("work", "json", "pictures")}
    rows: list[Result] = []
    if options.json.is_file():
        before = json.loads(options.json.read_text(encoding="utf-8"))
        more = ("tasks", "seeds", "densities")
        kept = {name: before["settings"][name] for name in said if name not in more}
        wanted = {name: said[name] for name in kept}
        if kept != wanted:
            raise SystemExit(f"{options.json}: made with {kept}, asked for {wanted}")
        rows = before["cells"]
    done = {Cell(*(row[name] for name in Cell._fields)) for row in rows}
    for cell in cells(options):
        if cell in done:
            continue
        found, picture = run_cell(options, cell)
        np.save(options.work / f"{cell.label}.npy", picture.numpy())
        row = cell._asdict() | {
            name: rounded(value) if isinstance(value, float) else value for name, value in found.items()
        }
        rows.append(row)
        print(cell.label, f"end {found['end']:.2f} dB, average {found['average']:.2f} dB", flush=True)
        write_result(str(options.json), {"environment": environment(), "settings": said, "cells": rows})


def draw(options: argparse.Namespace, name: str) -> None:
    """The clean image, the measurement and the averages of one task, seed and density side by side."""
    seed, density = options.seeds[0], options.densities[0]
    task = TASKS[name][2](options.size, seed)
    assert task.clean is not None
    clean = clean_pixels(task.clean)
    panels = [("clean", clean), (f"measured, {oes.psnr(task.first, clean):.2f} dB", task.first)]
    shown = {"dense": Cell(name, "dense", None, seed)}
    shown |= {f"random, {density:.0%}": Cell(name, "random", density, seed)}
    shown |= {f"OES, {density:.0%}": Cell(name, "oes", density, seed, options.search_steps)}
    for label, cell in shown.items():
        file = options.work / f"{cell.label}.npy"
        if file.is_file():
            image = torch.from_numpy(np.load(file))
            panels.append((f"{label}, {oes.psnr(image, clean):.2f} dB", image))
    drawn = options.work / f"{name}.png"
    side_by_side(drawn, panels)
    with Image.open(drawn) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, format="JPEG", quality=85)
    (ROOT / "docs" / "images" / f"inverse-{name}.jpg").write_bytes(data.getvalue())


LABELS = {"oes": "OES", "random": "random", "dense": "dense"}
HEADER = [
    "network",
    "search steps",
    "kept",
    "seeds",
    "peak",
    "at step",
    "end",
    "average",
    "SSIM, average",
    "",
]


def spread(rows: list[Result], name: str) -> dict[str, float | None]:
    """Mean and, of several, standard deviation of a figure."""
    values = [row[name] for row in rows]
    several = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": several}


def lines(rows: list[Result]) -> list[list[object]]:
    """The lines of a task's table."""
    found: dict[tuple[str, float | None, int | None], list[Result]] = {}
    for row in sorted(
        rows, key=lambda row: (-(row["density"] or 1.0), row["method"], row["search_steps"] or 0)
    ):
        found.setdefault((row["method"], row["density"], row["search_steps"]), []).append(row)
    made: list[list[object]] = []
    for (method, density, search), group in found.items():
        flat = sum(row["collapsed"] for row in group)
        wrong = f"{flat} of {len(group)} flat" if flat else ""
        kept = "all" if density is None else f"{100 * density:g} %"
        steps = spread(group, "peak step")["mean"]
        measured = [decibels(spread(group, "peak")), f"{steps:.0f}"]
        measured += [decibels(spread(group, name)) for name in ("end", "average")]
        measured += [decibels(spread(group, "ssim of average"), 3), wrong]
        made.append([LABELS[method], search or "", kept, len(group), *measured])
    return made


def tables() -> str:
    """The page's tables, one for each task."""
    result = load(NAME)
    parts = []
    for name, (title, said, _) in TASKS.items():
        rows = [row for row in result["cells"] if row["task"] == name]
        if not rows:
            continue
        seen = {row["seed"]: row for row in rows}.values()
        psnr = decibels(spread(list(seen), "psnr of measured"))
        structure = decibels(spread(list(seen), "ssim of measured"), 3)
        picture = f"![{name}](images/inverse-{name}.jpg)"
        text = f"{said}. What was measured, as it is shown: {psnr} dB, SSIM {structure}."
        parts.append(f"### {title}\n\n{text}\n\n{picture}\n\n{table(HEADER, lines(rows))}")
    return f"{caption(NAME, result)}\n" + "\n".join(parts)


if __name__ == "__main__":
    main()
