"""The notebook runs from its first cell to its last, with few steps."""

from __future__ import annotations

import json
import re
from typing import Any

import matplotlib as mpl
import pytest
from conftest import REPO
from small_generator import small_generators

import oes_fast as oes

PARAMETERS = {"SIZE": 64, "SEARCH_STEPS": 3, "TRAIN_STEPS": 4}
NOTEBOOK = REPO / "notebooks" / "denoise.ipynb"


def cells() -> list[str]:
    """The code of every cell, the first with the parameters of the test."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code[0]["metadata"]["tags"] == ["parameters"]
    sources = ["".join(cell["source"]) for cell in code]
    for name, value in PARAMETERS.items():
        sources[0], found = re.subn(rf"^{name} = [\d_]+", f"{name} = {value}", sources[0], flags=re.MULTILINE)
        assert found == 1
    return sources


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with mpl.rc_context({"backend": "agg"}), small_generators():
        for number, source in enumerate(cells()):
            exec(compile(source, f"denoise.ipynb[{number}]", "exec"), names)
    assert oes.load_image("restored.png").pixels.shape == (1, 3, 64, 64)
    assert oes.Mask.load("mask.safetensors").kept == names["found"].mask.kept
    assert names["fit"].steps == PARAMETERS["TRAIN_STEPS"]


def test_the_notebook_was_run_as_it_is():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert NOTEBOOK.stat().st_size < 700_000
