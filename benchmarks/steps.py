"""Steps of search and training, and of the mask alone: every backend against the published way, interleaved.

    python -m benchmarks.steps --size 256 512 --threads 1 2 --rounds 10 --json benchmarks/results/steps.json

Masks are npz files of packed bits (arrays ``bits`` and ``count``) or oes_fast mask files; without one, a
random mask of 5 % with the published network's usual share of dead channels cannot be had, so at least one
must be given. Besides the backends of oes_fast, --backend takes contestants of the training alone:
"compiled", the published training through torch.compile, and, where SparseProp is installed, "sparseprop"
and "sparseprop-all", the same training with that package's convolutions (benchmarks/sparseprop.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.sparseprop import SETTINGS, SparsePropTraining, require
from benchmarks.timer import compared
from oes_fast.bench import steps as bench
from oes_fast.bench.environment import environment
from oes_fast.bench.published import PublishedSearch
from oes_fast.flat import flatten
from oes_fast.models import Generator
from oes_fast.ops import gumbel_mask, mask_update
from oes_fast.precision import PRECISIONS


def training_steps(
    net: Generator, mask: oes.Mask, z: Tensor, noisy: Tensor, backends: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """:func:`oes_fast.bench.steps.training_steps`, with SparseProp's among the backends."""
    others = [name for name in backends if name not in SETTINGS]
    steps = bench.training_steps(net, mask, z, noisy, others)
    for name in set(backends) & SETTINGS.keys():
        steps[name] = SparsePropTraining(net, mask.flat, z, noisy, share=SETTINGS[name]).step
    return {name: steps[name] for name in (bench.PUBLISHED, *backends)}


def mask_steps(
    net: Generator, z: Tensor, noisy: Tensor, backends: list[str]
) -> dict[str, Callable[[], object]]:
    """What a search step does but for the network: drawing the mask, KL term, chain rule and Adam."""
    published = PublishedSearch(net, z, noisy)
    generator = torch.Generator().manual_seed(0)
    grads = [1e-6 * torch.randn(p.shape, generator=generator).to(p) for p in net.parameters()]
    steps: dict[str, Callable[[], object]] = {"published": lambda: published.mask_step(grads)}
    w0, grad = flatten(net), torch.cat([g.flatten() for g in grads])
    for backend in backends:
        if backend in (bench.COMPILED, "torch") or backend in SETTINGS:  # "torch" is the reference here
            continue
        steps[backend] = _mask_stepper(w0, grad, backend)
    return steps


def _mask_stepper(w0: Tensor, grad: Tensor, backend: str) -> Callable[[], object]:
    logits, exp_avg, exp_avg_sq = torch.zeros_like(w0), torch.zeros_like(w0), torch.zeros_like(w0)
    weights = torch.empty_like(w0)
    step = 0

    def call() -> None:
        nonlocal step
        gumbel_mask(w0, logits, seed=0, step=step, out=weights, backend=backend)
        mask_update(logits, grad, w0, exp_avg, exp_avg_sq, seed=0, step=step, backend=backend)
        step += 1

    return call


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", nargs="+", required=True, help="mask files")
    parser.add_argument("--size", nargs="+", type=int, default=[512], help="image sides")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--backend", nargs="+", default=["reference", "torch", "auto"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of both sides")
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    if not SETTINGS.keys().isdisjoint(options.backend):
        try:
            require()
        except oes.BackendError as error:
            parser.error(str(error))
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for size in options.size:
            z = oes.noise_input(32, (size, size), seed=0, device=options.device)
            noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(
                options.device
            )
            net = oes.models.skip(seed=0).to(options.device)
            cases = {
                f"training, {Path(path).stem}": training_steps(
                    net, oes.Mask.load(path, net), z, noisy, options.backend
                )
                for path in options.mask
            }
            others = [name for name in options.backend if name not in SETTINGS]
            cases["search"] = bench.search_steps(net, z, noisy, others)
            cases["search, mask alone"] = mask_steps(net, z, noisy, options.backend)
            for case, steps in cases.items():
                found = compared(steps, "published", rounds=options.rounds, precision=options.precision)
                times, faster = found["ms"], found["times faster"]
                rows.append({"case": case, "size": size, "threads": threads, **found})
                text = "  ".join(
                    f"{name} {t['min']:.1f}/{t['median']:.1f} ms ({faster[name]['min']:.2f}x/"
                    f"{faster[name]['median']:.2f}x)"
                    for name, t in times.items()
                )
                print(f"{case}, {size} px, {threads} threads, minimum/median: {text}", flush=True)
    if options.json:
        write_result(options.json, {"environment": environment(), "rounds": options.rounds, "steps": rows})


if __name__ == "__main__":
    main()
