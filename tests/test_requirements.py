"""One table of versions: README.md, pyproject.toml, and what the import and the probes check."""

from __future__ import annotations

import importlib
import platform  # noqa: F401
import re
import runpy
import sys
from types import SimpleNamespace

import pytest
from conftest import REPO
from kernel_backends import run_python

from oes_fast.requirements import OLDEST, lack, release, text

README = (REPO / "README.md").read_text("utf-8")
PYPROJECT = (REPO / "pyproject.toml").read_text("utf-8")


def test_readme_says_the_same():
    rows = dict(re.findall(r"^\| (Python|PyTorch|NumPy|Triton) \| ([\d.]+) \|", README, re.MULTILINE))
    assert {name.lower().replace("pytorch", "torch"): version for name, version in rows.items()} == {
        name: text(name) for name in OLDEST
    }
    assert "PyTorch 2.10 and newer bring it" in README


@pytest.mark.parametrize("name", OLDEST)
def test_pyproject_says_the_same(name):
    pattern = r'requires-python = ">=([\d.]+)"' if name == "python" else rf'"{name}>=([\d.]+)[";]'
    assert set(re.findall(pattern, PYPROJECT)) == {text(name)}


def test_no_other_version_is_written_down():
    wrong = re.compile(
        r"(?:torch|PyTorch)(?:>=| )2\.(?!10\b)\d+ (?:or newer|on)\b|Triton 3\.(?!6\b)\d+ or newer"
    )
    for path in [REPO / "README.md", REPO / "requirements-dev.txt", *(REPO / "docs").glob("*.md")]:
        assert not wrong.search(path.read_text("utf-8")), path
    tool = re.search(r'^python_version = "([\d.]+)"', PYPROJECT, re.MULTILINE)
    assert tool[1] == text("python")
    assert f'target-version = "py{text("python").replace(".", "")}"' in PYPROJECT


@pytest.mark.parametrize(
    ("version", "parts"),
    [
        ("2.13.0+cpu", (2, 13)),
        ("2.9.1", (2, 9)),
        ("2.11.0a0+git12ab", (2, 11)),
        ("3.0.0.dev20260101+cu130", (3, 0)),
        ("10.2rc1", (10, 2)),
        ("unknown", (0, 0)),
    ],
)
def test_release(version, parts):
    assert release(version) == parts


def test_lack():
    assert lack("torch", "2.10.0+cpu") == lack("torch", "3.0") == lack("triton", "3.6.0") == ""
    assert lack("torch", "2.9.1") == "needs PyTorch 2.10 or newer, found 2.9.1; pip install 'torch>=2.10'"
    assert lack("numpy", None) == "needs NumPy 1.26 or newer, found none; pip install 'numpy>=1.26'"
    assert lack("python", "3.9.18") == "needs Python 3.10 or newer, found 3.9.18"


@pytest.mark.parametrize(
    ("module", "attribute", "found", "said"),
    [
        ("torch", "__version__", "2.9.1", "oes_fast needs PyTorch 2.10 or newer, found 2.9.1; pip install "),
        ("numpy", "__version__", "1.25.2", "oes_fast needs NumPy 1.26 or newer, found 1.25.2; pip install "),
        ("platform", "python_version", lambda: "3.9.18", "oes_fast needs Python 3.10 or newer, found 3.9.18"),
    ],
)
def test_import_refuses_older_ones_in_one_line(monkeypatch, module, attribute, found, said):
    monkeypatch.setattr(sys.modules[module], attribute, found)
    with pytest.raises(ImportError, match=f"^{re.escape(said)}") as caught:
        runpy.run_path(str(REPO / "oes_fast" / "_startup.py"))
    assert "\n" not in str(caught.value)


def test_import_without_torch_says_so():
    done = run_python("-c", "import sys; sys.modules['torch'] = None; import oes_fast")
    assert done.returncode == 1
    assert "During handling" not in done.stderr
    said = "ImportError: oes_fast needs PyTorch 2.10 or newer, found none; pip install 'torch>=2.10'"
    assert done.stderr.strip().splitlines()[-1] == said


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.5.1", "not available: needs Triton 3.6 or newer, found 3.5.1; pip install 'triton>=3.6'"),
        (None, "not available: needs Triton 3.6 or newer, found none; pip install 'triton>=3.6'"),
    ],
)
def test_older_triton_is_not_available(monkeypatch, version, said):
    monkeypatch.setitem(
        sys.modules, "triton", SimpleNamespace(**({"__version__": version} if version else {}))
    )
    backends = importlib.import_module("oes_fast.backends")
    assert str(backends._probe_triton()) == said


def test_everything_that_development_takes_is_pinned():
    """One version on the Pythons that are developed on: no release of others changes what the tests see."""
    wanted = re.findall(
        r"^([A-Za-z][\w-]*)[ ]*([^\s;]*)", (REPO / "requirements-dev.txt").read_text(), re.MULTILINE
    )
    pinned = re.findall(
        r'^([\w-]+)==\S+; python_version >= "3.11"$', (REPO / "constraints-dev.txt").read_text(), re.MULTILINE
    )
    loose = {name for name, version in wanted if not version.startswith("==")} - set(pinned)
    assert loose == {"triton"}  # which torch chooses
    assert set(pinned) <= {name for name, _ in wanted}
