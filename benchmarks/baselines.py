"""Steps of the baselines: plain PyTorch, the way they are published, against the library's, interleaved.

    python -m benchmarks.baselines --size 256 512 --threads 1 2 --json benchmarks/results/baselines.json

Dense DIP without and with noise on its input, SGLD, and the Deep Decoder, dense and with masks that keep a
share of its convolutions' weights and all of batch norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.timer import compared
from oes_fast.bench.environment import environment
from oes_fast.copies import copy_network
from oes_fast.pipelines.functions import make_function
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.input_noise import InputNoise
from oes_fast.pipelines.objective import SquaredError
from oes_fast.pipelines.schedule import Schedule
from oes_fast.pipelines.train_run import TrainRun
from oes_fast.pipelines.weight_noise import WeightNoise
from oes_fast.reference.philox import STEP_INPUT_NOISE

INPUT_NOISE, PARAM_NOISE, LR = 1 / 30, 2.0, 1e-2


def published_step(
    net: nn.Module, z: Tensor, noisy: Tensor, *, input_noise: float = 0.0, weight_noise: float = 0.0
) -> Callable[[], object]:
    """A step of the published loops: eager PyTorch, its Adam, its random numbers."""
    net = copy_network(net).train()
    adam = torch.optim.Adam(net.parameters(), lr=LR)
    noise = torch.empty_like(z)

    def step() -> None:
        source = z + noise.normal_() * input_noise if input_noise else z
        adam.zero_grad()
        F.mse_loss(net(source), noisy).backward()
        adam.step()
        if weight_noise:
            for parameter in net.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data + torch.randn(parameter.shape) * weight_noise

    return step


def our_step(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    backend: str,
    mask: oes.Mask | None = None,
    *,
    input_noise: float = 0.0,
    weight_noise: float = 0.0,
) -> Callable[[], object]:
    """A step as the pipelines make it, with its hooks."""
    hooks: list[StepHook] = []
    function, chosen = make_function(net, z, mask, backend, verify=False, noisy=input_noise > 0)
    if input_noise:
        hooks.append(InputNoise(function, input_noise, seed=0, stream=STEP_INPUT_NOISE))
    if weight_noise:
        hooks.append(WeightNoise(net, weight_noise, Schedule.of(LR), seed=0))
    run = TrainRun(function, SquaredError(noisy), LR, None, chosen, hooks=hooks)
    count = 0

    def step() -> None:
        nonlocal count
        run.begin(count, final=False)
        run.evaluate(count, final=False)
        run.update(count)
        run.finish(count)
        count += 1

    return step


def decoder_mask(net: nn.Module, density: float) -> oes.Mask:
    """A share of the convolutions' weights drawn at random, and all of batch norm."""
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(p.shape, generator=generator) < density if p.ndim == 4 else torch.ones_like(p).bool()
        for name, p in net.named_parameters()
    }
    return oes.Mask.from_dict(net, masks)


def cases(size: int, backend: str) -> dict[str, dict[str, Callable[[], object]]]:
    """What is compared, by name: "published" first."""
    noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    net, z = oes.fresh_generator(noisy, seed=0)
    dense: dict[str, Any] = {"input_noise": INPUT_NOISE}
    langevin: dict[str, Any] = {"input_noise": INPUT_NOISE, "weight_noise": PARAM_NOISE * LR}
    found = {
        name: {
            "published": published_step(net, z, noisy, **options),
            "ours": our_step(net, z, noisy, backend, **options),
        }
        for name, options in (("dense DIP", {}), ("dense DIP, input noise", dense), ("SGLD", langevin))
    }
    decoder, small = oes.baselines.fresh_deep_decoder(noisy, seed=0)
    plain = published_step(decoder, small, noisy)
    found["Deep Decoder"] = {"published": plain, "ours": our_step(decoder, small, noisy, backend)}
    for density in (0.05, 0.2, 0.5):
        mask = decoder_mask(decoder, density)
        found[f"Deep Decoder, {density:.0%} of the weights"] = {
            "published": plain,
            "ours": our_step(decoder, small, noisy, backend, mask),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", type=int, default=[256], help="image sides, multiples of 32")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for size in options.size:
            for case, steps in cases(size, options.backend).items():
                found = compared(steps, "published", rounds=options.rounds)
                rows.append({"case": case, "size": size, "threads": threads, **found})
                published, ours = (found["ms"][name]["median"] for name in ("published", "ours"))
                print(
                    f"{case}, {size} px, {threads} threads, medians: published {published:.1f} ms, ours "
                    f"{ours:.1f} ms, {published / ours:.2f}x",
                    flush=True,
                )
    if options.json:
        write_result(options.json, {"environment": environment(), "rounds": options.rounds, "steps": rows})


if __name__ == "__main__":
    main()
