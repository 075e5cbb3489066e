"""The API reference is built from the docstrings without a warning."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from conftest import REPO

import oes_fast as oes


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the package, as `make docs` makes it."""
    if importlib.util.find_spec("pdoc") is None:
        pytest.skip("pdoc is not installed")
    folder = tmp_path_factory.mktemp("docs")
    makefile = (REPO / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ").replace("$$", "$")
    (command,) = (line for line in makefile.splitlines() if "-m pdoc" in line)
    words = command.replace("$(DOCS)", str(folder)).replace("'", "").split()
    assert words[0] == "$(BIN)/python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return (folder / "oes_fast.html").read_text(encoding="utf-8")


def test_every_public_name_is_there(reference):
    missing = [name for name in oes.__all__ if f'id="{name}"' not in reference and name != "__version__"]
    assert set(missing) <= {
        "analysis",
        "baselines",
        "functional",
        "models",
        "pruning",
        "tasks",
    }  # pages of their own


def test_no_markup_is_left_over(reference):
    for markup in (":func:", ":class:", ":meth:", ":attr:", ":data:"):
        assert markup not in reference
