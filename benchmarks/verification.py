"""What the comparison of the rewritten network with the dense one costs, once a run.

python -m benchmarks.verification --mask pepper_mask.npz --size 512

One size a process: peak memory is that of the process so far.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import oes_fast as oes


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
    dense = []
    for _ in range(4):
        begin = time.perf_counter()
        net(z).square().mean().backward()
        dense.append(time.perf_counter() - begin)
    before = peak_mb()
    seconds = {}
    for verify in (False, True):
        begin = time.perf_counter()
        oes.sparsify(net, mask, verify=verify).train().plan(z)
        seconds[verify] = time.perf_counter() - begin
    run = "search" if mask is None else "training"
    print(
        f"{options.size} px, {options.threads} threads, {run}: dense step {min(dense):.2f} s, "
        f"binding {seconds[False]:.1f} s, with the comparison {seconds[True]:.1f} s; "
        f"peak memory {before:.0f} MB after dense steps, {peak_mb():.0f} MB after the comparison"
    )


if __name__ == "__main__":
    main()
