"""The packages that tasks need and ``import oes_fast`` does not: imported when a task is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from oes_fast.errors import OESError

EXTRA = 'pip install "oes_fast[physics]"'


def package(name: str) -> ModuleType:
    """A package of the extra "physics", "deepinv" or "h5py", or a module of it.

    Raises:
        OESError: it is not installed, or cannot be imported beside this PyTorch; the message says what to do.
    """
    root = name.partition(".")[0]
    try:
        importlib.import_module(root)
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == root:
            raise OESError(f"{root}: expected the package of that name, found none; {EXTRA}") from error
        raise OESError(f"{root}: expected a package that can be imported, got: {_line(error)}") from error
    except (RuntimeError, OSError) as error:
        if "torchvision" in str(error):
            raise OESError(
                f"{root}: needs a torchvision built for PyTorch {torch.__version__}, but the one here does "
                f"not load ({_line(error)}); install both from one index"
            ) from error
        raise OESError(f"{root}: expected a package that can be imported, got: {_line(error)}") from error


def make_filter(name: str) -> Callable[..., Tensor]:
    """A function of deepinv that gives the taps of a filter, [1, 1, h, w]; its place differs by release.

    Raises:
        OESError: as :func:`package`.
    """
    functional = package("deepinv.physics.functional")
    found: Callable[..., Tensor] = getattr(functional, name, None) or getattr(
        package("deepinv.physics.blur"), name
    )
    return found


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
