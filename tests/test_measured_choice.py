"""A choice is looked up in the process, then on disk, then measured."""

from __future__ import annotations

import json

import pytest

from oes_fast import autotune_cache
from oes_fast.autotune_cache import choices_in_use, measured_choice, take_choices

pytestmark = pytest.mark.usefixtures("no_known_choices")


def ask(measure, key="3 x 3", kind="form"):
    return measured_choice(kind, "avx2", key, measure, valid=lambda row: isinstance(row, bool))


def refuse():
    raise AssertionError("measured again")


def forget_process():
    autotune_cache._in_use.clear()
    autotune_cache._on_disk.cache_clear()


def test_measured_once_and_kept_on_disk():
    assert ask(lambda: True) is True
    assert ask(refuse) is True
    forget_process()
    assert ask(refuse) is True
    assert choices_in_use() == {"form avx2 3 x 3": True}


def test_each_kind_and_problem_has_its_own():
    assert ask(lambda: True) is True
    assert ask(lambda: False, key="5 x 5") is False
    assert ask(lambda: False, kind="another") is False


def test_what_another_process_chose_comes_before_the_disk():
    ask(lambda: True)
    forget_process()
    take_choices({"form avx2 3 x 3": False})
    assert ask(refuse) is False


@pytest.mark.parametrize("damage", ['{"3 x 3": [1, 2]}', "[]", "no JSON"])
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    ask(lambda: True)
    (file,) = (tmp_path / "choices").iterdir()
    file.write_text(damage)
    forget_process()
    assert ask(lambda: False) is False
    assert json.loads(file.read_text())["3 x 3"] is False
