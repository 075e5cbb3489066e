"""oes_fast/_C.pyi and the C++ extension have the same names, members and parameters."""

from __future__ import annotations

import ast
import re
from types import ModuleType

import pytest
from conftest import REPO
from kernel_backends import require

STUB = ast.parse((REPO / "oes_fast" / "_C.pyi").read_text("utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
PUBLIC = sorted(name for name in CLASSES if not name.startswith("_"))


@pytest.fixture
def extension() -> ModuleType:
    require("cpu")
    from oes_fast import _C

    return _C


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a stub declares, by name."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            names[node.target.id] = node
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
    return names


def inherited(name: str) -> dict[str, ast.stmt]:
    """What a class of the stub declares, that of its base included."""
    node = CLASSES[name]
    names = declared(node.body)
    for base in node.bases:
        assert isinstance(base, ast.Name)
        names = inherited(base.id) | names
    return names


def parameters(doc: str | None) -> list[str]:
    """Names of the parameters in the signature that pybind11 writes first into a docstring."""
    signature = re.match(r"\w+\((.*)\) -> ", (doc or "").splitlines()[0])
    assert signature is not None, doc
    inside = re.sub(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]", "", signature[1])  # types have commas, too
    return [part.split(":")[0].strip() for part in inside.split(",") if part.strip()]


def check_parameters(node: ast.stmt, function: object) -> None:
    assert isinstance(node, ast.FunctionDef)
    assert parameters(function.__doc__) == [argument.arg for argument in node.args.args]


def test_names_of_the_module(extension):
    present = {name for name in dir(extension) if not name.startswith("__")}
    assert present == {name for name in declared(STUB.body) if not name.startswith("_")}
    for name, node in declared(STUB.body).items():
        if isinstance(node, ast.FunctionDef):
            check_parameters(node, getattr(extension, name))


@pytest.mark.parametrize("name", PUBLIC)
def test_members_of_a_class(extension, name):
    cls, names = getattr(extension, name), inherited(name)
    members = {member for member in dir(cls) if not member.startswith("_")}
    assert members == {member for member in names if member != "__init__"}
    for member, node in names.items():
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            check_parameters(node, getattr(cls, member))
    values = [member for member, node in names.items() if isinstance(node, ast.AnnAssign)]
    if hasattr(cls, "__members__"):
        assert {member: cls(value).name for value, member in enumerate(values)} == {v: v for v in values}
