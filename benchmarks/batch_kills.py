"""A set of small images restored while its processes are killed at random, held against one left in peace.

    python -m benchmarks.batch_kills --kills 50 --images 40 --json benchmarks/results/batch-kills.json

``oes-fast batch`` restores the set in peace; then with two worker processes of its own, and then on a Ray
cluster of two workers, while SIGKILL hits workers, the command itself, and with Ray whole machines (a raylet
with all that it runs), at random moments. A command that was killed is given again. At the end every image
must be there as in peace to the last bit, its record written once, and nothing else.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from benchmarks.ray_cluster import Cluster, below
from benchmarks.report import write_result
from oes_fast.bench.environment import environment
from oes_fast.io.files import load_tensors
from oes_fast.io.image import save_image

SIDE = 32
WORKERS = 2
SHARES = {"command": 1, "worker": 3, "machine": 1}  # of the kills, as far as there is something of the kind
_POLL_SECONDS = 0.05
OTHER = ("seconds", "files")  # of results: times and names of folders differ from run to run

Victims = dict[str, list[int]]  # process numbers by kind


@dataclass(frozen=True)
class Way:
    """A way to run the jobs of a set.

    Attributes:
        words: options of the command.
        victims: what may be killed, by the command's process number.
        kill: kills a process of a kind.
        variables: for the command's environment.
    """

    words: tuple[str, ...]
    victims: Callable[[int], Victims]
    kill: Callable[[str, int], None]
    variables: dict[str, str] = field(default_factory=dict)


@contextmanager
def local() -> Iterator[Way]:
    """Processes of the command's own."""

    def victims(command: int) -> Victims:
        workers = [pid for pid, words in below(command).items() if "spawn_main" in words]
        return {"command": [command], "worker": workers}

    words = ("--workers", str(WORKERS), "--threads", "1")
    yield Way(words, victims, lambda kind, pid: os.kill(pid, signal.SIGKILL))


@contextmanager
def on_ray(workers: int = WORKERS) -> Iterator[Way]:
    """A Ray cluster of so many workers, which outlives the commands."""

    def victims(command: int) -> Victims:
        return {"command": [command], "worker": cluster.tasks(), "machine": cluster.machines()}

    def kill(kind: str, pid: int) -> None:
        if kind == "machine":
            cluster.lose(pid)
        else:
            os.kill(pid, signal.SIGKILL)

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder), workers)
        try:
            yield Way(("--ray", cluster.address), victims, kill, cluster.variables)
        finally:
            cluster.close()


WAYS = {"local": local, "ray": on_ray}


@dataclass
class Killed:
    """What became of a set under kills.

    Attributes:
        kills: how many of each kind there were.
        commands: times the command was given.
        seconds: until the last of them had ended.
        again: names of records that were written more than once.
        code: exit code of the last command.
    """

    kills: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    seconds: float = 0.0
    again: set[str] = field(default_factory=set)
    code: int = 0


def make_images(folder: Path, count: int, *, grey: bool = True) -> None:
    """Write so many smooth random images of 32 x 32 pixels, every third one grey if ``grey``."""
    folder.mkdir(parents=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 1 if grey and number % 3 == 2 else 3, 5, 5, generator=generator)
        save_image(
            folder / f"{number:03}.png", interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
        )


def run_under_kills(
    command: Sequence[object],
    out: Path,
    way: Way,
    *,
    kills: int,
    pause: float,
    rng: random.Random,
    log: Path,
) -> Killed:
    """Give a command until it ends of itself, and kill something every now and then.

    Args:
        command: the words of it, but for those of the way.
        out: folder of results, watched for records that are written twice.
        way: to run it.
        kills: how many.
        pause: mean seconds from one to the next.
        rng: chooses moments and victims.
        log: file for what the commands print.
    """
    words = [*map(str, command), *way.words]
    found, kind = Killed(), None
    records: dict[Path, tuple[int, int]] = {}
    began = time.monotonic()
    while True:
        found.commands += 1
        with log.open("ab") as file:
            process = subprocess.Popen(
                words, env=os.environ | way.variables, stdout=file, stderr=file, start_new_session=True
            )
            next_at = time.monotonic() + rng.uniform(0, 2 * pause)
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                _watch(out, records, found.again)
                if found.kills.total() == kills or time.monotonic() < next_at:
                    continue
                there = way.victims(process.pid)
                kind = kind or rng.choices(list(there), [SHARES[name] for name in there])[0]
                next_at = time.monotonic() + rng.uniform(0, 2 * pause)
                if there[kind]:  # else at the next moment: not as soon as there is one
                    with suppress(ProcessLookupError):  # it has ended of itself
                        way.kill(kind, rng.choice(sorted(there[kind])))
                        found.kills[kind] += 1
                    kind = None
        _watch(out, records, found.again)
        if process.returncode != -signal.SIGKILL:
            found.code = process.returncode
            found.seconds = time.monotonic() - began
            return found


