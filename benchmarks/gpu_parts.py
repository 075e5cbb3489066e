"""The parts of benchmarks.gpu that measure; the last line each prints is its result as JSON.

python -m benchmarks.gpu_parts ceilings | kernels | steps | memory | compiled | training
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import oes_fast as oes
from benchmarks.gpu_kernels import kernel_rows
from benchmarks.published import PublishedTraining
from benchmarks.steps import search_steps, training_steps
from benchmarks.timer import compared, device_time
from oes_fast.precision import PRECISIONS

SIZE = 512
FAST = ("triton", "cuda")  # the backends of a GPU


def available(backends: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(those that are available, why the others are not)."""
    found = oes.backends()
    left_out = {name: str(found[name]) for name in backends if name in found and not found[name]}
    return [name for name in backends if name not in left_out], left_out


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Inside, warnings of oes_fast are collected: of a step that could not be recorded, for one."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", oes.OESWarning)
        yield said
        said += dict.fromkeys(str(each.message)[:500] for each in caught)


def ceilings(
    device: str = "cuda", *, elements: int = 1 << 28, small: int = 3_000_000, side: int = 8192
) -> dict[str, float]:
    """What the device does at best: GB/s of a copy, multiply-adds a second of matrix products in G."""
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    copy = device_time(lambda: target.copy_(source), device=device, calls=3)
    found = {"copy GB/s": 8 * elements / copy["min"] / 1e6}
    cached = torch.ones(small, device=device)
    into = torch.empty_like(cached)
    in_cache = device_time(lambda: into.copy_(cached), device=device)
    found["cached copy GB/s"] = 8 * small / in_cache["min"] / 1e6
    for name, dtype in (
        ("float32", torch.float32),
        ("tf32", torch.float32),
        ("bfloat16", torch.bfloat16),
    ):
        with oes.precision("tf32" if name == "tf32" else "float32"):
            a = torch.ones(side, side, dtype=dtype, device=device)
            took = device_time(lambda a=a: a @ a, device=device, calls=2, rounds=3)  # type: ignore[misc]
        found[f"{name} GMAC/s"] = side**3 / took["min"] / 1e6
    return found


