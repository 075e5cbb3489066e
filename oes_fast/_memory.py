"""How much memory is free."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> float:
    """Bytes that a program may still take on the device; infinity where the system does not tell.

    Args:
        device: "cpu" for main memory (within a container's limit, where there is one), or a GPU.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = [float("inf")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max", where there is no limit, is no number
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free.append(float(limit - used + int(cache.get("inactive_file", 0))))  # files that can be let go
    if len(free) == 1:
        with suppress(OSError, ValueError, AttributeError):  # half of all there is
            free.append(0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(free)
