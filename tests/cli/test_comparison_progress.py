"""What a comparison shows on stderr: bars in a terminal, lines elsewhere, nothing but failures when quiet."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from oes_fast.cli import comparison_progress
from oes_fast.cli.comparison_progress import ComparisonProgress
from oes_fast.comparison import Cell, Outcome, Step

CELLS = [Cell("pepper", "oes", 0.05, seed) for seed in range(3)]


def shown(*, terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=110, highlight=False)
    with ComparisonProgress(quiet=quiet, console=console) as progress:
        progress.planned(CELLS, CELLS[:1])
        progress.step(Step(CELLS[1], "search", 0, 100, 0.1, 12.0))
        progress.step(Step(CELLS[1], "search", 50, 100, 0.1, 13.25))
        progress.step(Step(CELLS[2], "train", 3, 100, 0.1, float("nan")))
        progress.step(Step(CELLS[1], "train", 10, 100, 0.1, 14.0))
        progress.ended(Outcome(CELLS[1]))
        progress.ended(Outcome(CELLS[2], "no [memory]"))
    return stream.getvalue()


def test_bars_for_the_whole_and_each_cell() -> None:
    text = shown(terminal=True)
    assert "All cells" in text
    assert "3/3" in text
    assert "pepper, oes 5 %, seed 2: failed: no [memory]" in text


def test_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(comparison_progress, "LINE_SECONDS", 0.0)
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "3 cells, 1 of them done before"
    assert lines[2] == "pepper, oes 5 %, seed 1: search 50/100  13.25 dB"
    assert lines[-1].startswith("2/3  pepper, oes 5 %, seed 1: done  0:00 gone, 0:00 left")
    assert capsys.readouterr().err == "oes-fast: warning: pepper, oes 5 %, seed 2: failed: no [memory]\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(terminal=terminal, quiet=True) == ""
    assert "failed: no [memory]" in capsys.readouterr().err
