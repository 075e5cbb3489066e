"""What the pages name exists, their tables are those of the results, and their links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPO

from benchmarks import table_text, tables

PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "CHANGELOG.md",
    *sorted((REPO / "docs").glob("*.md")),
]
SUFFIXES = "py|pyi|h|cpp|md|json|toml|txt|ipynb|yml|cff"
NAMED = re.compile(rf"`([\w.-]+(?:/[\w.-]+)*\.(?:{SUFFIXES}))(?:::([\w.]+))?`")
FOLDER = re.compile(r"`((?:[\w-]+/)+)`")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
PLACEHOLDER = re.compile(r"[A-Z]{4,}|\bX\b|X_|_X\b")  # OPERATION.py, X.h, test_X.py
MADE = ("build/", "demo/")  # by commands


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request: pytest.FixtureRequest) -> Path:
    """One page."""
    return request.param


def defined(path: Path) -> Iterator[str]:
    """Names that a Python file defines: functions, classes, methods with their class, module variables."""

    def inside(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield prefix + node.name
                yield from inside(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))

    yield from inside(ast.parse(path.read_text("utf-8")).body, "")


def exists(path: Path, name: str) -> bool:
    """Whether the file defines ``name``."""
    if path.suffix == ".py":
        return name in defined(path)
    return re.search(rf"\b{re.escape(name)}\b(?=\s*[({{;:])", path.read_text("utf-8")) is not None


def test_files_and_functions_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for file, name in NAMED.findall(text):
        if PLACEHOLDER.search(file) or "/" not in file:
            continue
        path = REPO / file
        if not path.is_file() or (name and not exists(path, name)):
            missing.append(f"{file}::{name}" if name else file)
    for folder in FOLDER.findall(text):
        if not folder.startswith(MADE) and not any(
            (base / folder).is_dir() for base in (REPO, REPO / "oes_fast")
        ):
            missing.append(folder)
    assert missing == []


def test_the_routes_name_files_and_functions():
    named = NAMED.findall((REPO / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert sum(1 for _, name in named if name) > 30


def test_links_lead_somewhere(page):
    missing = []
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            missing.append(target)
        elif anchor and anchor not in anchors(path):
            missing.append(f"{target}#{anchor}")
    assert missing == []


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "run `python -m benchmarks.tables`"


def test_every_table_and_result_is_on_a_page():
    text = "".join(path.read_text(encoding="utf-8") for path in tables.pages())
    assert set(tables.TABLES) == set(re.findall(r"<!-- table: ([a-z ]+) -->", text))
    results = {path.name for path in table_text.RESULTS.glob("*.json")}
    assert {name for name in results if name not in text} == set()
    for path in table_text.RESULTS.glob("*.json"):
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", json.loads(path.read_text(encoding="utf-8"))["date"]), path


def test_pages_are_not_those_of_one_machine():
    for path in PAGES:
        assert not re.search(r"/work/|/root/|/tmp/", path.read_text(encoding="utf-8")), path
