"""What a figure of speed depends on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from oes_fast.autotune_cache import processor
from oes_fast.backends import backends
from oes_fast.version import __version__


def environment() -> dict[str, Any]:
    """Versions, processor, threads, GPU and backends, without folders of this machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "oes_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        # Without what to do about it, which names the folders of this machine.
        "backends": {name: str(status).partition(";")[0] for name, status in backends().items()},
    }
