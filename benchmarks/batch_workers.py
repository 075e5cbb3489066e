"""What workers give on this machine: images an hour with processes of the command's own, and with Ray's.

    python -m benchmarks.batch_workers --images 32 --json benchmarks/results/batch-workers.json

Of each way and number of workers: the time from when a quarter of the images is done to the last, which
leaves out how long processes take to begin; the processors' time of all that is started, an image; and how
many entries a second pass through it whose files are missing, so that nothing but their administration is
left. Rounds go through the ways in turn.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.batch_kills import make_images
from benchmarks.ray_cluster import below
from benchmarks.report import write_result
from oes_fast.batch import Engine, Outcome, Settings, Watcher, local, ray_workers, restore_all
from oes_fast.batch.ray_connection import package
from oes_fast.bench.environment import environment


class _Times(Watcher):
    """When images were done, and the processors' time until then."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def ended(self, outcome: Outcome) -> None:
        """Note the time."""
        self.wall.append(time.monotonic())
        self.cpu.append(cpu_seconds())


def cpu_seconds() -> float:
    """Of this process and all that come from it and run (Linux)."""
    ticks = 0
    for pid in (os.getpid(), *below(os.getpid())):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def own(workers: int) -> Iterator[Engine]:
    """Processes of the command's own; none but itself for one worker."""
    yield partial(local.outcomes, workers=workers, threads=1)


@contextmanager
def rays(workers: int) -> Iterator[Engine]:
    """A cluster of this machine with so many CPUs."""
    ray = package()
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        yield partial(ray_workers.outcomes, address="local")
    finally:
        ray.shutdown()


WAYS: dict[str, Callable[[int], Any]] = {"own processes": own, "Ray": rays}


def restored(engine: Engine, images: Path, out: Path, settings: Settings) -> dict[str, float]:
    """Images an hour, and processors' seconds an image, once a quarter is done."""
    times = _Times()
    restore_all(images, out, settings, engine=engine, watcher=times, verify=False)
    first = len(times.wall) // 4
    count = len(times.wall) - 1 - first
    return {
        "images an hour": 3600 * count / (times.wall[-1] - times.wall[first]),
        "processor seconds an image": (times.cpu[-1] - times.cpu[first]) / count,
    }


def passed(engine: Engine, folder: Path, out: Path, settings: Settings, count: int) -> float:
    """Entries a second whose files are missing."""
    names = folder / "missing.txt"
    names.write_text("".join(f"{folder / 'missing'}/{number}.png\n" for number in range(count)))
    times = _Times()
    mask = next(out.glob("batch_mask_*.safetensors"))
    restore_all(names, folder / "passed", settings, masks=[mask], engine=engine, watcher=times, verify=False)
    return (count - 1) / (times.wall[-1] - times.wall[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--entries", type=int, default=1000, help="that pass through without an image")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    settings = Settings(
        sigma=0.1,
        search_steps=40,
        search_lr=0.1,
        density=0.5,
        train_steps=options.steps,
        average=0.9,
        model_options={"num_channels_down": [16, 16]},
    )
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.rounds):
        for way, begin in WAYS.items():
            for workers in options.workers:
                with tempfile.TemporaryDirectory() as temporary, begin(workers) as engine:
                    folder = Path(temporary)
                    make_images(folder / "images", options.images, grey=False)
                    run = restored(engine, folder / "images", folder / "out", settings)
                    run["entries a second"] = passed(
                        engine, folder, folder / "out", settings, options.entries
                    )
                row = found.setdefault(f"{way}, {workers}", {})
                for name, value in run.items():
                    row.setdefault(name, []).append(round(value, 2))
                print(way, workers, run, flush=True)
        if options.json:
            rows = {
                name: {key: {"median": median(values), "all": values} for key, values in row.items()}
                for name, row in found.items()
            }
            write_result(
                options.json, {"environment": environment(), "load": os.getloadavg()[0], "rows": rows}
            )


if __name__ == "__main__":
    main()
