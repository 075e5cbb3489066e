"""Triton's interpreter without what takes most of its time and changes no result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterOptions


@functools.cache
def _modules(fn: Callable[..., Any]) -> frozenset[str]:
    """Which of Triton's modules a function sees."""
    values = fn.__globals__.values()
    return frozenset(module.__name__ for module in (tl, tl.core) if any(value is module for value in values))


def hurry() -> None:
    """From now on, in this process."""
    # Checks of every integer operation for overflow: two thirds of the time.
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    # The table of NumPy's dtypes is made anew for every value.
    dtype_of = interpreter._get_np_dtype
    scalar = functools.cache(dtype_of)
    interpreter._get_np_dtype = lambda kind: scalar(kind) if type(kind) is tl.dtype else dtype_of(kind)
    # What a launch does to Triton's modules is done once more in every function that a kernel calls.
    patch, launch, patched = interpreter._patch_lang, GridExecutor.__call__, set()

    def patch_once(fn: Callable[..., Any]) -> Any:
        modules = _modules(fn)
        if modules and modules <= patched:
            return None
        patched.update(modules)
        return patch(fn)

    @functools.wraps(launch)
    def launch_unpatched(*args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(*args, **kwargs)

    interpreter._patch_lang, GridExecutor.__call__ = patch_once, launch_unpatched
