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

from oes_fast.choices import choices_file, read_choices, store_choices


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


_ROUNDS, _LAUNCHES = 3, 5
_INTERPRETER_BLOCK = 4096
_chosen: dict[str, Config] = {}
_measuring = False


def interpreted() -> bool:
    """Whether the kernels run under Triton's interpreter, which pays by the program, not by the element."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def for_interpreter(configs: tuple[Config, ...], elements: int) -> tuple[Config, ...]:
    """``configs`` as they are on a device, one with a large block under the interpreter."""
    if not interpreted():
        return configs
    block = min(_INTERPRETER_BLOCK, max(16, triton.next_power_of_2(elements)))
    return (configs[0]._replace(block=block),)


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
    known = _chosen.get(key)
    if known is None:
        known = _stored().get(key)
        if known is None and _measuring:
            known = _fastest(configs, launch)
            _store(key, known)
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
        _chosen[key] = config
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
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(_LAUNCHES):
        launch(config)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def cache_file() -> Path:
    """Where the choices for the present device are kept."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return choices_file("kernels", device, "triton", triton.__version__)


@functools.cache
def _stored() -> dict[str, Config]:
    found = {}
    for key, row in read_choices(cache_file()).items():
        with contextlib.suppress(TypeError, ValueError):
            found[key] = Config(*(int(number) for number in row))
    return found


def _store(key: str, config: Config) -> None:
    _stored()[key] = config
    store_choices(cache_file(), {k: list(c) for k, c in _stored().items()})
