"""The spin count is set for this process alone, and only where nobody chose one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPO

# With the package, and without the time that takes: oes_fast/_openmp.py alone, and an empty module as torch.
SEEN = """
import os, sys, types
{first}
loaded = []
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            loaded.append(os.environ.get("GOMP_SPINCOUNT"))
            {found}
sys.meta_path.insert(0, Spy())
{then}
print(loaded, os.environ.get("GOMP_SPINCOUNT"))
"""
PACKAGE = {"found": "", "then": "import oes_fast"}
ALONE = {
    "found": "return __import__('importlib').machinery.ModuleSpec('torch', Empty())",
    "then": f"__import__('runpy').run_path({str(REPO / 'oes_fast' / '_openmp.py')!r}); import torch",
}
EMPTY = """
class Empty:
    def create_module(self, spec): return None
    def exec_module(self, module): pass
"""


@pytest.mark.parametrize(
    ("first", "chosen", "wanted", "how"),
    [
        ("", {}, "['1000'] None", PACKAGE),
        ("", {}, "['1000'] None", ALONE),
        ("", {"GOMP_SPINCOUNT": "7"}, "['7'] 7", ALONE),
        ("", {"OMP_WAIT_POLICY": "passive"}, "[None] None", ALONE),
        ("sys.modules['torch'] = types.ModuleType('torch')", {}, "[] None", ALONE),
    ],
)
def test_spin_count(first: str, chosen: dict[str, str], wanted: str, how: dict[str, str]) -> None:
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", SEEN.format(first=first + EMPTY, **how)],
        env=inherited | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == wanted
