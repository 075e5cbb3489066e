"""Which folder may import which, and where tests lie. The C++ side of it is in test_cpp_layout.py."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO

PACKAGE = REPO / "oes_fast"
CHECKS = {"_checks", "errors"}

# By folder, or by file where a folder has an order within it: what of oes_fast it may import. The first row
# is the face, `import oes_fast`. Everything in a folder goes by the folder's row unless it has its own.
MAY_IMPORT: dict[str, set[str]] = {
    "": {
        "_command", "_startup", "analysis", "backends", "baselines", "errors", "flat", "functional", "io",
        "mask", "models", "nn", "noise", "pipelines", "precision", "pruning", "reconstructor", "rewrite",
        "tasks", "version",
    },
    "__main__": {"cli"},
    "_command": {"cli"},  # its display, signals and garbage, which import nothing else of oes_fast
    "_startup": {"_openmp", "requirements"},
    "cli": {
        *CHECKS, "_memory", "analysis", "backends", "batch", "bench", "comparison", "flat", "io", "mask",
        "mask_notes", "meta_device", "models", "noise", "pipelines", "precision", "pruning", "recipe",
        "tasks", "ui", "version", "weights_file",
    },
    "ui": {*CHECKS, "analysis", "autotune_cache", "flat", "io", "pipelines", "precision", "version"},
    "batch": {
        *CHECKS, "_memory", "autotune_cache", "backends", "flat", "io", "mask", "mask_notes", "models",
        "noise", "pipelines", "precision", "recipe", "version", "workers",
    },
    "comparison": {
        *CHECKS, "analysis", "backends", "baselines", "io", "mask", "models", "noise", "pipelines",
        "precision", "pruning", "version", "weights_file", "workers",
    },
    "bench": {
        *CHECKS, "autotune_cache", "backends", "io", "mask", "models", "noise", "pipelines", "precision",
        "timing", "version",
    },
    "analysis": {
        *CHECKS, "copies", "entry", "flat", "mask", "pipelines", "reference", "rewrite.ir",
        "rewrite.liveness", "rewrite.tracing",
    },
    "pruning": {
        *CHECKS, "backends", "copies", "entry", "flat", "mask", "named_masks", "pipelines", "precision",
        "reference", "rewrite",
    },
    "baselines": {*CHECKS, "entry", "models", "pipelines", "precision"},
    "reconstructor": {*CHECKS, "entry", "mask", "models", "noise", "pipelines", "tasks"},
    "pipelines": {
        *CHECKS, "_memory", "autotune_cache", "backends", "copies", "entry", "flat", "io", "mask", "models",
        "noise", "ops", "precision", "recipe", "reference", "rewrite", "rewrite.run", "version",
    },
    "tasks": {*CHECKS, "_memory", "io", "models", "noise", "pipelines", "reference"},
    "rewrite": {
        *CHECKS, "_C", "_cuda_extension", "_memory", "backends", "copies", "entry", "flat", "mask", "ops",
        "reference", "rewrite.ir", "rewrite.liveness", "rewrite.rules", "rewrite.run", "rewrite.tracing",
        "rewrite.weights",
    },
    "rewrite.run": {
        *CHECKS, "_C", "_cuda_extension", "copies", "ops", "precision", "rewrite.conv_algorithm",
        "rewrite.ir", "rewrite.liveness", "rewrite.weights",
    },
    "rewrite.tracing": {*CHECKS, "copies", "entry", "meta_device", "nn", "rewrite.ir"},
    "rewrite.rules": {"rewrite.ir"},
    "rewrite.liveness": {"rewrite.ir", "rewrite.weights"},
    "rewrite.weights": {"flat"},
    "rewrite.conv_algorithm": {"_C", "autotune_cache", "timing"},
    "rewrite.ir": set(),
    "functional": {"ops"},
    "nn": {*CHECKS, "autotune_cache", "backends", "meta_device", "ops", "reference", "timing"},
    "ops": {*CHECKS, "_C", "backends", "cuda_kernels", "kernels", "reference"},
    "kernels": {"autotune_cache"},
    "cuda_kernels": {*CHECKS, "_cuda_extension"},
    "reference": set(),
    "models": {*CHECKS, "meta_device", "noise", "recipe"},
    "io": CHECKS,
    "mask": {*CHECKS, "flat", "io", "named_masks", "recipe", "reference"},
    "mask_notes": {"mask", "recipe"},
    "named_masks": {"errors", "flat"},
    "weights_file": {"errors", "flat", "io"},
    "noise": {*CHECKS, "reference"},
    "precision": CHECKS,
    "copies": {"errors"},
    "flat": {"errors"},
    "backends": {"_C", "_cuda_extension", "_cuda_toolkit", "_extension", "errors", "requirements"},
    "_checks": {"errors"},
    "_cuda_extension": {"_extension"},
    "_cuda_toolkit": set(),
    "_extension": {"_cuda_toolkit", "requirements"},
    "_memory": set(),
    "_openmp": set(),
    "autotune_cache": set(),
    "entry": {"errors"},
    "meta_device": set(),
    "errors": set(),
    "recipe": set(),
    "requirements": set(),
    "timing": set(),
    "version": set(),
    "workers": {"errors"},
}  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module as its dotted name within oes_fast ("" for oes_fast itself) and its tree."""
    for folder, prefix in ((PACKAGE, ""), (REPO / "kernels", "kernels.")):
        for path in sorted(folder.rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            yield (prefix + name).removesuffix("__init__").strip("."), ast.parse(path.read_text("utf-8"))


MODULES = dict(modules())


def row_of(name: str) -> str | None:
    """The row that a dotted name goes by: the longest that it begins with."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in MAY_IMPORT:
            return ".".join(parts[:length])
    return None


def imports(name: str, tree: ast.AST, *, typing: bool = True) -> Iterator[str]:
    """What the module imports of oes_fast, within functions too, without the "oes_fast."."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and not typing and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import hides where it leads"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            yield from imports(name, node, typing=typing)
            continue
        for imported in names:
            if imported == "oes_fast" or imported.startswith("oes_fast."):
                yield imported.removeprefix("oes_fast").removeprefix(".")


def wrong_imports(name: str, tree: ast.AST) -> list[str]:
    """Those that the table does not allow."""
    row = row_of(name)
    assert row is not None, f"{name} has no row in the table"
    targets = {target: row_of(target) or target.split(".")[0] for target in imports(name, tree)}
    return [
        f"{name or 'oes_fast'} imports {target}"
        for target, other in sorted(targets.items())
        if other not in (row, *MAY_IMPORT[row])
    ]


def test_imports_run_one_way():
    assert [wrong for name, tree in MODULES.items() for wrong in wrong_imports(name, tree)] == []


def test_every_import_is_seen():
    assert "mask.Mask" in imports("pipelines.train", MODULES["pipelines.train"])
    within_a_function = ast.parse("def f():\n    if True:\n        import oes_fast.cli.app")
    assert wrong_imports("ops.gumbel_mask", within_a_function) == ["ops.gumbel_mask imports cli.app"]
    only_types = ast.parse("if TYPE_CHECKING:\n    from oes_fast.rewrite import plan")
    assert wrong_imports("rewrite.run.torch_ops", only_types) == [
        "rewrite.run.torch_ops imports rewrite.plan"
    ]
    assert wrong_imports("rewrite.plan", ast.parse("from oes_fast.rewrite.run import torch_ops")) == []


def test_the_table_has_an_order_and_no_row_for_nothing():
    assert list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError
    rows = {row_of(name) for name in MODULES}
    assert sorted(MAY_IMPORT.keys() - rows) == []
    assert sorted({target for row in MAY_IMPORT.values() for target in row} - MAY_IMPORT.keys()) == ["_C"]


def test_no_modules_import_each_other_in_a_circle():
    """Apart from what is imported for type checkers alone."""
    graph = {}
    for name, tree in MODULES.items():
        targets = set()
        for target in imports(name, tree, typing=False):
            module = target if target in MODULES else target.rpartition(".")[0]
            targets.add(module)
        graph[name] = targets - {name}
    assert list(graphlib.TopologicalSorter(graph).static_order())


FOLDERS = sorted(path for path in (REPO / "tests").rglob("*") if path.is_dir() and any(path.glob("*.py")))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_folders_of_tests_are_those_of_what_they_test(folder: Path):
    name = folder.relative_to(REPO / "tests")
    places = (PACKAGE, REPO, REPO / "csrc")
    assert str(name) == "helpers" or any((place / name).is_dir() for place in places)


def test_names_of_test_files_are_unique():
    names = [path.name for path in (REPO / "tests").rglob("test_*.py")]
    assert sorted(name for name in names if names.count(name) > 1) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_an_operation_is_one_name_all_the_way_down(path: Path):
    """docs/architecture.md: definition and tests of an operation carry its name."""
    assert (PACKAGE / "reference" / path.name).exists()
    assert (REPO / "tests" / "ops" / f"test_{path.name}").exists()
