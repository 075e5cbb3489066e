"""The CUDA extension for the GPU that is here: found as it lies, or built for this GPU alone.

python -m benchmarks.gpu_build

The last line printed is the result as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from oes_fast import _extension
from oes_fast._cuda_toolkit import ARCHS, ToolkitError, find_toolkit

REPO = Path(__file__).resolve().parents[1]
STATUS = "import oes_fast; print(oes_fast.backends()['cuda'])"


def status() -> str:
    """What a new process says of the backend: "available", or why it is not."""
    done = subprocess.run(
        [sys.executable, "-c", STATUS], cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.strip()[-500:]


def arch() -> str:
    """Compute capability of the GPU, as TORCH_CUDA_ARCH_LIST has it."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def build() -> dict[str, Any]:
    """Build where the extension is not there or not for this GPU.

    Returns:
        "built", whether it was, with "archs", "seconds" and "nvcc"; or "left out", where there is nothing to
        build with.

    Raises:
        SystemExit: it does not build, or does not load.
    """
    found = status()
    if found == "available":
        return {"built": False, "archs": _archs()}
    try:
        toolkit = find_toolkit()
    except ToolkitError as error:
        return {"left out": f"{error} (backend cuda: {found})"}
    began = time.monotonic()
    environment = {**os.environ, "FORCE_CUDA": "1", ARCHS: arch()}
    environment.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=REPO, env=environment, check=False
    )
    seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        raise SystemExit(f"setup.py build_ext ended with {done.returncode} after {seconds} s")
    if (now := status()) != "available":
        raise SystemExit(f"the extension was built for {arch()}, and backend cuda is {now}")
    return {"built": True, "seconds": seconds, "archs": _archs(), "nvcc": toolkit.version}


def _archs() -> list[str]:
    path = _extension.CUDA.find()
    return _extension.archs_of(_extension.read_identity(path)) if path else []


def main() -> None:
    """Command line."""
    print(json.dumps(build()))


if __name__ == "__main__":
    main()
