"""Is a searched mask worth its search: against random masks of the same density in every parameter tensor.

    python -m benchmarks.mask_study --image skimage:astronaut --size 256 --search-steps 2000 \
        --train-steps 2000 --seeds 0 1 2 --json benchmarks/results/mask-study-256.json

A seed is that of noise, fresh weights, input, search and random masks. For each the study reports
the PSNR of the initial weights under the mask, without any training, and that of the trained sparse network,
with the history. Every finished run is written at once.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import oes_fast as oes
from benchmarks.report import write_result
from oes_fast.bench.environment import environment
from oes_fast.models import ImageGenerator
from oes_fast.pipelines.extract_mask import MASK_OPTIONS

FOUND, RANDOM = "searched", "random"


def study(options: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """One seed: the searched mask first, then ``options.random`` shuffled ones."""
    clean = oes.load_image(options.image, size=options.size).pixels
    noisy = oes.add_noise(clean, options.sigma, seed)
    net, z = oes.fresh_generator(noisy, seed=seed)
    found = oes.search_mask(
        net,
        z,
        noisy,
        density=options.density,
        steps=options.search_steps,
        lr=options.search_lr,
        kl=options.kl,
        mask_option=options.mask_option,
        seed=seed,
        clean=clean,
        backend=options.backend,
        record_every=max(1, options.search_steps // options.records),
    )
    search = {
        "seconds": found.seconds,
        "objective": found.history.loss[-1],
        "history": {name: found.history[name] for name in ("step", "loss", "psnr")},
        "density of tensors": found.mask.layer_density(net),
    }
    common = {
        "seed": seed,
        "backend": found.backend,
        "precision": "float32",
        "noisy psnr": oes.psnr(noisy, clean),
    }
    train = _trainer(options, net, z, noisy, clean)
    yield {**common, "mask": FOUND, **train(found.mask), "search": search}
    for number in range(options.random):
        # Seeds of shuffles: distinct for every seed of the study.
        yield {**common, "mask": RANDOM, **train(found.mask.shuffled(net, seed=1000 * seed + number))}


def _trainer(
    options: argparse.Namespace, net: ImageGenerator, z: Tensor, noisy: Tensor, clean: Tensor
) -> Callable[[oes.Mask], dict[str, Any]]:
    def train(mask: oes.Mask) -> dict[str, Any]:
        # The first record is the output of the masked initial weights.
        fit = oes.train_sparse(
            net,
            mask,
            z,
            noisy,
            steps=options.train_steps,
            lr=options.train_lr,
            clean=clean,
            average=0.99,
            backend=options.backend,
            record_every=max(1, options.train_steps // options.records),
        )
        best = fit.history.best()
        assert best is not None
        return {
            "density": mask.density,
            "psnr of mask alone": fit.history.psnr[0],
            "peak": {"step": best.step, "psnr": best.psnr},
            "last": {"psnr": fit.history.psnr[-1], "psnr of average": fit.history.psnr_average[-1]},
            "collapsed": fit.collapsed,
            "seconds": fit.seconds,
            "history": {name: fit.history[name] for name in ("step", "loss", "psnr", "psnr_average")},
        }

    return train


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over the runs of either kind of mask, and how far the searched ones are ahead."""
    means: dict[str, dict[str, Any]] = {}
    for kind in (FOUND, RANDOM):
        chosen = [run for run in runs if run["mask"] == kind]
        if chosen:
            means[kind] = {
                "runs": len(chosen),
                "collapsed": sum(run["collapsed"] for run in chosen),
                "psnr of mask alone": fmean(run["psnr of mask alone"] for run in chosen),
                "peak": fmean(run["peak"]["psnr"] for run in chosen),
                "last": fmean(run["last"]["psnr"] for run in chosen),
                "last of average": fmean(run["last"]["psnr of average"] for run in chosen),
            }
    if len(means) == 2:
        names = ("psnr of mask alone", "peak", "last", "last of average")
        means["ahead by"] = {name: means[FOUND][name] - means[RANDOM][name] for name in names}
    return means


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="skimage:astronaut")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--search-steps", type=int, default=2000)
    parser.add_argument("--search-lr", type=float, default=1e-2)
    parser.add_argument("--kl", type=float, default=1e-9)
    parser.add_argument("--mask-option", choices=MASK_OPTIONS, default="topk")
    parser.add_argument("--train-steps", type=int, default=2000)
    parser.add_argument("--train-lr", type=float, default=1e-2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--random", type=int, default=1, help="random masks for every searched one")
    parser.add_argument("--records", type=int, default=200, help="records of every history")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", default="benchmarks/results/mask-study.json", help="where to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", oes.CollapsedRunWarning)  # it is in the result
    settings = vars(options) | {name: Path(getattr(options, name)).name for name in ("image", "json")}
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        for run in study(options, seed):
            runs.append(run)
            print(
                f"seed {seed}, {run['mask']}: mask alone {run['psnr of mask alone']:.2f} dB, "
                f"peak {run['peak']['psnr']:.2f} dB at {run['peak']['step']}, "
                f"last {run['last']['psnr']:.2f} dB, average {run['last']['psnr of average']:.2f} dB"
                f"{', collapsed' if run['collapsed'] else ''}",
                flush=True,
            )
            result = {"environment": environment(), "options": settings, "summary": summary(runs)}
            write_result(options.json, {**result, "runs": runs})
    for kind, figures in summary(runs).items():
        texts = (f"{n} {v if isinstance(v, int) else format(v, '.2f')}" for n, v in figures.items())
        print(f"{kind}: {', '.join(texts)}", flush=True)


if __name__ == "__main__":
    main()
