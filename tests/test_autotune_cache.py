"""Where choices that were measured are kept, and where one is looked up: process, disk, measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from oes_fast import autotune_cache
from oes_fast.autotune_cache import (
    cache_folder,
    choices_file,
    choices_in_use,
    choices_put_back,
    measured_choice,
    note_choice,
    take_choices,
)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
@pytest.mark.parametrize("installed", [True, False], ids=["platformdirs", "without platformdirs"])
def test_choices_lie_in_the_folder_for_caches(monkeypatch, tmp_path, installed):
    if installed:
        pytest.importorskip("platformdirs")
    else:
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.delenv("OES_FAST_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "oes_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "oes_fast"
    monkeypatch.setenv("OES_FAST_CACHE_DIR", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    assert not any(tmp_path.iterdir())  # nothing is made before there is something to keep
    assert choices_file("kind", "a device: 7").parent == Path(tmp_path / "own")


def ask(measure, key="3 x 3", kind="form"):
    return measured_choice(kind, "avx2", key, measure, valid=lambda row: isinstance(row, bool))


def refuse():
    raise AssertionError("measured again")


def forget_process():
    autotune_cache._in_use.clear()
    autotune_cache._on_disk.cache_clear()


@pytest.mark.usefixtures("no_known_choices")
def test_measured_once_and_kept_on_disk():
    assert ask(lambda: True) is True
    assert ask(refuse) is True
    forget_process()
    assert ask(refuse) is True
    assert choices_in_use() == {"form avx2 3 x 3": True}


@pytest.mark.usefixtures("no_known_choices")
def test_each_kind_and_problem_has_its_own():
    assert ask(lambda: True) is True
    assert ask(lambda: False, key="5 x 5") is False
    assert ask(lambda: False, kind="another") is False


@pytest.mark.usefixtures("no_known_choices")
def test_what_another_process_chose_comes_before_the_disk():
    ask(lambda: True)
    forget_process()
    take_choices({"form avx2 3 x 3": False})
    assert ask(refuse) is False


@pytest.mark.usefixtures("no_known_choices")
@pytest.mark.parametrize("damage", ['{"3 x 3": [1, 2]}', "[]", "no JSON"])
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    ask(lambda: True)
    (file,) = (tmp_path / "choices").iterdir()
    file.write_text(damage)
    forget_process()
    assert ask(lambda: False) is False
    assert json.loads(file.read_text())["3 x 3"] is False


@pytest.mark.usefixtures("no_known_choices")
def test_choices_of_another_process_are_put_back():
    note_choice("before", 1)
    with choices_put_back():
        take_choices({"before": 2, "other": 3, "late": 4})
        note_choice("measured", 5)
        assert choices_in_use() == {"before": 2, "other": 3, "late": 4, "measured": 5}
    assert choices_in_use() == {"before": 1, "measured": 5}
