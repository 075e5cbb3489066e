"""Lint, format and types."""

from __future__ import annotations

import ast
import importlib.util
import re
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


def test_files_that_code_and_comments_name_are_there():
    name = re.compile(r"(?<![\w/])(?:csrc|oes_fast|kernels|tests|benchmarks)/[\w/]*\w\.(?:py|cpp|h)\b")
    missing = {}
    for folder in ("csrc", "oes_fast", "kernels", "tests", "benchmarks"):
        for path in (p for p in (REPO / folder).rglob("*") if p.suffix in (".py", ".pyi", ".cpp", ".h")):
            # oes_fast.kernels is the folder kernels/.
            found = {
                n.replace("oes_fast/kernels/", "kernels/") for n in name.findall(path.read_text("utf-8"))
            }
            if gone := sorted(
                n for n in found if not any((root / n).exists() for root in (REPO, path.parents[1]))
            ):
                missing[str(path.relative_to(REPO))] = gone
    assert missing == {}


@pytest.mark.parametrize("path", sorted((REPO / "kernels").glob("*.py")), ids=lambda path: path.stem)
def test_functions_that_launch_kernels_are_annotated(path):
    """Mypy cannot be told to leave out what Triton compiles, whose arguments have no types of Python's."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef) and not compiled_by_triton(node):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [more for more in (node.args.vararg, node.args.kwarg) if more is not None]
            missing = [a.arg for a in arguments if a.annotation is None and a.arg != "self"]
            assert missing == [], node.name
            assert node.returns is not None, node.name


def compiled_by_triton(function):
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
