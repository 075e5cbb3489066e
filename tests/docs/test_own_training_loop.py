"""The loops of docs/own_training_loop.md run, and compute what the pipelines compute."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from small_generator import small_generators

import oes_fast as oes

SIZES = {"SIZE": 32, "SEARCH_STEPS": 3, "TRAIN_STEPS": 3}


def page_code() -> str:
    """All code of the page, at the sizes of the test."""
    text = (REPO / "docs" / "own_training_loop.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for name, value in SIZES.items():
        code, found = re.subn(rf"^{name} = [\d_]+$", f"{name} = {value}", code, flags=re.MULTILINE)
        assert found == 1, f"{name} is set once"
    return code


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page has defined at its end."""
    names: dict[str, Any] = {}
    with small_generators():
        exec(compile(page_code(), "docs/own_training_loop.md", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_the_search_is_that_of_search_mask_bit_for_bit(page):
    found = oes.search_mask(
        page["net"], page["z"], page["noisy"], density=0.05, steps=SIZES["SEARCH_STEPS"], seed=0, verify=False
    )
    assert torch.equal(page["logits"], found.logits)
    assert page["logits"].abs().max() > 0
    assert torch.equal(page["mask"].flat, found.mask.flat)


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_the_training_is_that_of_train_sparse_but_for_rounding(page):
    fit = oes.train_sparse(
        page["net"], page["mask"], page["z"], page["noisy"], steps=SIZES["TRAIN_STEPS"], verify=False
    )
    torch.testing.assert_close(page["restored"], fit.output, rtol=0, atol=1e-3)
    torch.testing.assert_close(page["dense"](page["z"]), fit.output, rtol=0, atol=1e-3)


def test_the_groups_hold_all_weights_and_move(page):
    numbers = sum(tensor.numel() for tensor in (*page["decayed"], *page["others"]))
    assert numbers == page["mask"].kept
    assert page["loss"] < F.mse_loss(oes.sparsify(page["net"], page["mask"])(page["z"]), page["noisy"])
