"""Lint, format and types."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from conftest import REPO


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("ruff", ["check", "--no-cache"]), ("ruff", ["format", "--check", "--no-cache"]), ("mypy", [])],
    ids=["lint", "format", "types"],
)
def test_tool_has_nothing_to_say(tool, arguments):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
