"""PSNR over the steps of a Sparse-DIP training, for several seeds and backends.

    python -m benchmarks.curve --image pepper.png --mask pepper_mask.npz --steps 3000 --backend auto \
        --json benchmarks/results/curve.json

The seed is that of the noise, the input and the fresh weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import oes_fast as oes
from benchmarks.report import write_result
from oes_fast.bench.environment import environment
from oes_fast.precision import PRECISIONS


def curve(
    image: str,
    mask: str,
    *,
    size: int | None,
    sigma: float,
    seed: int,
    steps: int,
    backend: str,
    precision: str = "float32",
) -> Any:
    """One training: PSNR of the output and of the running average at every recorded step."""
    clean = oes.load_image(image, size=size).pixels
    noisy = oes.add_noise(clean, sigma, seed)
    net, z = oes.fresh_generator(noisy, seed=seed)
    fit = oes.train_sparse(
        net,
        oes.Mask.load(mask, net),
        z,
        noisy,
        steps=steps,
        clean=clean,
        average=0.99,
        backend=backend,
        precision=precision,
        record_every=max(1, steps // 500),
    )
    best = fit.history.best()
    assert best is not None
    best_average = max(fit.history, key=lambda record: record.psnr_average)
    return {
        "seed": seed,
        "backend": fit.backend,
        "precision": precision,
        "noisy psnr": oes.psnr(noisy, clean),
        "peak": {"step": best.step, "psnr": best.psnr},
        "peak of average": {"step": best_average.step, "psnr": best_average.psnr_average},
        "last": {"psnr": fit.history.psnr[-1], "psnr of average": fit.history.psnr_average[-1]},
        "seconds": fit.seconds,
        "history": {name: fit.history[name] for name in ("step", "loss", "psnr", "psnr_average")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--mask", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs: list[Any] = []
    for backend in options.backend:
        for seed in options.seeds:
            run = curve(
                options.image,
                options.mask,
                size=options.size,
                sigma=options.sigma,
                seed=seed,
                steps=options.steps,
                backend=backend,
                precision=options.precision,
            )
            runs.append({"asked": backend, **run})
            last, peak = run["last"], run["peak"]
            print(
                f"{backend}, seed {seed}: {last['psnr']:.2f} dB at {options.steps}, "
                f"peak {peak['psnr']:.2f} dB at {peak['step']}, "
                f"average {last['psnr of average']:.2f} dB, {run['seconds']:.0f} s",
                flush=True,
            )
        mean = fmean(run["last"]["psnr"] for run in runs if run["asked"] == backend)
        print(f"{backend}: mean {mean:.3f} dB at {options.steps}", flush=True)
    if options.json:
        files = {name: Path(getattr(options, name)).name for name in ("image", "mask", "json")}
        settings = vars(options) | files
        write_result(options.json, {"environment": environment(), "options": settings, "runs": runs})


if __name__ == "__main__":
    main()
