"""Training steps of oes_fast beside other ways to train the same network, in turn in one run.

    python -m benchmarks.peers --mask pepper_mask.npz

Peers are the published code as it is ("published"), through torch.compile ("compiled") and with SparseProp's
convolutions ("sparseprop"), and the loop of deepinv's DeepImagePrior ("deepinv"), which has no mask and
trains all weights of the same network. One that cannot be had here is left out, and the result says why.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.sparseprop import SparsePropTraining
from benchmarks.table_text import NAMES, RESULTS, caption, load, table, two
from benchmarks.timer import interleave
from oes_fast.bench.environment import environment
from oes_fast.bench.steps import COMPILED, PUBLISHED, Step, training_steps
from oes_fast.errors import BackendError

NAME = "peers"
OURS = "auto"
# Of a call of deepinv's loop, which begins with a new input and a new Adam and ends with one image more, a
# thirtieth of the call or so. Its loss is its own, and no gradient is masked.
ITERATIONS = 10


class Peer(NamedTuple):
    """What is timed, and the number of steps that it makes in a call."""

    call: Step
    steps: int = 1


def peers(net: nn.Module, mask: oes.Mask, z: Tensor, noisy: Tensor) -> tuple[dict[str, Peer], dict[str, str]]:
    """(peers that are there, why the others are not), oes_fast first.

    Args:
        net: generator; left alone.
        mask: which of its weights are trained.
        z: its input, shape [1, C, H, W].
        noisy: the image, shape [1, C', H, W].
    """
    found = {name: Peer(step) for name, step in training_steps(net, mask, z, noisy, [OURS]).items()}
    found = {OURS: found[OURS], PUBLISHED: found[PUBLISHED]}
    absent: dict[str, str] = {}
    makers: dict[str, Callable[[], Peer]] = {
        COMPILED: lambda: _compiled(net, mask, z, noisy),
        "sparseprop": lambda: Peer(SparsePropTraining(net, mask.flat, z, noisy).step),
        "deepinv": lambda: _deepinv(net, z, noisy),
    }
    for name, make in makers.items():
        try:
            found[name] = make()
        except (BackendError, ImportError, RuntimeError, OSError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0].partition(";")[0]
            absent[name] = re.sub(r"/\S*/", "", said)  # without folders of this machine
    return found, absent


def _compiled(net: nn.Module, mask: oes.Mask, z: Tensor, noisy: Tensor) -> Peer:
    torch._dynamo.reset()  # else a second size is compiled for all sizes, which is slower
    step = training_steps(net, mask, z, noisy, [COMPILED])[COMPILED]
    step()  # compiles: says here where there is no compiler
    return Peer(step)


def _deepinv(net: nn.Module, z: Tensor, noisy: Tensor) -> Peer:
    import deepinv

    loop = deepinv.models.DeepImagePrior(
        copy.deepcopy(net), tuple(z.shape[1:]), iterations=ITERATIONS, learning_rate=1e-3
    )
    physics = deepinv.physics.Denoising()
    return Peer(lambda: loop(noisy, physics), ITERATIONS)


def measure(found: Mapping[str, Peer], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of each, in turn."""
    times = interleave({name: peer.call for name, peer in found.items()}, rounds=rounds, warmup=2)
    return {
        name: {key: value / found[name].steps for key, value in taken.items()}
        for name, taken in times.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file")
    parser.add_argument("--size", nargs="+", type=int, default=[256, 512], help="image sides")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=RESULTS / f"{NAME}.json", help="where to write")
    options = parser.parse_args()
    net = oes.models.skip(seed=0)
    mask = oes.Mask.load(options.mask, net)
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    result = {"environment": environment(), "mask": Path(options.mask).name, "density": mask.density}
    result |= {"rounds": options.rounds, "absent": absent, "steps": rows}
    before = torch.get_num_threads()
    try:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for size in options.size:
                z = oes.noise_input(32, (size, size), seed=0)
                noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
                found, missing = peers(net, mask, z, noisy)
                absent |= missing
                rows.append({"size": size, "threads": threads, "ms": measure(found, options.rounds)})
                said = "  ".join(f"{name} {two(times, 1)}" for name, times in rows[-1]["ms"].items())
                print(f"{size} px, {threads} threads, minimum (median) ms: {said}", flush=True)
                write_result(str(options.json), result)
    finally:
        torch.set_num_threads(before)


def tables() -> str:
    """A line for each size and number of threads, and what was absent."""
    result = load(NAME)
    names = list(dict.fromkeys(name for row in result["steps"] for name in row["ms"]))
    lines: list[list[object]] = []
    for row in result["steps"]:
        ours = row["ms"][OURS]["median"]
        cells = [
            f"{two(times, 0 if times['min'] >= 100 else 1)}, {times['median'] / ours:.1f} x"
            if (times := row["ms"].get(name)) is not None and name != OURS
            else (two(row["ms"][OURS], 1) if name == OURS else "")
            for name in names
        ]
        lines.append([row["size"], row["threads"], *cells])
    header = ["pixels", "threads", *(f"{NAMES[name]}, ms" for name in names)]
    text = f"{caption(NAME, result)}\n{table(header, lines)}"
    for name, reason in result["absent"].items():
        text += f"\nNot measured: {NAMES[name]}, {reason}.\n"
    return text


if __name__ == "__main__":
    main()
