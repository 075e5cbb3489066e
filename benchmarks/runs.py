"""Means of several runs of one image beside BM3D, non-local means and means of dense runs.

    OMP_NUM_THREADS=1 python -m benchmarks.runs --data published --size 512 --work runs
    python -m benchmarks.runs --data published --size 512 --work runs --summary  # writes what there is
    python -m benchmarks.runs --data published --device cuda --together 16 --classical --work gpu-runs

The first and the last go on where they were stopped.

``--data`` holds NAME.png and NAME_mask.npz of each image. Run k has the weights and the input of seed k; all
have one noisy image, that of seed 0. Means of different numbers of runs share the runs: there is the mean of
the first K, and that of each group of K that follow each other. Every run that is done is written at once,
and a run that was stopped goes on from its checkpoint. Seconds on a CPU are the processor's, not the clock's:
of one thread, whatever else the machine does. On a GPU they are the clock's, divided by the runs that were
made at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import oes_fast as oes
from benchmarks.comparison import decibels
from benchmarks.finished import finished, neat, write_json
from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, Result, caption, load, table
from oes_fast.bench.environment import environment
from oes_fast.comparison.classical import CLASSICAL
from oes_fast.pipelines.runs_mean import mean_and_spread
from oes_fast.precision import PRECISIONS

NAME = "runs"
FILES = ("512", "512-gpu", "256")  # each of a size and a kind of device
SIZE = 512
METHODS = ("oes", "dense")
COUNTS = (1, 2, 4, 8, 16)
# What runs of one folder share.
SETTINGS = ("sigma", "steps", "lr", "dense_stops", "dense_lr", "average", "device", "backend", "precision")
ABSENT = "not measured"
LABELS = {"oes": "OES", "dense": "dense DIP", "nlm": "non-local means", "bm3d": "BM3D"}


class Cell(NamedTuple):
    """What is run once.

    Attributes:
        image: its name.
        method: "oes" or "dense".
        size: side of the image in pixels.
        seed: of the weights and the input.
    """

    image: str
    method: str
    size: int
    seed: int

    @property
    def label(self) -> str:
        """Of its files."""
        return "-".join(str(part) for part in self)


class Scene(NamedTuple):
    """A clean image and the noisy one."""

    clean: Tensor
    noisy: Tensor


def scene(options: argparse.Namespace, image: str, size: int) -> Scene:
    """The image of that name, [1, 3, size, size], and with the noise of seed 0."""
    clean = oes.load_image(options.data / f"{image}.png", size=size).pixels
    return Scene(clean, oes.add_noise(clean, options.sigma, 0))


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """``--together`` seeds of each image and method, then the next ones, so that all means grow together."""
    together = options.together
    for first in range(0, max(options.runs, options.dense_runs), together):
        for method, runs in (("oes", options.runs), ("dense", options.dense_runs)):
            for image in options.images:
                for seed in range(first, min(first + together, runs)):
                    yield Cell(image, method, options.size, seed)


def groups(options: argparse.Namespace, todo: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that are made at once: of one image and method, and of one part of :func:`cells`."""
    parts = itertools.groupby(todo, lambda cell: (cell._replace(seed=0), cell.seed // options.together))
    return [list(part) for _, part in parts]


def stops(options: argparse.Namespace, method: str) -> list[int]:
    """The numbers of steps whose images are kept."""
    return sorted(options.dense_stops) if method == "dense" else [options.steps]


def run_cells(options: argparse.Namespace, group: Sequence[Cell]) -> None:
    """Train those of one image and method at once, and write their images and figures."""
    method, image = group[0].method, group[0].image
    clean, noisy = (each.to(options.device) for each in scene(options, image, options.size))
    drawn = [oes.fresh_generator(noisy, seed=cell.seed) for cell in group]
    nets, inputs = [net for net, _ in drawn], [z for _, z in drawn]
    dense = method == "dense"
    mask = None if dense else oes.Mask.load(options.data / f"{image}_mask.npz", nets[0])
    checkpoints = [options.work / f"{cell.label}.ckpt" for cell in group]
    whole = not any(path.exists() for path in checkpoints)  # else the seconds are those of a part
    seconds, found = 0.0, [[] for _ in group]  # type: tuple[float, list[list[Result]]]
    for steps in stops(options, method):
        began = clock(options)
        fits = oes.train_many(
            nets,
            mask,
            inputs,
            noisy,
            steps=steps,
            lr=options.dense_lr if dense else options.lr,
            clean=clean,
            average=options.average,
            verify=False,
            backend=options.backend,
            precision=options.precision,
            at_once=len(group),
            checkpoints=checkpoints,
            resume=True,
        )
        seconds += (clock(options) - began) / len(group)
        for cell, fit, rows in zip(group, fits, found, strict=True):
            assert fit.average is not None
            np.save(options.work / f"{cell.label}-{steps}.npy", fit.average.cpu().numpy())
            figures: Result = {
                "steps": steps,
                "average": oes.psnr(fit.average, clean),
                "last": oes.psnr(fit.output, clean),
                "seconds": seconds if whole else None,
                "collapsed": fit.collapsed,
                "diverged": fit.diverged,
            }
            rows.append(figures)
    for cell, rows, checkpoint in zip(group, found, checkpoints, strict=True):
        said = {"settings": settings(options), "cell": cell._asdict(), "stops": rows}
        write_json(options.work / f"{cell.label}.json", said)
        checkpoint.unlink(missing_ok=True)


def clock(options: argparse.Namespace) -> float:
    """Seconds of the processor, on a GPU of the clock."""
    return time.process_time() if options.device == "cpu" else time.monotonic()


def run_classical(options: argparse.Namespace, image: str, method: str) -> None:
    """Denoise, and write the figures."""
    clean, noisy = scene(options, image, options.size)
    began = time.process_time()
    found = CLASSICAL[method](noisy, options.sigma)
    seconds = time.process_time() - began
    row = {
        "image": image,
        "size": options.size,
        "method": method,
        "psnr": oes.psnr(found, clean),
        "seconds": seconds,
    }
    write_json(classical_file(options, image, method), row)


def classical_file(options: argparse.Namespace, image: str, method: str) -> Path:
    """Where the figures of a classical denoiser lie."""
    path: Path = options.work / f"{image}-{method}-{options.size}.json"
    return path


def settings(options: argparse.Namespace) -> Result:
    """What the runs of one folder share."""
    return {name: getattr(options, name) for name in SETTINGS}


def done(options: argparse.Namespace, cell: Cell) -> Result | None:
    """What a finished cell wrote: see :func:`finished`."""
    return finished(options.work / f"{cell.label}.json", settings=settings(options))


def summary(options: argparse.Namespace) -> Result:
    """All that is there: runs, means of them, classical denoisers."""
    cases = []
    for image in options.images:
        for method in METHODS:
            found = {
                cell.seed: row
                for cell in cells(options)
                if (cell.image, cell.method) == (image, method) and (row := done(options, cell)) is not None
            }
            count = next(n for n in range(len(found) + 1) if n not in found)  # without a gap from seed 0
            cases += [
                case(options, [found[n] for n in range(count)], stop)
                for stop in range(len(stops(options, method)))
                if count
            ]
    classical = [
        json.loads(path.read_text(encoding="utf-8"))
        for image in options.images
        for method in options.classical
        if (path := classical_file(options, image, method)).is_file()
    ]
    classical = [{name: neat(value) for name, value in row.items()} for row in classical]
    return {"settings": settings(options), "cases": cases, "classical": classical}


def case(options: argparse.Namespace, found: list[Result], stop: int) -> Result:
    """The means of runs that differ in their seeds alone, at one number of steps.

    Args:
        options: of the command line.
        found: what the cells wrote, by seed from 0.
        stop: number of the number of steps.
    """
    cell, rows = Cell(**found[0]["cell"]), [each["stops"][stop] for each in found]
    clean, noisy = scene(options, cell.image, cell.size)

    def image(seed: int) -> Tensor:
        name = f"{cell._replace(seed=seed).label}-{rows[seed]['steps']}.npy"
        return torch.from_numpy(np.load(options.work / name))

    means = []
    for count in (k for k in COUNTS if k <= len(rows)):
        groups = [range(first, first + count) for first in range(0, len(rows) - count + 1, count)]
        figures = [psnr_and_spread([image(seed) for seed in sound(rows, group)], clean) for group in groups]
        psnrs, spreads = zip(*figures, strict=True)
        seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
        mean = {
            "runs": count,
            "first": psnrs[0],
            "groups": statistics(psnrs),
            "spread": spreads[0],
            "seconds": count * float(np.mean(seconds)) if seconds else None,
        }
        means.append({name: neat(value) for name, value in mean.items()})
    return {
        "image": cell.image,
        "method": cell.method,
        "size": cell.size,
        "steps": rows[0]["steps"],
        "noisy": neat(oes.psnr(noisy, clean)),
        "runs": [
            {name: neat(value) for name, value in {"seed": n, **row}.items()} for n, row in enumerate(rows)
        ],
        "means": means,
    }


def sound(rows: list[Result], group: Iterable[int]) -> list[int]:
    """The runs of a group that the library's mean is of: not those that collapsed or diverged."""
    kept = [seed for seed in group if not rows[seed]["collapsed"] and not rows[seed]["diverged"]]
    return kept or list(group)


def psnr_and_spread(images: list[Tensor], clean: Tensor) -> tuple[float, float | None]:
    """PSNR of the mean in dB, and the mean over the pixels of the standard deviation."""
    mean, spread = mean_and_spread(images)
    return oes.psnr(mean, clean), None if spread is None else float(spread.mean())


def statistics(values: tuple[float, ...]) -> Result:
    """Mean, standard deviation (n - 1) of several, and their number."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    found = {"mean": float(np.mean(values)), "spread": spread, "count": len(values)}
    return {name: neat(value) for name, value in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of NAME.png and NAME_mask.npz")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and images")
    parser.add_argument("--summary", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--images", nargs="+", default=["pepper", "barbara"])
    parser.add_argument("--size", type=int, default=SIZE, help="side in pixels")
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--dense-runs", type=int, default=4)
    parser.add_argument("--classical", nargs="*", choices=CLASSICAL, default=["nlm", "bm3d"])
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument(
        "--dense-stops", nargs="+", type=int, default=[300, 500, 1000], help="numbers of steps"
    )
    parser.add_argument("--dense-lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.99)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0])
    parser.add_argument("--together", type=int, default=1, help="runs to make at once: one batch on a GPU")
    parser.add_argument("--json", type=Path, help="where to write; by default the file of size and device")
    options = parser.parse_args()
    kind = "" if options.device == "cpu" else "-gpu"
    options.json = options.json or RESULTS / f"{NAME}-{options.size}{kind}.json"
    options.work.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", oes.OESWarning)  # what they say is in the result

    def write() -> None:
        write_result(str(options.json), {"environment": environment(), **summary(options)})

    for label, make in [] if options.summary else list(missing(options)):
        began = time.monotonic()
        make()
        print(f"{label}: {time.monotonic() - began:.0f} s", flush=True)
        write()
    write()


def missing(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is not done yet: its label, and the function that does it."""
    for image in options.images:
        for method in options.classical:
            path = classical_file(options, image, method)
            if not path.is_file():
                yield path.stem, lambda a=(image, method): run_classical(options, *a)  # type: ignore[misc]
    todo = [cell for cell in cells(options) if done(options, cell) is None]
    for group in groups(options, todo):
        label = group[0].label if len(group) == 1 else f"{group[0].label} to {group[-1].seed}"
        yield label, lambda group=group: run_cells(options, group)  # type: ignore[misc]


def tables() -> str:
    """The page's tables, one for each file and image."""
    return "\n".join(tables_of(f"{NAME}-{kind}") for kind in FILES)


def tables_of(name: str) -> str:
    """The tables of one file."""
    result = load(name)
    parts = []
    places = dict.fromkeys(
        (row["size"], row["image"]) for kind in ("cases", "classical") for row in result[kind]
    )
    for size, image in places:
        cases, classical = (
            [row for row in result[kind] if row["image"] == image] for kind in ("cases", "classical")
        )
        lines = [line for row in cases for line in lines_of(row)]
        there = {row["method"] for row in cases}
        lines += [[LABELS[method], *[ABSENT] * len(COUNTS)] for method in METHODS if method not in there]
        for row in classical:
            label = LABELS[row["method"]]
            lines.append([f"{label}, dB", f"{row['psnr']:.2f}", *[""] * (len(COUNTS) - 1)])
            lines.append([f"{label}, seconds", f"{row['seconds']:.0f}", *[""] * (len(COUNTS) - 1)])
        header = ["", *(f"{count} run{'s' if count > 1 else ''}" for count in COUNTS)]
        noisy = f", noisy image {cases[0]['noisy']:.2f} dB" if cases else ""
        parts.append(f"{image.capitalize()}, {size} x {size}{noisy}:\n\n{table(header, lines)}")
    return f"{caption(name, result)}\n" + "\n".join(parts)


def lines_of(row: Result) -> list[list[object]]:
    """The lines of one method: PSNR of means in dB, with their spread over the groups; seconds."""
    means = {mean["runs"]: mean for mean in row["means"]}
    name = LABELS[row["method"]] + (f", {row['steps']:,} steps" if row["method"] == "dense" else "")
    psnr = [decibels(means[count]["groups"]) if count in means else ABSENT for count in COUNTS]
    seconds = [
        f"{means[count]['seconds']:.0f}" if count in means and means[count]["seconds"] else ABSENT
        for count in COUNTS
    ]
    return [[f"{name}, dB", *psnr], [f"{name}, seconds", *seconds]]


if __name__ == "__main__":
    main()
