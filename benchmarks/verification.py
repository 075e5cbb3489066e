"""What the comparison of the rewritten network with the dense one costs, once a run.

python -m benchmarks.verification --mask pepper_mask.npz --size 512

One size a process: peak memory is that of the process so far.
"""

from __future__ import annotations

import argparse
import resource

import torch

import oes_fast as oes
from benchmarks.timer import interleave


def peak_mb() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mask", help="mask file; without one, the network of a search")
    parser.add_argument("--size", type=int, default=512, help="image side")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = oes.models.skip(seed=0)
    z = oes.noise_input(32, (options.size, options.size), seed=0)
    mask = None if options.mask is None else oes.Mask.load(options.mask, net)
    dense = interleave({"dense": lambda: net(z).square().mean().backward()}, rounds=4, warmup=0)["dense"]
    before = peak_mb()

    def bind(verify: bool) -> None:
        oes.sparsify(net, mask, verify=verify).train().plan(z)

    # Once each, as a run does: whatever the first call has to load and to choose is part of it.
    once = interleave({"without": lambda: bind(False), "with": lambda: bind(True)}, rounds=1, warmup=0)
    binding, compared = (once[name]["min"] / 1e3 for name in ("without", "with"))
    run = "search" if mask is None else "training"
    print(
        f"{options.size} px, {options.threads} threads, {run}: dense step {dense['min'] / 1e3:.2f} s, "
        f"binding {binding:.1f} s, with the comparison {compared:.1f} s; "
        f"peak memory {before:.0f} MB after dense steps, {peak_mb():.0f} MB after the comparison"
    )


if __name__ == "__main__":
    main()
