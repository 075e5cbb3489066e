"""What a trace is refused with."""

from __future__ import annotations

from oes_fast.errors import OESError


class TraceError(OESError):
    """The network's code cannot be traced; the pipelines run it as it is where the backend is "auto"."""
