"""Steps of a run that a page shows, timed beside steps that it does not."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import table_text, tables, ui_display
from benchmarks.ui_display import Turns


class Watch:
    """Notes which steps it is shown, each for a millisecond."""

    def __init__(self) -> None:
        self.steps = []

    def see(self, info):
        self.steps.append(info.step)
        time.sleep(1e-3)
        return info.step == 13


def test_blocks_are_watched_in_turn():
    watch, open_page = Watch(), multiprocessing.get_context("spawn").Event()
    turns = Turns(watch, open_page, 5)
    opened, stopped = [], []
    for step in range(21):
        if turns.see(SimpleNamespace(step=step, steps=20)):
            stopped.append(step)
        opened.append(open_page.is_set())
    assert watch.steps == [*range(5, 10), *range(15, 20), 20]  # the last one as well, whatever the turn
    assert opened == [step in watch.steps and step < 20 for step in range(21)]
    assert stopped == []
    assert len(turns.blocks) == 4
    assert min(turns.blocks[1::2]) >= min(turns.hooks[1::2]) >= 1 > max(turns.blocks[::2])


def test_a_stop_ends_a_run_that_is_not_watched_at_the_next_step_that_is():
    turns = Turns(Watch(), multiprocessing.get_context("spawn").Event(), 13)
    assert [step for step in range(26) if turns.see(SimpleNamespace(step=step, steps=100))] == [13]


def test_what_was_measured_is_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(table_text, "RESULTS", tmp_path)
    assert tables.TABLES["ui display"]() == "Not measured yet."
    where = {"gpu": None, "cpu": "A CPU", "cpu_capability": "AVX2", "cores": 2, "torch": "2.13"}
    result = {
        "date": "2026-01-01", "command": "python -m benchmarks.ui_display", "environment": where,
        "image": "astronaut", "size": 256, "threads": 1,
        "ms a step": {
            "not watched": {"min": 10.0, "median": 11.0}, "watched": {"min": 10.1, "median": 11.33},
        },
        "server, share of a core": 0.0312,
        "of which frames": {"min": 0.1, "median": 0.2},
        "times as long": {"min": 1.01, "median": 1.03},
    }  # fmt: skip
    (tmp_path / "ui-display.json").write_text(json.dumps(result))
    row = tables.TABLES["ui display"]().splitlines()[-1]
    assert row == "| 256 x 256 | 1 | 10.00 (11.00) | 10.10 (11.33) | 0.10 (0.20) | 1.0 (3.0) | 3.1 |"


@pytest.mark.slow
def test_a_server_is_asked_while_a_block_is_watched(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    file = tmp_path / "ui-display.json"
    words = ["--size", "32", "--steps", "60", "--rounds", "2", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["ui_display", *words])
    ui_display.main()
    found = json.loads(file.read_text())
    times = found["ms a step"]
    assert found["server, share of a core"] > 0
    assert 0 < found["of which frames"]["median"] < times["watched"]["median"]
    for key in ("min", "median"):
        ratio = times["watched"][key] / times["not watched"][key]
        assert found["times as long"][key] == pytest.approx(ratio)
    assert "times as long: " in capsys.readouterr().out
