"""What benchmarks that go on where they were stopped write of each part, with what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.comparison import rounded
from benchmarks.table_text import Result


def write_json(path: Path, value: Result) -> None:
    """Write it whole or not at all: a file that is there says that its part is done."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value), encoding="utf-8")
    new.replace(path)


def finished(path: Path, **asked: Result) -> Result | None:
    """What a finished part wrote, None if it is not finished.

    Args:
        path: its file.
        asked: what it has to have been made with, by the names in the file.

    Raises:
        SystemExit: it was made with something else, which is named.
    """
    if not path.is_file():
        return None
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    for name, wanted in asked.items():
        keys = found[name].keys() | wanted.keys()
        other = sorted(key for key in keys if found[name].get(key) != wanted.get(key))
        if other:
            there, here = ({key: each.get(key) for key in other} for each in (found[name], wanted))
            raise SystemExit(f"{path}: made with {name} {there}, asked for {here}")
    return found


def neat(value: Any) -> Any:
    """Numbers to 4 digits behind the point."""
    return rounded(value) if isinstance(value, float) else value
