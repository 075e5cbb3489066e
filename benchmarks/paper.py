"""The published settings from the first step to the last, for one image: search, then training.

    python -m benchmarks.paper --image pepper.png --work paper --published-mask pepper_mask.npz --control
    python -m benchmarks.paper --picture docs/images/paper.png    # of the result that is there

A seed is that of the noise on the image, the weights, the input and the search. The weights that the mask
keeps are trained from their initial values. A phase that is done is written to ``--work`` at once, and one
that was stopped or killed goes on from its checkpoint: the same command does what is missing. ``--control``
trains the published mask on the weights and the input of the same seed, and the mask that was found on those
of the next one. A phase that is done may have been made on another machine, backend or precision: ``--work``
goes along, and the result says how each was made.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oes_fast as oes
from benchmarks import mask_profile
from benchmarks.comparison import rounded
from benchmarks.finished import finished, neat, write_json
from benchmarks.paper_page import NAME, STOPS, draw
from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, Result, machine
from oes_fast.bench.environment import environment
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.history import History
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.presets import PRESETS
from oes_fast.pipelines.train import TrainResult
from oes_fast.precision import PRECISIONS

SETTINGS = PRESETS["paper"]
SIGMA = 0.1
AVERAGE = 0.99
RECORDS, POINTS = 600, 300  # most records of a history, and of those that are kept
WARM_UP = 10  # steps that are not timed: compiling, recording, choosing between algorithms
SECONDS = 10.0  # from one line of progress to the next
CONTROLS = ("published", "fresh")
# Of the published code over 20,000 steps, where the peak is known to a thousand steps.
PUBLISHED: dict[tuple[str, int], Result] = {  # by image and size
    ("pepper", 512): {
        "method": "published code, OES 3.5 %",
        "noisy": 20.32,
        "peak": {"step": 2_000, "psnr": 28.84},
        "at": {"10000": 27.68, "19000": 27.96},
    }
}


class Scene(NamedTuple):
    """A clean image [1, C, H, W] and the noisy one, both on the device of the run."""

    clean: Tensor
    noisy: Tensor


class Watch:
    """Callback that prints how far a phase is, and times its steps.

    Args:
        label: of the phase.
        seconds: from one line to the next.

    Attributes:
        ms: milliseconds a step, checkpoints and records included; None where too few were made.
    """

    def __init__(self, label: str, seconds: float = SECONDS) -> None:
        self._label, self._seconds = label, seconds
        self._first: int | None = None
        self._said = self._timed = (0, 0.0)  # step, time
        self.ms: float | None = None

    def __call__(self, info: StepInfo) -> None:
        """Called after every evaluation; waits for the device at a line and at the first step timed alone."""
        now = time.monotonic()
        last = info.step == info.steps
        if self._first is None:
            self._first, self._said = info.step, (info.step, now)
            if info.step:
                print(f"{self._label}: goes on from step {info.step:,} of {info.steps:,}", flush=True)
        elif info.step == self._first + WARM_UP:
            _ = info.loss  # waits for the device
            self._timed = (info.step, time.monotonic())
        if last or now - self._said[1] >= self._seconds:
            loss, psnr = info.loss, info.psnr
            now = time.monotonic()
            step, since = self._said
            rate = (info.step - step) / (now - since) if now > since else 0.0
            print(
                f"{self._label}: step {info.step:,} of {info.steps:,}, loss {loss:.5f}, PSNR {psnr:.2f} dB, "
                f"{rate:.0f} steps/s",
                flush=True,
            )
            self._said = (info.step, now)
            step, since = self._timed
            if last and since and info.step > step:
                self.ms = 1e3 * (now - since) / (info.step - step)


def record_every(steps: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that gives at most :data:`RECORDS` records."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if steps <= RECORDS * digit * power:
                return digit * power
        power *= 10


def curve(history: History) -> Result:
    """The recorded steps, thinned to :data:`POINTS`, the last one among them."""
    records = list(history)
    stride = max(1, math.ceil((len(records) - 1) / (POINTS - 2)))
    kept = records[::stride]
    if kept[-1] is not records[-1]:
        kept.append(records[-1])
    found: Result = {
        "step": [record.step for record in kept],
        "loss": [float(f"{record.loss:.6g}") for record in kept],
        "psnr": [rounded(record.psnr) for record in kept],
    }
    if not math.isnan(kept[-1].psnr_average):
        found["psnr_average"] = [rounded(record.psnr_average) for record in kept]
    return found


def psnr_of(history: History) -> Result:
    """Of the output and of the running average: peak, end, and at :data:`STOPS` where they were recorded."""
    rows = list(history)
    found = {}
    for name, column in (("output", "psnr"), ("average", "psnr_average")):
        best = max(rows, key=lambda row: getattr(row, column))
        found[name] = {
            "peak": {"step": best.step, "psnr": rounded(getattr(best, column))},
            "at": {str(row.step): rounded(getattr(row, column)) for row in rows if row.step in STOPS},
            "end": rounded(getattr(rows[-1], column)),
        }
    return found


def phase(options: argparse.Namespace, label: str, asked: Result, make: Callable[[], Result]) -> Result:
    """The figures of a phase, made unless they are there.

    Args:
        options: of the command line.
        label: of its files.
        asked: settings that it depends on.
        make: runs it.

    Raises:
        SystemExit: it was made with other settings.
    """
    path = options.work / f"{label}.json"
    before = finished(path, settings=asked)
    if before is not None:
        found: Result = before["figures"]
        how = machine(found), f"backend {found['backend']}", found["precision"]
        print(f"{label}: was done before ({', '.join(how)})", flush=True)
        return found
    checkpoint = options.work / f"{label}.ckpt"
    whole = not checkpoint.exists()  # else its seconds are those of a part
    began = time.monotonic()
    figures = make()
    seconds = time.monotonic() - began
    figures = {"seconds": neat(seconds) if whole else None, **figures}
    write_json(path, {"settings": asked, "figures": figures})
    ms = "" if figures["ms a step"] is None else f", {figures['ms a step']:.2f} ms a step"
    print(f"{label}: {seconds:.0f} s{ms}", flush=True)
    return figures


def settings(options: argparse.Namespace, scene: Scene) -> Result:
    """What all phases depend on: not where they are computed, nor how, which each says for itself."""
    return {
        "image": options.image.name,
        "sigma": SIGMA,
        **{name: getattr(options, name) for name in ("size", "seed")},
        "noisy": digest(scene.noisy),
    }


def common(options: argparse.Namespace, scene: Scene, label: str, steps: int, watch: Watch) -> dict[str, Any]:
    """Arguments of both pipelines."""
    return {
        "steps": steps,
        "clean": scene.clean,
        "backend": options.backend,
        "precision": options.precision,
        "verify": options.verify,
        "record_every": record_every(steps),
        "callback": watch,
        "checkpoint": options.work / f"{label}.ckpt",
        "checkpoint_seconds": options.checkpoint_seconds,
        "resume": True,
    }


def figures_of(
    found: oes.SearchResult | oes.TrainResult, label: str, options: argparse.Namespace, watch: Watch
) -> Result:
    """What a search and a training have in common, and where they were made.

    Raises:
        SystemExit: it was stopped before its last step.
    """
    steps = options.search_steps if label == "search" else options.train_steps
    if found.steps < steps:
        raise SystemExit(f"{label}: stopped at step {found.steps:,} of {steps:,}; the same command goes on")
    return {
        "steps": steps,
        "ms a step": neat(watch.ms),
        "environment": environment(),
        "backend": found.backend,
        "precision": options.precision,
        "kept": found.mask.kept,
        "density": round(found.mask.density, 6),
        "collapsed": found.collapsed,
        "diverged": found.diverged,
        "curve": curve(found.history),
    }


def search(options: argparse.Namespace, scene: Scene) -> Result:
    """Search the mask, which is written to ``mask.safetensors``."""
    label, steps = "search", options.search_steps
    chosen: Result = {"density": SETTINGS.density, "lr": SETTINGS.search_lr, "kl": SETTINGS.search_kl}

    def make() -> Result:
        net, z = oes.fresh_generator(scene.noisy, seed=options.seed)
        watch = Watch(label)
        arguments = common(options, scene, label, steps, watch)
        found = oes.search_mask(net, z, scene.noisy, seed=options.seed, **chosen, **arguments)
        figures = figures_of(found, label, options, watch)
        found.mask.save(options.work / "mask.safetensors")
        alone = rounded(oes.psnr(found.output, scene.clean))
        return {"temperature": found.mask.settings["temperature"], "psnr of mask alone": alone, **figures}

    asked = settings(options, scene) | chosen | {"steps": steps}
    return chosen | phase(options, label, asked, make)


def train(options: argparse.Namespace, scene: Scene, label: str, mask: oes.Mask, seed: int) -> Result:
    """Train what a mask keeps of the weights of a seed; the average is written to ``train-LABEL.png``."""
    label, steps = f"train-{label}", options.train_steps

    def make() -> Result:
        net, z = oes.fresh_generator(scene.noisy, seed=seed)
        watch = Watch(label)
        arguments = common(options, scene, label, steps, watch)
        fit: TrainResult = oes.train_sparse(
            net, mask, z, scene.noisy, lr=SETTINGS.train_lr, average=AVERAGE, **arguments
        )
        figures = figures_of(fit, label, options, watch)
        assert fit.average is not None
        oes.save_image(options.work / f"{label}.png", fit.average.cpu())
        return {"psnr": psnr_of(fit.history), **figures}

    chosen = {"lr": SETTINGS.train_lr, "average": AVERAGE, "seed of weights": seed}
    asked = settings(options, scene) | chosen | {"steps": steps, "mask": digest(mask.flat)}
    return chosen | phase(options, label, asked, make)


def run(options: argparse.Namespace) -> Result:
    """Both phases and the controls; what there is is written after each."""
    clean = oes.load_image(options.image, size=options.size).pixels.to(options.device)
    scene = Scene(clean, oes.add_noise(clean, SIGMA, options.seed))
    said = settings(options, scene)
    del said["noisy"]
    result: Result = {
        "environment": environment(),
        "settings": said,
        "noisy": rounded(oes.psnr(scene.noisy, clean)),
        "published": PUBLISHED.get((options.image.stem, options.size)),
    }

    def write() -> None:
        phases = [result["search"], *result.get("trainings", {}).values()]
        seconds = [each["seconds"] for each in phases]
        result["seconds"] = None if None in seconds else neat(sum(seconds))
        write_result(str(options.json), result)

    net, _ = oes.fresh_generator(scene.noisy.cpu(), seed=options.seed)  # its weights do not count
    masks = {}
    if options.published_mask is not None:  # before the search: a file that will not do is said at once
        masks["published"] = oes.Mask.load(options.published_mask, net)
    result["search"] = search(options, scene)
    masks["found"] = masks["fresh"] = oes.Mask.load(options.work / "mask.safetensors", net)
    if "published" in masks:
        result["profile"] = mask_profile.compared(masks["found"], masks["published"], net)
    write()
    result["trainings"] = {}
    for label in ("found", *CONTROLS):
        if label == "found" or label in options.control:
            seed = options.seed + (label == "fresh")
            result["trainings"][label] = train(options, scene, label, masks[label], seed)
            write()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, help="photograph; without, the picture is drawn and no more")
    parser.add_argument("--work", type=Path, help="folder of checkpoints, mask and images")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search-steps", type=int, default=SETTINGS.search_steps)
    parser.add_argument("--train-steps", type=int, default=SETTINGS.train_steps)
    parser.add_argument("--published-mask", type=Path, help="mask to put beside the one that is found")
    parser.add_argument(
        "--control", nargs="*", choices=CONTROLS, help="train these as well; without a name, all there are"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="no comparison with the dense network"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    if options.image is None:
        if options.picture is None:
            parser.error("expected --image, or --picture to draw a result that is there")
        draw(json.loads(options.json.read_text(encoding="utf-8")), options.picture)
        return
    if options.work is None:
        parser.error("expected --work with --image")
    controls = CONTROLS if options.published_mask is not None else ("fresh",)
    options.control = controls if options.control == [] else tuple(options.control or ())
    if "published" in options.control and options.published_mask is None:
        parser.error("expected --published-mask with --control published")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    # These two are in the result.
    warnings.simplefilter("ignore", oes.CollapsedRunWarning)
    warnings.simplefilter("ignore", oes.DivergedRunWarning)
    result = run(options)
    if options.picture is not None:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
