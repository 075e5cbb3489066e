"""What a mask search can do without: one configuration of it, then the training with the mask that it found.

    OMP_NUM_THREADS=1 python -m benchmarks.search_study --work study    # goes on with what is not done
    python -m benchmarks.search_study --work study --summary            # writes what there is

An image is NAME.png of ``--data``, or that of scikit-image. All searches of a seed start from the same
weights and see the same noisy image, and all masks are trained in the same way. A search on a smaller image
is one of the noisy image, shrunk with antialiasing, and of an input drawn at that size: a mask is independent
of the size. Seconds are the processor's, not the clock's: of one thread, whatever else the machine does.
Every run that is done is written at once.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oes_fast as oes
from benchmarks.finished import finished, neat, write_json
from benchmarks.mask_study import FOUND as SEARCHED
from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, Result, caption, load, table
from oes_fast.bench.environment import environment
from oes_fast.cli.search_size import shrunk

NAME = "search-study-256-cpu"
REFERENCE = "6,000 at 0.1"
MASK_STUDY = "mask-study-256-cpu"  # which has runs of the reference
SETTINGS = ("side", "sigma", "train_lr", "average")  # that runs of one folder share
STOPS = (1_000, 2_000)  # steps of training whose averages are reported
EVERY = 20  # steps from one record of a training to the next


@dataclass(frozen=True)
class Configuration:
    """Of a search.

    Attributes:
        steps, lr, schedule, kl, temperature, start: see :func:`oes_fast.search_mask`.
        side: of the image that is searched on, in pixels; None for that of the training.
        trained: steps of the training with its mask.
        density: share of the weights that the mask keeps.
    """

    steps: int
    lr: float
    schedule: str | None = None
    kl: float = 1e-9
    temperature: float = 0.2
    start: float | None = None
    side: int | None = None
    trained: int = STOPS[-1]
    density: float = 0.05


CONFIGURATIONS = {
    REFERENCE: Configuration(6_000, 0.1),
    "fast": Configuration(600, 0.3, "cosine", 1e-7, 0.5),
    "fast, constant rate": Configuration(600, 0.3, None, 1e-7, 0.5),
    "fast, temperature and KL as published": Configuration(600, 0.3),
    "fast, 300 steps": Configuration(300, 0.3, "cosine", 1e-7, 0.5),
    "fast, 300 steps, 1,200 of training": Configuration(300, 0.3, "cosine", 1e-7, 0.5, trained=1_200),
    "300 steps, temperature 1": Configuration(300, 0.3, "cosine", 1e-7, 1.0, trained=STOPS[0]),
    "fast, 150 steps": Configuration(150, 0.3, "cosine", 1e-7, 0.5),
    "300 steps, temperature and KL as published": Configuration(300, 0.3),
    "fast on 128": Configuration(600, 0.3, "cosine", 1e-7, 0.5, side=128, trained=STOPS[0]),
    "on 128, temperature 0.2": Configuration(600, 0.3, "cosine", 1e-7, 0.2, side=128, trained=STOPS[0]),
    "on 128, temperature 1": Configuration(600, 0.3, "cosine", 1e-7, 1.0, side=128, trained=STOPS[0]),
    "on 128, KL 1e-6": Configuration(600, 0.3, "cosine", 1e-6, 0.5, side=128, trained=STOPS[0]),
    "quick, density 20 %": Configuration(300, 0.3, None, 3e-7, trained=1_200, density=0.2),
}


class Cell(NamedTuple):
    """What is run once.

    Attributes:
        image: its name.
        configuration: name of the search's.
        seed: of noise, weights, input and search.
    """

    image: str
    configuration: str
    seed: int

    @property
    def file(self) -> str:
        """Name of what it writes."""
        plain = "".join(c if c.isalnum() or c == "." else "-" for c in self.configuration)
        return f"{self.image}-{self.seed}-{plain}.json"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Seed by seed and configuration by configuration, so that their means grow together."""
    for seed in options.seeds:
        for name in options.configurations:
            for image in options.images:
                yield Cell(image, name, seed)


def scene(options: argparse.Namespace, image: str, seed: int) -> tuple[Tensor, Tensor]:
    """The clean image of that name, [1, C, side, side], and with the noise of a seed."""
    source: str | Path = f"skimage:{image}"
    if options.data is not None and (file := options.data / f"{image}.png").is_file():
        source = file
    clean = oes.load_image(source, size=options.side).pixels
    return clean, oes.add_noise(clean, options.sigma, seed)


def run_cell(options: argparse.Namespace, cell: Cell) -> None:
    """Search, train with the mask found, and write the figures."""
    clean, noisy = scene(options, cell.image, cell.seed)
    net, z = oes.fresh_generator(noisy, seed=cell.seed)
    settings = asdict(CONFIGURATIONS[cell.configuration])
    side, trained = settings.pop("side"), settings.pop("trained")
    seen = noisy if side is None else shrunk(noisy, side)
    began = time.process_time()
    search_z = z if side is None else oes.fresh_generator(seen, seed=cell.seed)[1]
    found = oes.search_mask(
        net,
        search_z,
        seen,
        seed=cell.seed,
        verify=False,
        record_every=max(1, settings["steps"]),
        **settings,
    )
    searched = time.process_time() - began
    fit = oes.train_sparse(
        net,
        found.mask,
        z,
        noisy,
        steps=trained,
        lr=options.train_lr,
        average=options.average,
        clean=clean,
        verify=False,
        record_every=EVERY,
    )
    history = fit.history
    figures: Result = {
        "search seconds": searched,
        "train seconds": time.process_time() - began - searched,
        "mask alone": history.psnr[0],
        "peak": max(history.psnr),
        "last": history.psnr[-1],
        "averages": averages({name: history[name] for name in ("step", "psnr_average")}),
        "collapsed": fit.collapsed,
    }
    said = {"settings": settings_of(options), "searched with": asdict(CONFIGURATIONS[cell.configuration])}
    write_json(options.work / cell.file, {**said, "cell": cell._asdict(), "figures": figures})


