"""Packages that some tests take and a user need not have; a test is skipped by name where one is missing."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

# Operators that torchvision's Python code registers something for when it is imported. Its compiled library,
# which defines them, does not load beside a torch of another build, such as one for CPUs alone.
_OPERATORS = dict.fromkeys(("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_defined: list[torch.library.Library] = []  # an operator is gone with the library that defines it


def deepinv() -> ModuleType:
    """The package deepinv; skips the test where it cannot be had."""
    return _package("deepinv")


def monai() -> ModuleType:
    """The package monai; skips the test where it cannot be had."""
    return _package("monai")


def torchvision_loads() -> bool:
    """Whether torchvision, if it is there, loads without what is defined here: in other processes, too."""
    if importlib.util.find_spec("torchvision") is not None:
        _import_torchvision()
    return not _defined


def _package(name: str) -> ModuleType:
    found, why = _imported(name)
    if found is None:
        pytest.skip(why)
    return found


@functools.cache
def _imported(name: str) -> tuple[ModuleType | None, str]:
    """(package or None, why it is not there)."""
    if importlib.util.find_spec(name) is None:
        return None, f"{name} is not installed"
    try:
        if importlib.util.find_spec("torchvision") is not None:
            _import_torchvision()
        return importlib.import_module(name), ""
    except (ImportError, RuntimeError, OSError) as error:
        return None, f"{name} cannot be imported: {' '.join(str(error).split())}"


def _import_torchvision() -> None:
    """Import torchvision, with the operators that it asks for defined where its own do not load."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, arguments in _OPERATORS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + arguments)
    _defined.append(library)
    for module in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
        del sys.modules[module]  # what the import that failed has left
    importlib.import_module("torchvision")
