"""The spin count is set for this process alone, and only where nobody chose one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEEN = """
import os, sys
{first}
loaded = []
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            loaded.append(os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Spy())
import oes_fast
print(loaded, os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("first", "chosen", "wanted"),
    [
        ("", {}, "['1000'] None"),
        ("", {"GOMP_SPINCOUNT": "7"}, "['7'] 7"),
        ("", {"OMP_WAIT_POLICY": "passive"}, "[None] None"),
        ("import torch", {}, "[] None"),
    ],
)
def test_spin_count(first: str, chosen: dict[str, str], wanted: str) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", SEEN.format(first=first)],
        env=inherited | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == wanted
