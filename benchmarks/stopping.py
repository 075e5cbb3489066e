"""Stopping rules against the best step of the run, which the clean image alone shows, for docs/stopping.md.

    OMP_NUM_THREADS=1 python -m benchmarks.stopping --work stopping   # goes on where it was stopped

Each cell (image, noise, network, seed) is trained twice: on all pixels, and without those that the holdout
leaves out. The rules look on and stop nothing, so each training serves all of them: what a rule would have
stopped at, for any patience, is read off its criterion. The PSNR at the stop is beside the best of the run.

The mask of an image is searched once, on its first noise (Gaussian, 0.1), and cut at each density; "dense"
trains all weights. Every training that is done is kept in the folder; the same command does what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oes_fast as oes
from benchmarks.comparison import rounded
from benchmarks.report import write_result
from benchmarks.table_text import RESULTS, Result, caption, load, table
from oes_fast.bench.environment import environment
from oes_fast.pipelines.stop_rule import StopRule

NAME = "stopping"
PHOTONS = 50  # of a white pixel under Poisson noise
NEVER = 10**9  # steps of patience: the rules look on
DECAY = 0.99  # of the running average
DENSE_LR = 1e-3


class Cell(NamedTuple):
    """What is trained twice.

    Attributes:
        image: of scikit-image.
        noise: standard deviation, or "poisson".
        network: density of the mask, or "dense".
        seed: of noise, weights, input and pixels left out.
    """

    image: str
    noise: str
    network: str
    seed: int


class Shown(NamedTuple):
    """A rule as the tables name it.

    Attributes:
        title: of it.
        curve: the criterion that it goes by.
        patience: steps; 0 where it stops as soon as the criterion is 1.
        run: "whole" or "held".
    """

    title: str
    curve: str
    patience: int
    run: str = "whole"


RULES = {
    "variance": Shown("`VarianceStop()`: window 200, patience 600", "variance 200", 600),
    "variance hasty": Shown("window 200, patience 300", "variance 200", 300),
    "variance short": Shown("window 100, patience 600", "variance 100", 600),
    "variance published": Shown("window 100, patience 1000, as published", "variance 100", 1000),
    "variance long": Shown("window 400, patience 600", "variance 400", 600),
    "holdout": Shown("`HoldoutStop()`: patience 600, the average's error", "holdout", 600, "held"),
    "holdout hasty": Shown("the same, patience 300", "holdout", 300, "held"),
    "holdout output": Shown("the output's error, patience 600", "holdout output", 600, "held"),
    "second": Shown("`HoldoutStop(second=...)`: patience 600", "second", 600),
    "discrepancy": Shown("`DiscrepancyStop()`", "discrepancy", 0),
    "discrepancy known": Shown("the same, noise level known", "discrepancy known", 0),
}
MAIN = ("variance", "holdout", "second", "discrepancy")


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """The most telling ones first."""
    first, *others = options.seeds
    sparse = [network for network in options.networks if network != "dense"]
    for network in sparse[:1]:
        for noise in options.noises:
            for image in options.images:
                yield Cell(image, noise, network, first)
    for noise in options.noises[:2]:  # these take longer: a part of them
        for network in sparse[1:]:
            for image in options.images[:2]:
                yield Cell(image, noise, network, first)
    if "dense" in options.networks:
        yield Cell(options.images[0], options.noises[:2][-1], "dense", first)
    for seed in others:
        for noise in options.noises[:2]:
            for image in options.images[:2]:
                yield Cell(image, noise, sparse[0], seed)


def clean_image(options: argparse.Namespace, image: str) -> Tensor:
    """The image [1, C, size, size]."""
    return oes.load_image(f"skimage:{image}", size=options.size).pixels


def noisy_image(clean: Tensor, noise: str, seed: int) -> Tensor:
    """With noise, clipped to 0..1."""
    if noise != "poisson":
        return oes.add_noise(clean, float(noise), seed)
    generator = torch.Generator().manual_seed(seed)
    return (torch.poisson(PHOTONS * clean, generator=generator) / PHOTONS).clamp(0, 1)


def mask_of(options: argparse.Namespace, image: str, density: float, seed: int) -> oes.Mask:
    """The mask of an image, searched once."""
    clean = clean_image(options, image)
    noisy = oes.add_noise(clean, 0.1, seed)
    net, z = oes.fresh_generator(noisy, seed=seed)
    found = oes.search_mask(
        net,
        z,
        noisy,
        density=0.2,
        steps=options.search_steps,
        lr=options.search_lr,
        kl=1e-9,
        seed=seed,
        verify=False,
        checkpoint=options.work / f"{image}-{seed}.search.ckpt",
        resume=True,
    )
    return oes.Mask.from_logits(net, found.logits, density=density, seed=seed)


class Onlooker:
    """Shows a run's outputs, and the running average of them, to rules.

    Args:
        rules: by the name of their criterion; those in ``of_outputs`` are shown no average.
        of_outputs: names.
    """

    def __init__(self, rules: dict[str, StopRule], of_outputs: Sequence[str]) -> None:
        self.rules, self._of_outputs = rules, of_outputs
        self._average: Tensor | None = None

    def __call__(self, info: oes.StepInfo) -> None:
        """Of the library's loop."""
        if self._average is None:
            self._average = info.output.clone()
        else:
            self._average = self._average.lerp(info.output, 1 - DECAY)
        if info.step == info.steps:
            return
        for name, rule in self.rules.items():
            rule.update(info.step, info.output, None if name in self._of_outputs else self._average)


