"""A training loop of one's own (docs/own_training_loop.md) beside the loop of train_sparse, interleaved.

python -m benchmarks.own_loop --mask pepper_mask.npz --size 512 --threads 2 --json own-loop.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.timer import interleave
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import training_steps
from oes_fast.models import Generator


def own_step(
    net: Generator, mask: oes.Mask, z: Tensor, noisy: Tensor, *, fused: bool | None
) -> Callable[[], None]:
    """One step as the page writes it."""
    fast = oes.sparsify(net, mask, verify=False).train()
    adam = torch.optim.Adam(fast.parameters(), lr=1e-2, fused=fused)

    def step() -> None:
        loss = F.mse_loss(fast(z), noisy)
        adam.zero_grad()
        loss.backward()
        adam.step()

    return step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file")
    parser.add_argument("--size", type=int, default=512, help="image side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = oes.models.skip(seed=0)
    mask = oes.Mask.load(options.mask, net)
    z = oes.noise_input(32, (options.size, options.size), seed=0)
    noisy = torch.rand(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    steps = {
        "`train_sparse`": training_steps(net, mask, z, noisy, ["auto"])["auto"],
        "`sparsify`, `Adam(fused=True)`": own_step(net, mask, z, noisy, fused=True),
        "`sparsify`, `Adam()`": own_step(net, mask, z, noisy, fused=None),
    }
    times = interleave(steps, rounds=options.rounds)
    for name, found in times.items():
        print(f"{name}: {found['min']:.1f} ms, median {found['median']:.1f} ms", flush=True)
    if options.json:
        result = {"environment": environment(), "size": options.size, "rounds": options.rounds, "ms": times}
        write_result(options.json, result)


if __name__ == "__main__":
    main()
