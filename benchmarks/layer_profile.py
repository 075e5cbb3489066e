"""The layer profile that the package brings, and what a mask drawn from it is worth.

    python -m benchmarks.layer_profile make pepper_mask.npz  # writes oes_fast/pruning/layer_profile.json
    OMP_NUM_THREADS=1 python -m benchmarks.layer_profile measure --json result.json

Measured is the PSNR of trainings of one image that differ in the mask alone: the noise, the weights, and the
input are those of the seed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.table_text import ROOT, Result, caption, load, table
from oes_fast.bench.environment import environment
from oes_fast.pipelines.presets import PRESETS

NAME = "layer-profile"
SIGMA = 0.1
DIGITS = 6  # of the densities
KINDS = {
    "profile": "`oes.pruning.profile`",
    "random": "`oes.pruning.random`, which keeps biases and batch norms",
    "random, all compete": '`oes.pruning.random(..., small="score")`',
    "search": "a search of the preset `fast`",
}


def make(mask: Path, path: Path) -> None:
    """Write the layer profile of a mask of the published network."""
    net = oes.models.skip(device="meta")
    found = oes.Mask.load(mask, net)
    layers = {name: round(share, DIGITS) for name, share in found.layer_density(net).items()}
    text = json.dumps({"source": mask.name, "density": found.density, "layers": layers}, indent=1)
    path.write_text(text + "\n", "utf-8")


def trainings(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each density, seed, and kind of mask."""
    clean = oes.load_image(f"skimage:{options.image}", size=options.size).pixels
    for density in options.densities:
        for seed in options.seeds:
            noisy = oes.add_noise(clean, SIGMA, seed)
            net, z = oes.fresh_generator(noisy, seed=seed)
            for kind in KINDS:
                began = time.monotonic()
                mask = mask_of(kind, net, z, noisy, density, seed)
                found = time.monotonic() - began
                fit = oes.train_sparse(
                    net,
                    mask,
                    z,
                    noisy,
                    clean=clean,
                    steps=options.steps,
                    average=0.99,
                    seed=seed,
                    verify=False,
                )
                average = np.array(fit.history.psnr_average)
                row = {"density": density, "seed": seed, "mask": kind, "kept": mask.kept}
                row |= {"PSNR": round(float(average[-1]), 3), "best PSNR": round(float(average.max()), 3)}
                row |= {
                    "seconds of the mask": round(found, 2),
                    "seconds of the training": round(fit.seconds, 2),
                }
                print(row, flush=True)
                yield row


def mask_of(
    kind: str, net: torch.nn.Module, z: torch.Tensor, noisy: torch.Tensor, density: float, seed: int
) -> oes.Mask:
    """The mask to train with."""
    fast = PRESETS["fast"]
    ways: dict[str, Callable[[], oes.Mask]] = {
        "profile": lambda: oes.pruning.profile(net, density=density, seed=seed),
        "random": lambda: oes.pruning.random(net, density=density, seed=seed),
        "random, all compete": lambda: oes.pruning.random(net, density=density, small="score", seed=seed),
        "search": lambda: (
            oes.search_mask(
                net,
                z,
                noisy,
                seed=seed,
                verify=False,
                **fast.search_arguments() | {"density": density},
            ).mask
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oes.EmptyLayerWarning)
        return ways[kind]()


def tables() -> str:
    """For docs/pruning.md: the mean over the seeds and, in brackets, each of them."""
    result: Result = load(NAME)
    densities = sorted({row["density"] for row in result["rows"]})
    lines = []
    for kind, title in KINDS.items():
        cells = [title]
        for density in densities:
            rows = [row for row in result["rows"] if (row["mask"], row["density"]) == (kind, density)]
            each = ", ".join(f"{row['PSNR']:.2f}" for row in rows)
            cells.append(f"{fmean(row['PSNR'] for row in rows):.2f} dB ({each})")
        lines.append(
            [
                *cells,
                f"{fmean(row['seconds of the mask'] for row in result['rows'] if row['mask'] == kind):.1f} s",
            ]
        )
    header = ["mask", *(f"density {density:g}" for density in densities), "time to make it"]
    return f"{caption(NAME, result)}\n\n{table(header, lines)}"


def main() -> None:
    """Make the profile, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    making = commands.add_parser("make")
    making.add_argument("mask", type=Path)
    making.add_argument("--out", type=Path, default=ROOT / "oes_fast/pruning/layer_profile.json")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--image", default="astronaut")
    measuring.add_argument("--size", type=int, default=256)
    measuring.add_argument("--steps", type=int, default=1000)
    measuring.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    measuring.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.2])
    measuring.add_argument("--json", default=str(ROOT / f"benchmarks/results/{NAME}.json"))
    options = parser.parse_args()
    if options.what == "make":
        make(options.mask, options.out)
        return
    began = time.monotonic()
    rows = list(trainings(options))
    asked = {"image": options.image, "size": options.size, "sigma": SIGMA, "steps": options.steps}
    seconds = {"seconds": round(time.monotonic() - began)}
    write_result(options.json, {"environment": environment(), **asked, **seconds, "rows": rows})


if __name__ == "__main__":
    main()