def trained(options: argparse.Namespace, cell: Cell, run: str) -> Result:
    """One training: PSNR of outputs and averages, and the criteria, at each look."""
    path: Path = options.work / f"{'-'.join(map(str, cell))}-{run}.json"
    if path.is_file():
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        return found
    clean = clean_image(options, cell.image)
    noisy = noisy_image(clean, cell.noise, cell.seed)
    common: dict[str, Any] = {"every": options.every, "patience": NEVER}
    weight = None
    if run == "held":
        rules: dict[str, StopRule] = {
            name: oes.HoldoutStop(seed=cell.seed, **common) for name in ("holdout", "holdout output")
        }
        for rule in rules.values():
            weight = rule.bind(noisy, None, None)
    else:
        rules = {f"variance {w}": oes.VarianceStop(window=w, **common) for w in (100, 200, 400)}
        copy = noisy_image(clean, cell.noise, cell.seed + 1000)
        rules["second"] = oes.HoldoutStop(second=copy, **common)
        level = float((noisy - clean).square().mean().sqrt())
        for name, sigma in (("discrepancy", None), ("discrepancy known", level)):
            rules[name] = oes.DiscrepancyStop(sigma=sigma, every=options.every)
            rules[name].bind(noisy, None, None)
    net, z = oes.fresh_generator(noisy, seed=cell.seed)
    onlooker = Onlooker(rules, ("holdout output",))
    arguments: dict[str, Any] = {
        "weight": weight,
        "clean": clean,
        "average": DECAY,
        "record_every": options.every,
        "callback": onlooker,
        "verify": False,
    }
    if cell.network == "dense":
        fit = oes.baselines.dense_dip(net, z, noisy, lr=DENSE_LR, steps=options.dense_steps, **arguments)
    else:
        mask = mask_of(options, cell.image, float(cell.network), cell.seed)
        fit = oes.train_sparse(net, mask, z, noisy, steps=options.steps, **arguments)
    history = fit.history
    made = {
        "step": history.step,
        "psnr": history.psnr,
        "average": history.psnr_average,
        "noise": math.sqrt(float((noisy - clean).square().mean())),
        "estimated noise": oes.estimate_sigma(noisy),
        "collapsed": fit.collapsed,
        "curves": {name: rule.curve for name, rule in rules.items()},
    }
    path.write_text(json.dumps(made), encoding="utf-8")
    return made


def stop_of(curve: Sequence[Sequence[float]], patience: int, last: int) -> tuple[int, int]:
    """Where a rule stops: (step of its image, steps made by then).

    Args:
        curve: (step, criterion) of each look.
        patience: see :class:`Shown`.
        last: step of the run.
    """
    least, best = math.inf, last
    for step, value in curve:
        if value < least:
            least, best = value, int(step)
        if value <= 1.0 if patience == 0 else step - best >= patience:
            return best, int(step)
    return best, last


