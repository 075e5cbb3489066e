"""Choices between ways to compute the same, measured on this machine once and kept on disk.

Such ways differ by rounding. A run that is to end bit for bit where another would have takes the same ones:
checkpoints keep what is in use.

A file holds one kind of choice for one device. A disk that refuses, or a file that cannot be read, is no
error: what it would have held is measured again. OES_FAST_CACHE_DIR names another folder than the system's
for such files, see :func:`cache_folder`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_in_use: dict[str, Any] = {}
_taken: set[str] = set()  # keys of choices of another process


def choice(key: str, find: Callable[[], Any]) -> Any:
    """The choice that this process has made under ``key``, or makes now by ``find``.

    Args:
        key: of the problem and of all that the choice depends on.
        find: looks it up or measures it; gives a JSON value.
    """
    if key not in _in_use:
        note_choice(key, find())
    return _in_use[key]


def measured_choice(
    kind: str,
    capability: str,
    key: str,
    measure: Callable[[], Any],
    *,
    valid: Callable[[Any], bool],
    file: str | None = None,
) -> Any:
    """The choice that this process has made, or else the one on disk, or else what is measured now.

    Args:
        kind: of choice: all of a kind and capability lie in one file. Checkpoints hold it with the key.
        capability: the instruction set that the alternatives are computed with.
        key: of the problem and of all else that the choice depends on.
        measure: times the alternatives; gives a JSON value, which is kept on disk.
        valid: whether a value from the disk is a choice of this kind; another one is measured again.
        file: the name that the file begins with, where it is not ``kind``.
    """

    def find() -> Any:
        path = choices_file(file or kind, capability, processor())
        known = _on_disk(path)
        if key not in known or not valid(known[key]):
            known[key] = measure()
            store_choices(path, {key: known[key]})
        return known[key]

    return choice(f"{kind} {capability} {key}", find)


@functools.cache
def _on_disk(path: Path) -> dict[str, Any]:
    """What a file held when this process first asked, and what the process has added."""
    return read_choices(path)


def known_choice(key: str) -> Any:
    """The choice that this process has made under ``key``; None if there is none yet."""
    return _in_use.get(key)


def note_choice(key: str, value: Any) -> None:
    """Remember a choice, a JSON value, as one that this process has made."""
    _in_use[key] = value


def choices_in_use() -> dict[str, Any]:
    """All choices this process has made, by their keys."""
    return dict(_in_use)


def take_choices(choices: Mapping[str, Any]) -> None:
    """Make choices as another process has made them, whatever would be measured here."""
    _taken.update(choices)
    _in_use.update(choices)


@contextlib.contextmanager
def choices_put_back() -> Iterator[None]:
    """Afterwards this process chooses by itself where choices of another were taken inside."""
    before = dict(_in_use)
    _taken.clear()
    try:
        yield
    finally:
        for key in _taken:
            if key in before:
                _in_use[key] = before[key]
            else:
                _in_use.pop(key, None)
        _taken.clear()


def cache_folder() -> Path:
    """Where this user's choices are kept: OES_FAST_CACHE_DIR, or what the system has for such files.

    On Linux that is ~/.cache/oes_fast, or oes_fast below XDG_CACHE_HOME; on macOS ~/Library/Caches/oes_fast.
    """
    if folder := os.environ.get("OES_FAST_CACHE_DIR"):
        return Path(folder)
    try:
        from platformdirs import user_cache_path
    except ImportError:  # installed without its dependencies: what platformdirs says on Linux
        return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "oes_fast")
    return user_cache_path("oes_fast", appauthor=False)


def choices_file(*name: str) -> Path:
    """Where choices are kept that depend on what ``name`` tells: the kind, the device, versions."""
    return cache_folder() / (re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(name)) + ".json")


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def read_choices(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing, unreadable or not of this form."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return rows if isinstance(rows, dict) else {}


def store_choices(path: Path, choices: dict[str, Any]) -> None:
    """Add choices to a file, beside what other processes added."""
    rows = read_choices(path) | choices
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(dict(sorted(rows.items())), file, indent=0)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
