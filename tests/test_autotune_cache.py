"""Where choices that were measured are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oes_fast.autotune_cache import cache_folder, choices_file


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