def row_of(cell: Cell, runs: dict[str, Result]) -> Result:
    """What a cell came to: the best, the end, and each rule's loss in dB beside the best of all pixels."""
    whole = runs["whole"]
    best = {name: max(whole[name]) for name in ("psnr", "average")}
    at = {name: whole["step"][whole[name].index(best[name])] for name in best}
    row: Result = {
        **cell._asdict(),
        "noise level": rounded(whole["noise"]),
        "estimated": rounded(whole["estimated noise"]),
        "steps": whole["step"][-1],
        "collapsed": whole["collapsed"],
        "best": {name: rounded(value) for name, value in best.items()},
        "best step": at,
        "end": {name: rounded(whole[name][-1]) for name in best},
        "best without the pixels left out": {name: rounded(max(runs["held"][name])) for name in best},
        "rules": {},
    }
    for name, rule in RULES.items():
        run = runs[rule.run]
        step, made = stop_of(run["curves"][rule.curve], rule.patience, run["step"][-1])
        index = run["step"].index(step)
        loss = {each: rounded(best[each] - run[each][index]) for each in best}
        row["rules"][name] = {"step": step, "steps made": made, "loss": loss}
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of what is done")
    parser.add_argument("--images", nargs="+", default=["astronaut", "camera", "chelsea", "coffee"])
    parser.add_argument("--noises", nargs="+", default=["0.1", "0.2", "0.05", "poisson"])
    parser.add_argument("--networks", nargs="+", default=["0.05", "0.2", "dense"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dense-steps", type=int, default=700)
    parser.add_argument("--search-steps", type=int, default=500)
    parser.add_argument("--search-lr", type=float, default=0.3)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", oes.OESWarning)  # what they say is in the result
    said = {name: value for name, value in vars(options).items() if name not in ("work", "json")}
    rows: list[Result] = []
    for cell in cells(options):
        row = row_of(cell, {run: trained(options, cell, run) for run in ("whole", "held")})
        rows.append(row)
        losses = " ".join(f"{name} {row['rules'][name]['loss']['average']:.2f}" for name in MAIN)
        print("-".join(map(str, cell)), losses, flush=True)
        write_result(str(options.json), {"environment": environment(), "settings": said, "cells": rows})


def losses(rows: Sequence[Result], rule: str, kind: str) -> str:
    """Mean and worst loss in dB."""
    found = [row["rules"][rule]["loss"][kind] for row in rows]
    return f"{fmean(found):.2f} ({max(found):.2f})"


def end_losses(rows: Sequence[Result], kind: str) -> str:
    """Mean and worst of what is lost at the last step."""
    found = [row["best"][kind] - row["end"][kind] for row in rows]
    return f"{fmean(found):.2f} ({max(found):.2f})"


NOISES = {"poisson": f"Poisson, {PHOTONS} photons"}
NETWORKS = {"dense": "all weights"}


def groups(rows: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """The rows by network and noise."""
    found: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        found.setdefault((row["network"], row["noise"]), []).append(row)
    return dict(sorted(found.items()))


def tables() -> str:
    """The page's tables: the rules by network and noise, then all settings of them, then the noise."""
    result = load(NAME)
    rows = result["cells"]
    parts = [caption(NAME, result)]
    for kind, what in (("average", "the running average"), ("psnr", "the output")):
        lines = []
        for (network, noise), group in groups(rows).items():
            kept = NETWORKS.get(network) or f"{100 * float(network):g} %"
            steps = sorted(row["best step"][kind] for row in group)
            at = f"{steps[0]} to {steps[-1]}" if steps[0] < steps[-1] else str(steps[0])
            figures = [losses(group, name, kind) for name in MAIN]
            lines.append([kept, NOISES.get(noise, noise), len(group), at, *figures, end_losses(group, kind)])
        header = [
            "kept",
            "noise",
            "runs",
            "best at step",
            "variance",
            "holdout",
            "second copy",
            "discrepancy",
        ]
        parts.append(f"Loss of {what} in dB:\n\n{table([*header, 'last step'], lines)}")
    lines = []
    for name, rule in RULES.items():
        made = [row["rules"][name]["steps made"] / row["steps"] for row in rows]
        figures = [losses(rows, name, kind) for kind in ("average", "psnr")]
        lines.append([rule.title, *figures, f"{100 * fmean(made):.0f} %"])
    lines.append(["all steps", *(end_losses(rows, kind) for kind in ("average", "psnr")), "100 %"])
    header = ["rule", "loss of the average, dB", "loss of the output, dB", "steps made"]
    parts.append(f"All {len(rows)} runs:\n\n{table(header, lines)}")
    sparse = [row for row in rows if row["network"] != "dense"]
    cost = [row["best"]["average"] - row["best without the pixels left out"]["average"] for row in sparse]
    rest = [row["rules"]["holdout"]["loss"]["average"] - lost for row, lost in zip(sparse, cost, strict=True)]
    share = [row["estimated"] / row["noise level"] for row in rows]
    parts.append(
        f"Of what the holdout loses with masks, {fmean(cost):.2f} dB on average ({min(cost):.2f} to "
        f"{max(cost):.2f}) is the difference between the best averages of the two trainings, with and "
        f"without the pixels; {fmean(rest):.2f} ({max(rest):.2f}) is lost by the stop. The estimated noise "
        f"is {min(share):.2f} to {max(share):.2f} times the true one.\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
