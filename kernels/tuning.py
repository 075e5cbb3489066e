"""Which configuration a kernel is launched with: measured once, on purpose, and kept on disk.

Nothing is measured in a user's loop. Inside :func:`measuring`, which the pipelines enter before their first
step, a kernel launched for a problem that is not known yet runs with each of its configurations; the fastest
is remembered in this process and in a JSON file for the device. Everywhere else an unknown problem takes the
first configuration. A configuration that the device lacks the shared memory or registers for is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources


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
    folder = os.environ.get("OES_FAST_CACHE_DIR")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "oes_fast")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Path(folder) / re.sub(r"[^A-Za-z0-9.]+", "-", f"kernels-{device}-triton-{triton.__version__}.json")


@functools.cache
def _stored() -> dict[str, Config]:
    return _read(cache_file())


def _read(path: Path) -> dict[str, Config]:
    """What a file holds; nothing where it is missing, unreadable or not of this form."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): Config(*(int(number) for number in row)) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _store(key: str, config: Config) -> None:
    """Add a choice to the file, beside what other processes added; a disk that refuses is no error."""
    _stored()[key] = config
    path = cache_file()
    rows = _read(path) | _stored()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({k: list(c) for k, c in sorted(rows.items())}, file, indent=0)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