def drawn_mask(net: nn.Module) -> oes.Mask:
    """About the published masks' shares: channels without gamma dead, 12 and 40 % of the weights kept."""
    generator = torch.Generator().manual_seed(0)
    bits: list[Tensor] = []
    norms = {id(m.bias) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
    for parameter in net.parameters():
        share = {25: 0.12, 9: 0.4}.get(parameter[0][0].numel() if parameter.ndim == 4 else 0, 0.72)
        drawn = torch.rand(parameter.numel(), generator=generator) < share
        bits.append(drawn & bits[-1] if id(parameter) in norms else drawn)  # no beta without its gamma
    bits[-2:] = [torch.ones_like(bit) for bit in bits[-2:]]  # the last layer, or colours would be missing
    return oes.Mask.from_flat(net, torch.cat(bits))


def problem(
    mask: str | None, size: int, device: str, channels: tuple[int, ...] | None = None
) -> tuple[oes.models.Generator, oes.Mask, Tensor, Tensor]:
    """(network, mask, input, noisy image); the published network, or a smaller one of these channels."""
    made = (
        oes.models.skip(seed=0) if channels is None else oes.models.skip(num_channels_down=channels, seed=0)
    )
    net = made.to(device)
    z = oes.noise_input(32, (size, size), seed=0, device=device)
    clean = oes.load_image("skimage:astronaut", size=size).pixels
    noisy = oes.add_noise(clean, 0.1, 0).to(device)
    return net, drawn_mask(net) if mask is None else oes.Mask.load(mask, net), z, noisy


def steps(
    mask: str | None = None,
    device: str = "cuda",
    *,
    precision: str = "float32",
    size: int = SIZE,
    rounds: int = 20,
    fast: Sequence[str] = FAST,
    channels: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Whole steps against the published way, in turn, all in one precision; as published it ran in TF32.

    Backend "torch" is left out: cuDNN would try its algorithms on each of its many shapes for most of the
    time.

    "tf32x3" is a setting of the CUDA engine's products where nothing is pruned: it alone searches with it,
    and everything else computes in float32.
    """
    net, kept, z, noisy = problem(mask, size, device, channels)
    backends, left_out = available(fast)
    if precision == "tf32x3" and "cuda" in left_out:
        return {"left out": f"backend cuda is {left_out['cuda']}"}
    rows: dict[str, Any] = {}
    with oes.precision(precision), noted() as said:  # what is recorded and tuned as well
        if precision == "tf32x3":
            backends = [name for name in backends if name != "triton"]
            made = {"search": search_steps(net, z, noisy, backends)}
        else:
            made = {
                "training": training_steps(net, kept, z, noisy, backends),
                "search": search_steps(net, z, noisy, backends),
            }
        for case, contestants in made.items():
            found = compared(
                contestants, "published", rounds=rounds, warmup=min(3, rounds), precision=precision
            )
            rows[case] = [{"size": size, **found, **({"left out": left_out} if left_out else {})}]
    if said:
        rows["warnings"] = said
    return rows


def peak(
    case: str,
    way: str,
    mask: str | None = None,
    device: str = "cuda",
    *,
    size: int = SIZE,
    count: int = 5,
    channels: tuple[int, ...] | None = None,
) -> float:
    """Megabytes that a contestant's steps need at most; on a CPU the process's own, libraries and all.

    PyTorch does not know the CUDA engine's own memory: for backend "cuda" what the device has less of is
    added, which is right while no other process takes memory on it.
    """
    net, kept, z, noisy = problem(mask, size, device, channels)
    before = _outside_torch() if device == "cuda" else 0
    backends = [] if way == "published" else [way]
    if case == "search":
        step = search_steps(net, z, noisy, backends)[way]
    else:
        step = training_steps(net, kept, z, noisy, backends)[way]
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with oes.precision("float32"):
        for _ in range(count):
            step()
    if device == "cuda":
        own = _outside_torch() - before if way == "cuda" else 0
        return (torch.cuda.max_memory_allocated() + own) / 1e6
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    )


def _outside_torch() -> int:
    """Bytes in use on the device that are not in PyTorch's hands."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def memory(
    mask: str | None = None,
    device: str = "cuda",
    *,
    size: int = SIZE,
    fast: Sequence[str] = FAST,
    channels: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """:func:`peak` of every contestant, each in a process of its own, where nobody else's memory counts."""
    rows: list[dict[str, Any]] = []
    backends, left_out = available(fast)
    ways = [(case, way) for case in ("training", "search") for way in ("published", "torch", *backends)]
    options = {"size": size, "channels": channels}
    # Those of the CUDA engine one at a time: see peak.
    for workers, engine in ((3, False), (1, True)):
        chosen = [way for way in ways if (way[1] == "cuda") == engine]
        if not chosen:
            continue
        with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
            found = [pool.apply_async(peak, (*way, mask, device), options) for way in chosen]
            for (case, way), megabytes in zip(chosen, found, strict=True):
                rows.append({"case": case, "way": way, "size": size, "precision": "float32"})
                try:
                    rows[-1]["peak MB"] = round(megabytes.get(timeout=60), 1)
                except Exception as error:
                    rows[-1]["error"] = f"{type(error).__name__}: {error}"[:500]
    return rows + [{"way": way, "error": reason} for way, reason in left_out.items()]


def compiled(
    mask: str | None = None,
    device: str = "cuda",
    *,
    size: int = SIZE,
    rounds: int = 20,
    fast: Sequence[str] = FAST,
    mode: str = "max-autotune",
) -> dict[str, Any]:
    """The training step against the published one whose network torch.compile compiled, in float32."""
    net, kept, z, noisy = problem(mask, size, device)
    baseline = PublishedTraining(net, kept.flat.to(device), z, noisy)
    baseline.net.compile(mode=mode)
    backends, left_out = available(fast)
    contestants = {"compiled": baseline.step, **training_steps(net, kept, z, noisy, backends)}
    found = compared(contestants, "compiled", rounds=rounds, warmup=min(3, rounds))
    return {**found, "mode": mode, "size": size, **({"left out": left_out} if left_out else {})}


def training(
    mask: str | None = None,
    device: str = "cuda",
    *,
    size: int = 128,
    count: int = 2000,
    fast: Sequence[str] = FAST,
    beside: str = "auto",
    channels: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Trainings on the device held against the same one on the CPU.

    Returns:
        "differences" by backend: of the losses of the first two steps and of their mean over the last tenth,
        and with every other figure a row for each training, the CPU's last.

    Raises:
        SystemExit: a training failed, or its losses differ.
    """
    net, kept, z, noisy = problem(mask, size, "cpu", channels)
    backends, left_out = available(fast)
    fits: list[oes.TrainResult] = []
    failed: dict[str, str] = {}
    for place, backend in (*((device, name) for name in backends), ("cpu", beside)):
        try:
            fit = oes.train_sparse(
                net.to(place),
                kept,
                z.to(place),
                noisy.to(place),
                steps=count,
                record_every=1,
                backend=backend,
                precision="float32",
            )
        except RuntimeError as error:
            if len(fits) + len(failed) == len(backends):  # there is nothing to hold the others to
                raise
            failed[backend] = f"{type(error).__name__}: {error}"[:500]
            net, *_ = problem(mask, size, "cpu", channels)  # one that a broken device does not hold
        else:
            fits.append(fit)
            net = net.to("cpu")
    *losses, theirs = (fit.history.loss for fit in fits)
    last = max(1, count // 10)
    # Adam makes full steps of gradients that are rounding alone: the first losses agree, later ones on the
    # average.
    differences: dict[str, dict[str, Any]] = {}
    for fit, ours in zip(fits, losses, strict=False):
        first, second = (abs(ours[step] / theirs[step] - 1) for step in (0, 1))
        late = statistics.fmean(ours[-last:]) / statistics.fmean(theirs[-last:]) - 1
        differences[fit.backend] = {"first": [first, second], "late": late}
    found = {
        "size": size,
        "precision": "float32",
        "steps": count,
        "seconds": [fit.seconds for fit in fits],
        "backends": [fit.backend for fit in fits],
        "differences": differences,
        "loss": [
            [column[step] for step in range(0, count + 1, max(1, count // 50))]
            for column in (*losses, theirs)
        ],
        **({"left out": left_out} if left_out else {}),
        **({"failed": failed} if failed else {}),
    }
    alike = [
        each["first"][0] <= 1e-4 and each["first"][1] <= 1e-2 and abs(each["late"]) <= 0.1
        for each in differences.values()
    ]
    if failed or not all(alike):
        print(json.dumps(found))
        raise SystemExit(1)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["ceilings", "kernels", "steps", "memory", "compiled", "training"])
    parser.add_argument("--mask")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the steps")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # the baselines at their best
    parts: dict[str, Callable[[], Any]] = {
        "ceilings": ceilings,
        "kernels": lambda: {"ceilings": ceilings(), "rows": kernel_rows()},
        "steps": lambda: steps(options.mask, precision=options.precision),
        "memory": lambda: memory(options.mask),
        "compiled": lambda: compiled(options.mask),
        "training": lambda: training(options.mask),
    }
    print(json.dumps(parts[options.part]()))


if __name__ == "__main__":
    main()