def settings_of(options: argparse.Namespace) -> Result:
    """What the runs of one folder share."""
    return {name: getattr(options, name) for name in SETTINGS}


def done(options: argparse.Namespace, cell: Cell) -> Result | None:
    """What a finished cell wrote: see :func:`finished`."""
    asked = {
        "settings": settings_of(options),
        "searched with": asdict(CONFIGURATIONS[cell.configuration]),
    }
    return finished(options.work / cell.file, **asked)


def summary(options: argparse.Namespace) -> Result:
    """All that is there, configuration by configuration."""
    rows = []
    for name in CONFIGURATIONS:
        found = [
            row
            for cell in cells(options)
            if cell.configuration == name and (row := done(options, cell)) is not None
        ]
        if found:
            runs = [
                {**{key: row["cell"][key] for key in ("image", "seed")}, **_neat(row["figures"])}
                for row in found
            ]
            rows.append({"configuration": name, **asdict(CONFIGURATIONS[name]), "runs": runs})
    return {"settings": settings_of(options), "configurations": rows}


def _neat(figures: Result) -> Result:
    return {name: _neat(value) if isinstance(value, dict) else neat(value) for name, value in figures.items()}


def runs_of(row: Result) -> dict[tuple[str, int], Result]:
    """The runs of a configuration by image and seed; of the reference also those of the study of masks."""
    found = {(run["image"], run["seed"]): run for run in row["runs"]}
    if row["configuration"] == REFERENCE:
        for run in reference_runs(load(MASK_STUDY)):
            found.setdefault((run["image"], run["seed"]), run)
    return found


def reference_runs(study: Result) -> list[Result]:
    """Runs of the reference that :mod:`benchmarks.mask_study` made, with the averages at :data:`STOPS`."""
    asked = study["options"]
    assert (asked["search_steps"], asked["search_lr"], asked["kl"]) == (6_000, 0.1, 1e-9)
    image = asked["image"].removeprefix("skimage:")
    return [
        {"image": image, "seed": run["seed"], "averages": averages(run["history"])}
        for run in study["runs"]
        if run["mask"] == SEARCHED
    ]


def averages(history: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """PSNR of the running average of the outputs at those of :data:`STOPS` that were recorded."""
    steps = list(history["step"])
    return {str(stop): history["psnr_average"][steps.index(stop)] for stop in STOPS if stop in steps}


def tables() -> str:
    """The page's table: a configuration a line."""
    result = load(NAME)
    rows = [{"configuration": REFERENCE, **asdict(CONFIGURATIONS[REFERENCE]), "runs": []}]
    rows += [row for row in result["configurations"] if row["configuration"] != REFERENCE]
    for row in result["configurations"]:
        if row["configuration"] == REFERENCE:
            rows[0] = row
    of = {row["configuration"]: runs_of(row) for row in rows}
    places = sorted({place for found in of.values() for place in found})
    lines = []
    for row in rows:
        found = of[row["configuration"]]
        figures = [
            "" if place not in found else " / ".join(_decibels(found[place], stop) for stop in STOPS)
            for place in places
        ]
        seconds = [run["search seconds"] for run in row["runs"]]
        lines.append(
            [row["configuration"], *_words(row), f"{fmean(seconds):.0f}" if seconds else "", *figures]
        )
    header = ["search", "steps", "rate", "KL", "temperature", "start", "side", "seconds"]
    header += [f"{image}, seed {seed}" for image, seed in places]
    return f"{caption(NAME, result)}\n{table(header, lines)}"


def _decibels(run: Result, stop: int) -> str:
    value = run["averages"].get(str(stop))
    return "-" if value is None else f"{value:.2f}"


def _words(row: Result) -> list[str]:
    rate = f"{row['lr']:g}" + (f", {row['schedule']}" if row["schedule"] else "")
    start = 0.5 if row["start"] is None else row["start"]
    side = "" if row["side"] is None else str(row["side"])
    return [f"{row['steps']:,}", rate, f"{row['kl']:.0e}", f"{row['temperature']:g}", f"{start:g}", side]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of what each run writes")
    parser.add_argument("--data", type=Path, help="folder of NAME.png")
    parser.add_argument("--summary", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--images", nargs="+", default=["astronaut", "camera", "coffee", "chelsea"])
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--train-lr", type=float, default=1e-2)
    parser.add_argument("--average", type=float, default=0.99)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", oes.OESWarning)  # what they say is in the result
    for cell in [] if options.summary else cells(options):
        if done(options, cell) is None:
            run_cell(options, cell)
            found = done(options, cell)
            assert found is not None
            figures = found["figures"]
            print(f"{cell.file}: peak {figures['peak']:.2f} dB", flush=True)
    write_result(str(options.json), {"environment": environment(), **summary(options)})


if __name__ == "__main__":
    main()
