"""Lint, format, types, and the direction of imports that docs/layout.md draws."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO

# From the top to the bottom; what is beside them comes after.
LAYERS = ["cli", "pipelines", "rewrite", "nn", "ops", "reference"]
BESIDE = {
    "_checks", "_command", "_extension", "_memory", "_openmp", "_startup", "autotune_cache", "backends",
    "copies", "errors", "flat", "functional", "io", "mask", "models", "noise", "precision",
    "requirements", "version",
}  # fmt: skip
BELOW_OPS = {"_checks", "_C", "backends", "errors", "kernels", "reference"}


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


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module as its dotted name within oes_fast ("" for oes_fast itself) and its tree."""
    for folder, prefix in ((REPO / "oes_fast", ""), (REPO / "kernels", "kernels.")):
        for path in sorted(folder.rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            yield (prefix + name).removesuffix("__init__").strip("."), ast.parse(path.read_text("utf-8"))


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Names under oes_fast that the module imports anywhere in it, without the "oes_fast."."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import hides its layer"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for imported in names:
            if imported == "oes_fast" or imported.startswith("oes_fast."):
                yield imported.removeprefix("oes_fast").removeprefix(".")


def allowed(layer: str, target: str) -> bool:
    """Whether a module of ``layer`` may import from ``target``, both first parts of dotted names."""
    if layer == target or layer in ("", "__main__", "_command"):  # what a process starts with
        return True
    if layer in ("kernels", "reference"):
        return layer == "kernels" and target in ("reference", "autotune_cache")
    if layer == "ops":
        return target in BELOW_OPS
    if layer in LAYERS:
        return target in BESIDE or target in LAYERS[LAYERS.index(layer) :]
    if layer in ("autotune_cache", "errors", "requirements", "version"):
        return False
    return target in BESIDE | {"reference", "_C"} or (layer == "functional" and target == "ops")


def test_imports_run_one_way():
    found = {(name, target) for name, tree in modules() for target in imports(name, tree)}
    wrong = [
        f"{name} imports {target}"
        for name, target in sorted(found)
        if not allowed(name.split(".")[0], target.split(".")[0])
    ]
    assert wrong == []
    assert ("pipelines.search", "mask.Mask") in found  # the parser sees them


def test_every_module_has_its_place():
    known = {*LAYERS, *BESIDE, "kernels", "", "__main__"}
    assert sorted({name.split(".")[0] for name, _ in modules()} - known) == []


def test_the_rules_forbid_something():
    assert not allowed("ops", "nn")
    assert not allowed("ops", "mask")
    assert not allowed("reference", "ops")
    assert not allowed("kernels", "errors")
    assert not allowed("mask", "pipelines")
    assert not allowed("rewrite", "pipelines")
    assert allowed("pipelines", "rewrite")
    assert allowed("nn", "ops")


@pytest.mark.parametrize("path", sorted((REPO / "oes_fast" / "ops").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_an_operation_is_one_name_all_the_way_down(path: Path):
    """docs/layout.md: definition and tests of an operation carry its name."""
    assert (REPO / "oes_fast" / "reference" / path.name).exists()
    assert (REPO / "tests" / "ops" / f"test_{path.name}").exists()
