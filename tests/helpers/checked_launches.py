"""Launches under Triton's interpreter that are checked: a fault of a kernel is an error of its launch.

Faults are an access beside every argument and two accesses to one element of which either may come first, see
launch_accesses.py. Programs run in a shuffled order, and what a masked load leaves undefined is NaN or the
largest integer.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from launch_accesses import LOAD, STORE, Accesses, Region
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


class LaunchError(AssertionError):
    """Programs of a launch did what they may not; the message names the kernel and what they did."""


class _Launch:
    """The one that runs."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.accesses: Accesses
        self.order: np.ndarray
        self._test = ""
        self._count = 0

    def begin(self, programs: int) -> None:
        """Draws an order, the same whenever the same test launches the same."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "")
        self._count = self._count + 1 if test == self._test else 0
        self._test = test
        seed = zlib.crc32(f"{test} {self._count}".encode())
        self.order = np.random.default_rng(seed).permutation(programs)
        self.accesses = Accesses(self.regions, programs)


_launch = _Launch()


def _regions(name: str, value: Any) -> Iterator[Region]:
    """Where the tensors of an argument lie, also those in tuples."""
    if isinstance(value, Tensor):
        if value.numel():
            last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            size = value.element_size()
            yield Region(value.data_ptr(), value.data_ptr() + (last + 1) * size, size, name)
    elif isinstance(value, tuple):
        for field, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from _regions(f"{name}.{field}", item)


def _call(original: Callable[..., None], executor: Any, *args: Any, **kwargs: Any) -> None:
    arguments = [*zip(executor.arg_names, args, strict=False), *kwargs.items()]
    _launch.regions = [region for name, value in arguments for region in _regions(name, value)]
    original(executor, *args, **kwargs)
    findings = _launch.accesses.findings()
    if findings:
        raise LaunchError(f"{executor.fn.__module__}.{executor.fn.__name__}: {'; '.join(findings)}")


def _set_grid_dim(original: Callable[..., None], builder: Any, *grid: int) -> None:
    original(builder, *grid)
    _launch.begin(math.prod(grid))


def _set_grid_idx(original: Callable[..., None], builder: Any, *index: int) -> None:
    program = int(_launch.order[np.ravel_multi_index(index, builder.grid_dim)])
    _launch.accesses.begin_program(program)
    original(builder, *map(int, np.unravel_index(program, builder.grid_dim)))


def _load(
    original: Callable[..., Any], builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any
) -> Any:
    there = _launch.accesses.access(LOAD, pointers.data, mask.data)
    if other is None and pointers.data.size > 1:  # of one element the interpreter takes a zero for none
        kind = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(kind)
        undefined = np.nan if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind in "iu" else True
        other = TensorHandle(np.full(pointers.data.shape, undefined, dtype), kind)
    return original(builder, pointers, TensorHandle(there, mask.dtype), other, *rest, **named)


def _store(
    original: Callable[..., Any], builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
) -> Any:
    there = _launch.accesses.access(STORE, pointers.data, mask.data)
    return original(builder, pointers, value, TensorHandle(there, mask.dtype), *rest, **named)


def _atomic(
    original: Callable[..., Any], builder: Any, operation: Any, pointers: Any, value: Any, mask: Any,
    sem: Any, scope: Any,
) -> Any:  # fmt: skip
    order = sem.name if scope.name != "CTA" else "RELAXED"  # between programs
    there = _launch.accesses.atomic(pointers.data, mask.data, "ACQUIRE" in order, "RELEASE" in order)
    return original(builder, operation, pointers, value, TensorHandle(there, mask.dtype), sem, scope)


def _barrier(original: Callable[..., Any], builder: Any) -> Any:
    _launch.accesses.barrier()
    return original(builder)


def check_launches() -> None:
    """From now on, in this process."""
    for owner, name, function in (
        (GridExecutor, "__call__", _call),
        (InterpreterBuilder, "set_grid_dim", _set_grid_dim),
        (InterpreterBuilder, "set_grid_idx", _set_grid_idx),
        (InterpreterBuilder, "create_masked_load", _load),
        (InterpreterBuilder, "create_masked_store", _store),
        (InterpreterBuilder, "create_atomic_rmw", _atomic),
        (InterpreterBuilder, "create_barrier", _barrier),
    ):
        setattr(owner, name, _around(getattr(owner, name), function))


def _around(original: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def checked(*args: Any, **named: Any) -> Any:
        return function(original, *args, **named)

    return checked
