"""The oldest versions that oes_fast runs with; README.md and pyproject.toml say the same.

setup.py imports this module as well, without torch: it takes nothing but the standard library.
"""

from __future__ import annotations

import re

# The C++ kernels are built for this torch and run on it and on all that are newer (torch's stable ABI, whose
# parallel_for it is the first to have); it brings Triton 3.6 on Linux.
OLDEST = {"python": (3, 10), "torch": (2, 10), "numpy": (1, 26), "triton": (3, 6)}

_NAMES = {"python": "Python", "torch": "PyTorch", "numpy": "NumPy", "triton": "Triton"}


def release(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as "2.13.0+cpu" or "2.11.0a0+git12ab"; (0, 0) of anything else."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def text(name: str) -> str:
    """The oldest version of "python", "torch", "numpy" or "triton", such as "2.10"."""
    return ".".join(map(str, OLDEST[name]))


def lack(name: str, version: str | None) -> str:
    """What is wrong with a version of "python", "torch", "numpy" or "triton", and what to do; "" if nothing.

    Args:
        name: a key of :data:`OLDEST`.
        version: the one found, None for none.
    """
    if version is not None and release(version) >= OLDEST[name]:
        return ""
    needs = f"needs {_NAMES[name]} {text(name)} or newer, found {version or 'none'}"
    return needs if name == "python" else f"{needs}; pip install '{name}>={text(name)}'"
