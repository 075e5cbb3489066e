"""Triton's interpreter without what takes most of its time in kernels that call many functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Leave out checks of integers for overflow, and patching the language where that has been done."""
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    patch = interpreter._patch_lang

    # Called at every call of a function of a kernel, whose launch has patched the language already.
    def patch_once(fn: Callable[..., Any]) -> Any:
        if any(tl.core.is_builtin(language.load) for language in _languages(fn)):
            return patch(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once

    # It has a table that is made anew for every value.
    dtype_of = interpreter._get_np_dtype
    scalar = functools.cache(dtype_of)
    interpreter._get_np_dtype = lambda kind: scalar(kind) if type(kind) is tl.dtype else dtype_of(kind)


@functools.cache
def _languages(fn: Callable[..., Any]) -> list[ModuleType]:
    """What of the language a function sees, as the interpreter has it."""
    return [value for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)]
