"""The examples in the docstrings of the public face: every function has one, and they run."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator

import pytest
import torch

import oes_fast as oes

FINDER = doctest.DocTestFinder(recurse=False)
# Exceptions and what the pipelines return need none.
WITHOUT = {
    "CleanView",
    "Concat",
    "ConvDecoder",
    "DCGAN",
    "DeepDecoder",
    "Generator",
    "HessianEigenvalues",
    "HessianSpectrum",
    "ImageGenerator",
    "ImpResult",
    "ImpRound",
    "JacobianNorm",
    "KSpace",
    "Layer",
    "LayerOverlap",
    "LiveChannels",
    "Overlap",
    "PhaseSplit",
    "ResNet",
    "RunsMean",
    "SearchResult",
    "SgldResult",
    "Sharpness",
    "SparseGenerator",
    "SparsePattern",
    "StepInfo",
    "StopReport",
    "Task",
    "TrainResult",
    "UNet",
}


def public() -> Iterator[tuple[str, object]]:
    """Functions and classes of the public face by dotted name."""
    names = ("analysis", "baselines", "functional", "models", "pruning", "tasks")
    folders = {"": oes} | {f"{n}.": getattr(oes, n) for n in names}
    for prefix, module in folders.items():
        for name in module.__all__:
            value = getattr(module, name)
            error = inspect.isclass(value) and issubclass(value, BaseException | Warning)
            if callable(value) and not error:
                yield prefix + name, value


PUBLIC = dict(public())
EXPLAINED = [name for name in PUBLIC if name.split(".")[-1] not in WITHOUT]


def examples_of(name: str) -> list[doctest.DocTest]:
    """Examples of one of them."""
    globs = {"oes": oes, "torch": torch}
    found = FINDER.find(PUBLIC[name], name, globs=globs)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_the_example_runs(name):
    if name == "estimate_sigma":
        pytest.importorskip("pywt")
    tests = examples_of(name)
    assert tests, f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_no_exception_is_for_nothing():
    assert {name.split(".")[-1] for name in PUBLIC} >= WITHOUT
