"""Which of several results of a network is the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from oes_fast.errors import InputError

Entry = int | str


class EntryError(InputError):
    """The network gives no such entry."""


def check_entry(entry: Any) -> Entry | None:
    """An index, a name or None.

    Raises:
        InputError: it is none of these.
    """
    if entry is None or isinstance(entry, str) or (isinstance(entry, int) and not isinstance(entry, bool)):
        return entry
    raise InputError(f"entry: expected an index, a name or None, got {type(entry).__name__}")


def entry_of(output: Any, entry: Entry | None, *, of: str) -> Any:
    """The entry of what a network gives: of a tuple or list by index, of a dict or named tuple by name.

    Args:
        output: what the network gives.
        entry: which; None for ``output`` itself.
        of: the network's name, for messages.

    Raises:
        EntryError: there is no such entry.
    """
    if entry is None:
        return output
    wanted = f"entry: expected one that {of} gives, got {entry!r}, but its output is"
    if isinstance(output, Mapping):
        if entry not in output:
            raise EntryError(
                f"{wanted} a {type(output).__name__} of {', '.join(map(repr, output)) or 'nothing'}"
            )
        return output[entry]
    if isinstance(entry, str):
        if entry in getattr(output, "_fields", ()):
            return getattr(output, entry)
        fields = getattr(output, "_fields", None)
        names = f" of {', '.join(map(repr, fields))}" if fields else ""
        raise EntryError(f"{wanted} a {_kind(output)}{names}")
    if not isinstance(output, tuple | list):
        raise EntryError(f"{wanted} a {_kind(output)}")
    if not -len(output) <= entry < len(output):
        raise EntryError(f"{wanted} a {_kind(output)} of {len(output)}")
    return output[entry]


def _kind(output: Any) -> str:
    return "tensor" if isinstance(output, Tensor) else type(output).__name__
