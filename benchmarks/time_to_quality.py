"""PSNR against seconds: the published way, dense DIP, and the presets with one run and the mean of several.

    OMP_NUM_THREADS=1 python -m benchmarks.time_to_quality --work quality    # goes on with what is not done
    python -m benchmarks.time_to_quality --work quality --summary            # writes and draws what there is

Every search and training is run once and kept in the folder. Seconds are none of theirs: they are numbers of
steps times the time of a step, and all kinds of steps are timed together, one of each in turn, on one thread.
These are seconds of the processor, which other work on the machine changes less than those of the clock.

The published way is made of the same steps in plain PyTorch. Its curve is that of a training whose mask took
6,000 steps at 0.1 (:mod:`benchmarks.mask_study`): step for step what this library computes.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.finished import finished, neat, write_json
from benchmarks.report import write_result
from benchmarks.stopping import NEVER, RULES, Onlooker, stop_of
from benchmarks.table_text import RESULTS, ROOT, Result
from benchmarks.time_to_quality_page import NAME, draw
from benchmarks.timer import summary as statistics
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import PUBLISHED, Step, search_steps, stepper, training_steps
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.runs_mean import mean_and_spread
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.timing import times_in_turn, without_collections

EVERY = 50  # steps from one point of a curve to the next
LOOKS = 10  # steps from one look of a rule to the next, and from one record to the next
SETTINGS = ("side", "sigma", "steps", "dense_lr", "average")  # that the trainings of one folder share
STOPS = ("variance", "discrepancy")
DENSE, REUSED = "dense", "reused"


class Cell(NamedTuple):
    """A training.

    Attributes:
        image: of scikit-image.
        way: preset whose search gave the mask; "reused", the mask that "fast" found for the first image;
            "dense", all weights.
        seed: of weights and input; the noise is that of seed 0.
    """

    image: str
    way: str
    seed: int

    @property
    def label(self) -> str:
        """Of its files."""
        return "-".join(map(str, self))


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """The most telling ones first: one run of each way, a mask that is reused, then the other runs."""
    first, *others = options.images
    yield from (Cell(first, way, 0) for way in (*options.presets, DENSE))
    if "fast" in options.presets:
        yield from (Cell(image, way, 0) for image in others for way in (REUSED, "fast"))
    for seed in range(1, options.runs):
        yield from (Cell(first, way, seed) for way in options.presets)
    for image in others:
        yield from (Cell(image, way, 0) for way in (*options.presets, DENSE) if way != "fast")


def scene(options: argparse.Namespace, image: str) -> tuple[Tensor, Tensor]:
    """The clean image [1, C, side, side], and with the noise of seed 0."""
    clean = oes.load_image(f"skimage:{image}", size=options.side).pixels
    return clean, oes.add_noise(clean, options.sigma, 0)


def mask_of(options: argparse.Namespace, image: str, preset: str) -> oes.Mask:
    """The mask that a preset finds for an image, searched once."""
    path: Path = options.work / f"{image}-{preset}.safetensors"
    _, noisy = scene(options, image)
    net, z = oes.fresh_generator(noisy, seed=0)
    if not path.is_file():
        asked = PRESETS[preset]
        found = oes.search_mask(
            net,
            z,
            noisy,
            record_every=asked.search_steps,
            verify=False,
            **asked.search_arguments(),
        )
        found.mask.save(path)
    return oes.Mask.load(path, net)


def mask_for(options: argparse.Namespace, cell: Cell) -> oes.Mask | None:
    """The mask of a training, None for all weights."""
    if cell.way == DENSE:
        return None
    if cell.way == REUSED:
        return mask_of(options, options.images[0], "fast")
    return mask_of(options, cell.image, cell.way)


class Snapshots:
    """Shows a run to the rules and keeps its averages at the points of the curves."""

    def __init__(self, onlooker: Onlooker) -> None:
        self.averages: list[Tensor] = []
        self._onlooker = onlooker

    def __call__(self, info: oes.StepInfo) -> None:
        """Of the library's loop."""
        self._onlooker(info)
        if info.step and info.step % EVERY == 0:
            assert info.average is not None
            self.averages.append(info.average.clone())


def run_cell(options: argparse.Namespace, cell: Cell) -> None:
    """Train, and write the curve and the averages of the outputs."""
    clean, noisy = scene(options, cell.image)
    mask = mask_for(options, cell)
    rules: dict[str, Any] = {
        "variance 200": oes.VarianceStop(window=200, patience=NEVER, every=LOOKS),
        "discrepancy": oes.DiscrepancyStop(every=LOOKS),
    }
    rules["discrepancy"].bind(noisy, None, None)
    snapshots = Snapshots(Onlooker(rules, ()))
    # A mask of another image is trained with the weights of another seed, as by `transfer`.
    net, z = oes.fresh_generator(noisy, seed=cell.seed + (cell.way == REUSED))
    arguments: dict[str, Any] = {
        "clean": clean,
        "average": options.average,
        "callback": snapshots,
        "record_every": LOOKS,
        "verify": False,
    }
    if mask is None:
        fit = oes.baselines.dense_dip(
            net, z, noisy, steps=options.dense_steps, lr=options.dense_lr, **arguments
        )
    else:
        fit = oes.train_sparse(net, mask, z, noisy, steps=options.steps, **arguments)
    np.save(options.work / f"{cell.label}.npy", torch.cat(snapshots.averages).numpy())
    history = fit.history
    steps = list(history.step)
    stops = {}
    for name in STOPS:
        step, made = stop_of(rules[RULES[name].curve].curve, RULES[name].patience, steps[-1])
        stops[name] = {"step": step, "steps made": made, "average": history.psnr_average[steps.index(step)]}
    kept = [at for at, step in enumerate(steps) if step and step % EVERY == 0]
    found = {
        "settings": settings(options),
        "cell": cell._asdict(),
        "density": 1.0 if mask is None else mask.density,
        "collapsed": fit.collapsed,
        "step": [steps[at] for at in kept],
        "psnr": [history.psnr[at] for at in kept],
        "average": [history.psnr_average[at] for at in kept],
        "stops": stops,
    }
    write_json(options.work / f"{cell.label}.json", found)


