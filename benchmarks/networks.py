"""Training steps of networks that people bring: in plain PyTorch, in chains broken at joins, in whole chains.

    python -m benchmarks.networks --size 256 --threads 1 2 --rounds 5 --json benchmarks/results/networks.json

Each network is timed with a random mask that keeps 5 % and 20 % of the weights of its convolutions and all
biases and norms, and without a mask, as the mask search runs it. "dense" is the network itself, its weights
multiplied by the mask before each step; "reference" the rewritten network on plain PyTorch; "rows" the C++
kernels with chains that end at every join; "chains" with chains that are graphs. A step is the image, its
squared error to a target and the gradient of all weights. Networks of other packages are left out where these
are not installed.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.timer import compared
from oes_fast.bench.environment import environment
from oes_fast.flat import FlatLayout, flatten
from oes_fast.rewrite import SparseGenerator, ir
from oes_fast.rewrite.run.chain_cpu import CpuChain
from oes_fast.rewrite.run.context import FusedLoss

DENSITIES = (0.05, 0.2, 1.0)


def _deepinv(size: int) -> tuple[nn.Module, Tensor]:
    net = importlib.import_module("deepinv").models.UNet(
        in_channels=3, out_channels=3, scales=4, channels_per_scale=[32, 64, 128, 256]
    )
    return net, torch.randn(1, 3, size, size)


def _monai(size: int) -> tuple[nn.Module, Tensor]:
    net = importlib.import_module("monai.networks.nets").UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=3,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )
    return net, torch.randn(1, 3, size, size)


def _of(name: str, **options: Any) -> Callable[[int], tuple[nn.Module, Tensor]]:
    return lambda size: oes.models.generator(name, (3, size, size), seed=0, **options)


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "skip, the published one": _of("skip"),
    "skip with 4 skip channels": _of("skip", num_channels_skip=4),
    "unet": _of("unet"),
    "resnet": _of("resnet"),
    "deep_decoder": _of("deep_decoder"),
    "conv_decoder": _of("conv_decoder"),
    "deepinv's UNet": _deepinv,
    "monai's UNet": _monai,
}


@contextmanager
def chains_end_at_joins() -> Iterator[None]:
    """Inside, chains of the C++ kernels are rows of convolutions."""
    CpuChain.joins = False
    try:
        yield
    finally:
        CpuChain.joins = True


def steps(
    net: nn.Module, z: Tensor, density: float
) -> tuple[dict[str, Callable[[], object]], dict[str, dict[str, int]]]:
    """A training step for each contestant, and what chains there are in ours."""
    layout = FlatLayout.of(net)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(layout.numel, generator=generator) < density
    for parameter, view in zip(net.parameters(), layout.views(keep).values(), strict=True):
        if parameter.ndim < 2:
            view.fill_(True)
    mask = oes.Mask.from_flat(net, keep) if density < 1 else None
    with torch.no_grad():
        target = torch.rand_like(net(z))
    flat = flatten(net).requires_grad_()
    buffers = dict(net.named_buffers())

    def dense() -> None:
        weights = flat if mask is None else flat * keep
        image = functional_call(net, (layout.views(weights), buffers), (z,))
        torch.autograd.grad((image - target).square().mean(), flat)

    def step_of(fast: SparseGenerator) -> Callable[[], object]:
        def step() -> None:
            loss = FusedLoss(target)
            image = fast.evaluate(
                fast.weights, z, dict(fast.dense_buffers()), update_stats=True, fused_loss=loss
            )
            value = (image - target).square().mean() if loss.loss is None else loss.loss
            torch.autograd.grad(value, fast.weights)

        return step

    found: dict[str, Callable[[], object]] = {"dense": dense}
    facts = {}
    for name, backend in (("reference", "torch"), ("chains", "cpu")):
        fast = oes.sparsify(net, mask, backend=backend, verify=False).train()
        found[name] = step_of(fast)
    facts["chains"] = chain_facts(fast, z)
    with chains_end_at_joins():
        rows = oes.sparsify(net, mask, backend="cpu", verify=False).train()
        found["rows"] = step_of(rows)
        facts["rows"] = chain_facts(rows, z)  # its plan is made here
    return found, facts


def chain_facts(fast: SparseGenerator, z: Tensor) -> dict[str, int]:
    """How many chains there are, convolutions in them, and convolutions outside whose result varies."""
    plan = fast.plan(z)
    alive = [
        node
        for node in plan.graph.nodes
        if isinstance(node.stage, ir.Conv | ir.UpConv)
        and len(plan.alive[node].varying)
        and node not in plan.input_only
    ]
    inside = sum(node in plan.chained for node in alive)
    return {"chains": len(plan.chains), "convolutions": inside, "outside": len(alive) - inside}


def main() -> None:
    """Time all networks and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = []
    for name in options.networks:
        for density in DENSITIES:
            try:
                net, z = NETWORKS[name](options.size)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                break
            net.train()
            case: dict[str, Any] = {
                "network": name,
                "density": density,
                "parameters": sum(p.numel() for p in net.parameters()),
                "threads": {},
            }
            contestants, case["chains"] = steps(net, z, density)
            for threads in options.threads:
                torch.set_num_threads(threads)
                case["threads"][str(threads)] = compared(
                    contestants, "dense", rounds=options.rounds, warmup=1
                )
            cases.append(case)
            print(case, flush=True)
            if options.json is not None:
                write_result(
                    str(options.json), {"environment": environment(), "size": options.size, "cases": cases}
                )


if __name__ == "__main__":
    main()