def _watch(out: Path, records: dict[Path, tuple[int, int]], again: set[str]) -> None:
    """Note which records there are, and which of them are not what they were."""
    for path in out.glob("[0-9]*.json"):
        with suppress(FileNotFoundError):
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if records.setdefault(path, seen) != seen:
                again.add(path.name)


def differences(out: Path, peace: Path) -> list[str]:
    """Files that are in one of two folders of results alone, or not the same in both."""
    ours, theirs = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (out, peace)
    )
    found = [f"{name}: in one alone" for name in sorted(ours ^ theirs)]
    for name in sorted(ours & theirs):
        if (out / name).is_file() and _content(out / name) != _content(peace / name):
            found.append(f"{name}: differs")
    return found


def _content(path: Path) -> object:
    """What is in a file, without times; of the manifest, that it is there: batch.csv has what is in it."""
    if path.suffix == ".sqlite":
        return None
    if path.suffix == ".safetensors":
        tensors, metadata = load_tensors(path)
        return {name: tensor.tolist() for name, tensor in tensors.items()}, _untimed(metadata)
    if path.suffix == ".json":
        return _untimed(json.loads(path.read_text("utf-8")))
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [_untimed(row) for row in csv.DictReader(file)]
    return path.read_bytes()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(found) for key, found in value.items() if key not in OTHER}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def command_for(images: Path, out: Path, *, steps: int) -> list[object]:
    """The command that restores the set."""
    words: list[object] = [sys.executable, "-m", "oes_fast", "batch", images, "-o", out, "--sigma", 0.1]
    words += ["--no-verify", "--search-steps", 40, "--search-lr", 0.1, "--train-steps", steps]
    words += ["--density", 0.5, "--average", 0.9, "--model-option", "num_channels_down=16,16"]
    words += ["--checkpoint-seconds", 0.5]
    return [*words, "--quiet"]


def study(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Restore the set in peace and in every way of ``options`` under kills; what became of each."""
    images, peace = folder / "images", folder / "peace"
    os.environ["OES_FAST_CACHE_DIR"] = str(
        folder / "choices"
    )  # what is measured of convolutions is of all runs
    if not images.exists():
        make_images(images, options.images)
    began = time.monotonic()
    command = command_for(images, peace, steps=options.steps)
    with local() as way:  # which finds all done where it was run before
        subprocess.run([*map(str, command), *way.words], check=True)
    yield "peace", {"seconds": round(time.monotonic() - began, 1)}
    for name in options.ways:
        out = folder / name
        with WAYS[name]() as way:
            found = run_under_kills(
                command_for(images, out, steps=options.steps),
                out,
                way,
                kills=options.kills,
                pause=options.pause,
                rng=random.Random(options.seed),
                log=folder / f"{name}.log",
            )
        yield (
            name,
            {
                "pause": options.pause,
                "kills": dict(sorted(found.kills.items())),
                "commands": found.commands,
                "seconds": round(found.seconds, 1),
                "exit code": found.code,
                "images": len(list(out.glob("[0-9]*.png"))),
                "records written again": sorted(found.again),
                "differences": differences(out, peace),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of each way to run")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--pause", type=float, default=4.0, help="mean seconds from one kill to the next")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to work in and keep; a temporary one otherwise")
    parser.add_argument("--json", help="file for the result")
    options = parser.parse_args()
    settings = {key: getattr(options, key) for key in ("kills", "images", "steps", "seed")}
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if options.work is None else options.work.resolve()
        for name, run in study(options, folder):
            runs[name] = run
            print(name, json.dumps(run), flush=True)
            if options.json:
                write_result(options.json, {"environment": environment(), "settings": settings, "runs": runs})
    wrong = [
        name
        for name, run in runs.items()
        if name != "peace"
        and (
            run["exit code"]
            or run["records written again"]
            or run["differences"]
            or run["images"] != options.images
            or sum(run["kills"].values()) != options.kills
        )
    ]
    sys.exit(f"not as in peace: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
