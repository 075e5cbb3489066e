"""What comes before all else of oes_fast: the versions it cannot run with are an error here, in one line.

An error and not a warning: below these versions nothing is tested, and what is missing there would come out
later and elsewhere, as an AttributeError of torch or as kernels that do not compile.
"""

import platform

from oes_fast.requirements import lack


def _require(name: str, version: str | None) -> None:
    if problem := lack(name, version):
        raise ImportError(f"oes_fast {problem}", name=name)


_require("python", platform.python_version())
_missing = None
try:
    import oes_fast._openmp  # noqa: F401  # isort: skip  # before anything imports torch
    import numpy
    import torch
except ModuleNotFoundError as error:
    if error.name not in ("torch", "numpy"):
        raise
    _missing = error.name
if _missing is not None:
    _require(_missing, None)
_require("torch", torch.__version__)
_require("numpy", numpy.__version__)
