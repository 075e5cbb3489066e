"""Training steps with noise on the input, and of several images: on one backend, interleaved.

    python -m benchmarks.options --mask pepper_mask.npz --size 256 --threads 1 --json options.json

Every step is that of the pipelines. "reference" is the network as it is under the mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.report import write_result
from benchmarks.timer import compared
from oes_fast.bench.environment import environment
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.train_run import TrainRun

LR, INPUT_NOISE = 1e-2, 0.03


def training_step(
    net: nn.Module, mask: oes.Mask | None, z: Tensor, noisy: Tensor, backend: str, input_noise: float = 0.0
) -> Callable[[], object]:
    """A step of :func:`oes_fast.train_sparse`, or with the mask None of :func:`dense_dip`."""
    options = RunOptions(
        steps=1 << 20, lr=LR, clean=None, backend=backend, verify=False, precision="float32", record_every=10,
        callback=None, progress=False, checkpoint=None, checkpoint_seconds=60.0, resume=False,
        input_noise=input_noise,
    )  # fmt: skip
    setup = Setup(net, z, noisy, options)
    function, chosen = setup.bind(mask)
    run = TrainRun(function, setup.objective, setup.rate, None, chosen, hooks=setup.hooks)
    count = 0

    def step() -> None:
        nonlocal count
        run.begin(count, final=False)
        run.evaluate(count, final=False)
        run.update(count)
        run.finish(count)
        count += 1

    return step


def cases(
    mask_file: str, size: int, backend: str, images: list[int]
) -> dict[str, dict[str, Callable[[], object]]]:
    """What is compared, by name."""
    one = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    net, z = oes.fresh_generator(one, seed=0)
    mask = oes.Mask.load(mask_file, net)
    found = {
        "input noise": {
            "without": training_step(net, mask, z, one, backend),
            "with": training_step(net, mask, z, one, backend, INPUT_NOISE),
        },
        "input noise, dense": {
            "without": training_step(net, None, z, one, backend),
            "with": training_step(net, None, z, one, backend, INPUT_NOISE),
        },
    }
    for number in images:
        inputs = torch.cat([oes.noise_input(z.shape[1], (size, size), seed=seed) for seed in range(number)])
        noisy = one.repeat(number, 1, 1, 1)
        for what, kept in (("", mask), (", dense", None)):
            found[f"{number} images{what}"] = {
                "reference": training_step(net, kept, inputs, noisy, "reference"),
                backend: training_step(net, kept, inputs, noisy, backend),
            }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mask", required=True, help="mask file")
    parser.add_argument("--size", nargs="+", type=int, default=[256], help="image sides, multiples of 32")
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--images", nargs="*", type=int, default=[2, 4])
    parser.add_argument("--case", help="those whose name holds this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="where to write the result")
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for size in options.size:
            for case, steps in cases(options.mask, size, options.backend, options.images).items():
                if options.case is not None and options.case not in case:
                    continue
                first, second = steps
                found = compared(steps, first, rounds=options.rounds)
                rows.append({"case": case, "size": size, "threads": threads, **found})
                times = ", ".join(
                    f"{name} {ms['median']:.1f} ({ms['min']:.1f}) ms" for name, ms in found["ms"].items()
                )
                by = {key: found["times faster"][second][key] for key in ("median", "min")}
                print(
                    f"{case}, {size} px, {threads} threads, median (minimum): {times}; "
                    f"{by['median']:.2f}x ({by['min']:.2f}x)",
                    flush=True,
                )
    if options.json:
        mask = Path(options.mask).name
        write_result(
            options.json,
            {"environment": environment(), "mask": mask, "rounds": options.rounds, "steps": rows},
        )


if __name__ == "__main__":
    main()
