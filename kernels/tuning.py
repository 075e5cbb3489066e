"""Which configuration a kernel is launched with: measured once, on purpose, and kept on disk.

Nothing is measured in a user's loop. Inside :func:`measuring`, which the pipelines enter before their first
step, a kernel launched for a problem that is not known yet runs with each of its configurations; the fastest
is remembered in this process and in a JSON file for the device. Everywhere else an unknown problem takes the
first configuration. A configuration that the device lacks the shared memory or registers for is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources

from oes_fast.autotune_cache import choices_file, known_choice, note_choice, read_choices, store_choices


class Config(NamedTuple):
    """How a kernel cuts its work.

    Attributes:
        block: pixels, or elements, of one program.
        inner: taps, channels or outputs it takes at a time.
        warps: of a program.
        stages: of the pipeline that loads ahead.
        outer: outputs of one program.
    """

    block: int
    inner: int = 1
    warps: int = 4
    stages: int = 2
    outer: int = 1

    @property
    def options(self) -> dict[str, int | bool]:
        """Of a launch. Multiply-adds are fused whatever the version of Triton has for its default."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}


_ROUNDS, _LAUNCHES = 3, 20
_MOST_TRIES = 4  # at keeping the device busy for as long as the launches take to queue
_INTERPRETER_BLOCK = 4096
_chosen: dict[tuple[Path, str], Config] = {}
_measuring = False
_LEAST_BUSY = 2_000_000  # cycles, a millisecond: 20 launches of 50 us
_MOST_BUSY = 128 * _LEAST_BUSY  # where each launch waits, as under a debugger, no time is enough
_busy_cycles = _LEAST_BUSY


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, which pays by the program, not by the element."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def for_interpreter(
    configs: tuple[Config, ...], elements: int, *, inner: int | None = None
) -> tuple[Config, ...]:
    """``configs`` as they are on a device; under the interpreter one with a large block and ``inner``."""
    if not interpreted():
        return configs
    block = min(_INTERPRETER_BLOCK, max(16, triton.next_power_of_2(elements)))
    return (configs[0]._replace(block=block, inner=configs[0].inner if inner is None else inner),)


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Let launches inside look for the best configuration of problems that are not known yet."""
    global _measuring
    before, _measuring = _measuring, not interpreted() and torch.cuda.is_available()
    try:
        yield
    finally:
        _measuring = before


def run(
    name: str, problem: tuple[object, ...], configs: tuple[Config, ...], launch: Callable[[Config], None]
) -> None:
    """Launch a kernel that may be launched again with the same result.

    Args:
        name: of the kernel.
        problem: shapes and pattern.
        configs: to choose from; the first is for problems that were not measured.
        launch: does it with one of them.
    """
    if len(configs) == 1:
        launch(configs[0])
        return
    key = f"{name} {' '.join(map(str, problem))}"
    file = cache_file()
    known = _chosen.get((file, key))
    if known is None:
        known = _taken(file, key) or _stored(file).get(key)
        if known is None and _measuring:
            known = _fastest(configs, launch)
            _store(file, key, known)
        if known not in configs:  # never measured, or by a version that had others
            known = configs[0]
    order = (known, *(config for config in configs if config != known))
    for place, config in enumerate(order):
        try:
            launch(config)
        except OutOfResources:
            if place == len(order) - 1:
                raise
            continue
        if _chosen.get((file, key)) != config:
            _chosen[file, key] = config
            note_choice(f"kernel {file.stem} {key}", list(config))
        return


def _fastest(configs: tuple[Config, ...], launch: Callable[[Config], None]) -> Config:
    times = {}
    for config in configs:
        try:
            launch(config)  # compiles
            times[config] = min(_time(config, launch) for _ in range(_ROUNDS))
        except OutOfResources:
            continue
    return min(times, key=lambda config: times[config]) if times else configs[0]


def _time(config: Config, launch: Callable[[Config], None]) -> float:
    """Milliseconds of a row of launches, on the device alone.

    A launch costs the processor more than most kernels cost the device. So the device is kept busy until the
    whole row is queued, and what is measured is how fast it works the row off. How long that takes is found
    by trial, and forgotten again bit by bit: else each pause of the processor, to collect garbage say, would
    make all measurements after it, of which a mask takes more than a thousand, four times as long.
    """
    global _busy_cycles
    for place in range(_MOST_TRIES):
        _keep_busy(_busy_cycles)
        begin = _mark()
        for _ in range(_LAUNCHES):
            launch(config)
        end = _mark()
        queued_in_time = not begin.query()
        end.synchronize()
        if queued_in_time:
            break
        if place < _MOST_TRIES - 1:
            # For the measurements to come as well: the processor may be that slow.
            _busy_cycles = min(4 * _busy_cycles, _MOST_BUSY)
    _busy_cycles = max(_LEAST_BUSY, _busy_cycles * 9 // 10)
    return begin.elapsed_time(end)


def _keep_busy(cycles: int) -> None:
    torch.cuda._sleep(cycles)


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def cache_file() -> Path:
    """Where the choices for the current device are kept, which its name, capability and versions tell."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    return _file_of(device, os.environ.get("OES_FAST_CACHE_DIR"))


@functools.cache
def _file_of(device: int | None, folder: str | None) -> Path:
    which = "cpu"
    if device is not None:
        major, minor = torch.cuda.get_device_capability(device)
        which = f"{torch.cuda.get_device_name(device)}-sm{major}{minor}"
    return choices_file("kernels", which, "triton", triton.__version__, "torch", torch.__version__)


def _taken(file: Path, key: str) -> Config | None:
    """What a run that is resumed here has chosen."""
    row = known_choice(f"kernel {file.stem} {key}")
    with contextlib.suppress(TypeError, ValueError):
        return Config(*(int(number) for number in row))
    return None


@functools.cache
def _stored(file: Path) -> dict[str, Config]:
    found = {}
    for key, row in read_choices(file).items():
        with contextlib.suppress(TypeError, ValueError):
            found[key] = Config(*(int(number) for number in row))
    return found


def _store(file: Path, key: str, config: Config) -> None:
    _stored(file)[key] = config
    store_choices(file, {k: list(c) for k, c in _stored(file).items()})
