"""Gradio and the server below it, which the page alone needs: imported when it is asked for."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from oes_fast.errors import OESError, one_line

EXTRA = 'pip install "oes_fast[ui]"'

# Nothing is sent anywhere, and nothing is asked for.
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


def package(name: str) -> ModuleType:
    """A package of the extra "ui", "gradio" or what that brings, or a module of it.

    Raises:
        OESError: it is not installed, or cannot be imported; the message says what to do.
    """
    os.environ.update(_QUIET)
    root = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name == root:
            raise OESError(f"{root}: expected the package of that name, found none; {EXTRA}") from error
        raise OESError(f"{root}: expected a package that can be imported, got: {one_line(error)}") from error
