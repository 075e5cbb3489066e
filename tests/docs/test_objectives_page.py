"""The code of docs/objectives.md runs, and gives what the page says."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from conftest import REPO
from small_generator import small_generators

SIZES = {"SIZE": 32, "SEARCH_STEPS": 2, "TRAIN_STEPS": 2}


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_the_code_runs(capsys):
    text = (REPO / "docs" / "objectives.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for name, value in SIZES.items():
        code, found = re.subn(rf"^{name} = [\d_]+$", f"{name} = {value}", code, flags=re.MULTILINE)
        assert found == 1, f"{name} is set once"
    names: dict[str, Any] = {}
    with small_generators():
        exec(compile(code, "docs/objectives.md", "exec"), names)
    assert capsys.readouterr().out.startswith("torch.Size([1, 3, 32, 32])")
    assert names["low"].shape == (1, 3, 8, 8)
    assert names["fit"].output.shape == names["clean"].shape
    assert torch.isfinite(names["fit"].output).all()
