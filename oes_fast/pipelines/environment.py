"""What the bits of a run depend on beside its settings: kept in checkpoints, so that resuming can tell."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from oes_fast.autotune_cache import processor
from oes_fast.backends import backends
from oes_fast.version import __version__

_of_thread = threading.local()


@contextmanager
def counted_as(threads: int) -> Iterator[None]:
    """What this thread computes inside has the bits that so many threads would compute, and is said to."""
    _of_thread.threads = threads
    try:
        yield
    finally:
        del _of_thread.threads


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, processor or GPU, instruction set of the CPU kernels, number of threads.

    Args:
        device: that the run computes on.
    """
    found: dict[str, Any] = {"oes_fast": __version__, "torch": torch.__version__}
    if device.type == "cuda":
        return found | {"GPU": torch.cuda.get_device_name(device), "CUDA": torch.version.cuda}
    capability = "none"
    if backends()["cpu"]:
        capability = importlib.import_module("oes_fast._C").capability()
    return found | {
        "processor": processor(),
        "instruction set": capability,
        "threads": getattr(_of_thread, "threads", None) or torch.get_num_threads(),
    }


def differences(made_in: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In words, what is here another than where a checkpoint was made."""
    return [
        f"{name} {made_in[name]} (here {here.get(name)})"
        for name in made_in
        if made_in[name] != here.get(name)
    ]