def settings(options: argparse.Namespace) -> Result:
    """What the trainings of one folder share."""
    return {name: getattr(options, name) for name in SETTINGS}


def done(options: argparse.Namespace, cell: Cell) -> Result | None:
    """What a finished training wrote: see :func:`finished`."""
    return finished(options.work / f"{cell.label}.json", settings=settings(options))


class PlainDense:
    """Dense DIP in plain PyTorch.

    Args:
        net: the generator; left as it is.
        z: its input.
        noisy: what it is fitted to.
        lr: Adam's learning rate.
    """

    def __init__(self, net: nn.Module, z: Tensor, noisy: Tensor, lr: float) -> None:
        self.net, self.z, self.noisy = copy.deepcopy(net), z, noisy
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr)

    def step(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        F.mse_loss(self.net(self.z), self.noisy).backward()
        self.optimizer.step()


def steps_to_time(options: argparse.Namespace) -> dict[str, Step]:
    """One step of each kind."""
    image = options.images[0]
    _, noisy = scene(options, image)
    net, z = oes.fresh_generator(noisy, seed=0)
    found: dict[str, Step] = {}
    searches = search_steps(net, z, noisy, ["auto"])
    found |= {"published search": searches[PUBLISHED], "search": searches["auto"]}
    for preset in options.presets:
        trainings = training_steps(net, mask_of(options, image, preset), z, noisy, ["auto"])
        found[f"training, {preset}"] = trainings["auto"]
        if preset == "fast":  # of 5 %, as the published masks
            found["published training"] = trainings[PUBLISHED]
    found["published dense"] = PlainDense(net, z, noisy, options.dense_lr).step
    function, backend = make_function(net, z, None, "auto", verify=False)
    found["dense"] = stepper(TrainRun(function, SquaredError(noisy), options.dense_lr, None, backend))
    return found


def timed(options: argparse.Namespace) -> Result:
    """Processor milliseconds of each kind of step, one of each in turn, on one thread; measured once."""
    path: Path = options.work / "steps.json"
    if not path.is_file():
        calls = steps_to_time(options)
        with without_collections():
            times = times_in_turn(
                list(calls.values()), rounds=options.rounds, warmup=2, clock=time.process_time
            )
        ms = {name: statistics([1e3 * t for t in taken]) for name, taken in zip(calls, times, strict=True)}
        write_json(path, {"rounds": options.rounds, "threads": torch.get_num_threads(), "ms": ms})
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def means(options: argparse.Namespace, image: str, way: str) -> list[Result]:
    """PSNR of the mean of the first K runs' averages, for K = 2, 4, ... of those that there are."""
    there = []
    for seed in range(options.runs):
        if done(options, cell := Cell(image, way, seed)) is None:
            break
        there.append(np.load(options.work / f"{cell.label}.npy"))
    clean, _ = scene(options, image)
    found = []
    count = 2
    while count <= len(there):
        psnr = [
            oes.psnr(mean_and_spread(torch.from_numpy(run[at : at + 1]) for run in there[:count])[0], clean)
            for at in range(len(there[0]))
        ]
        found.append({"runs": count, "average": psnr})
        count *= 2
    return found


def summary(options: argparse.Namespace) -> Result:
    """All that is there."""
    curves = []
    for cell in cells(options):
        if (found := done(options, cell)) is None:
            continue
        curve = {**found["cell"], **{name: found[name] for name in found if name not in ("settings", "cell")}}
        if cell.seed == 0 and cell.way in options.presets:
            curve["means"] = means(options, cell.image, cell.way)
        curves.append(tidied(curve))
    noisy = {image: neat(oes.psnr(*reversed(scene(options, image)))) for image in options.images}
    presets = {
        name: {"search": PRESETS[name].search_steps, "training": PRESETS[name].train_steps}
        for name in ("paper", *options.presets)
    }
    said = settings(options) | {"images": options.images, "presets": presets}
    return {"settings": said, "noisy": noisy, "steps": tidied(timed(options)), "curves": curves}


def tidied(value: Any) -> Any:
    """Numbers of all that is inside to 4 digits behind the point."""
    if isinstance(value, dict):
        return {name: tidied(each) for name, each in value.items()}
    if isinstance(value, list):
        return [tidied(each) for each in value]
    return neat(value)


def missing(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is not done yet: its label, and what does it."""
    for cell in cells(options):
        if done(options, cell) is None:
            yield cell.label, lambda cell=cell: run_cell(options, cell)  # type: ignore[misc]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done")
    parser.add_argument("--summary", action="store_true", help="run nothing, write and draw what is there")
    parser.add_argument("--images", nargs="+", default=["astronaut", "coffee"])
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=["fast", "quick"])
    parser.add_argument("--runs", type=int, default=4, help="trainings of the first image's masks")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dense-steps", type=int, default=1200)
    parser.add_argument("--dense-lr", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.99)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "time-to-quality.png")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", oes.OESWarning)  # what they say is in the result
    for label, make in [] if options.summary else list(missing(options)):
        began = time.process_time()
        make()
        print(f"{label}: {time.process_time() - began:.0f} s of the processor", flush=True)
    result = {"environment": environment(), **summary(options)}
    write_result(str(options.json), result)
    draw(result, options.picture)


if __name__ == "__main__":
    main()
