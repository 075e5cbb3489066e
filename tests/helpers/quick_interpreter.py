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


@functools.cache
def _languages(fn: Callable[..., Any]) -> list[ModuleType]:
    """What of the language a function sees, as the interpreter has it."""
    return [value for value in fn.__globals__.values() if inspect.ismodule(value) and value in (tl, tl.core)]
