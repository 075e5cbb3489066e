"""The progress of search_mask and train_sparse: off by default, and what it shows where."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types

import pytest
from rich.console import Console

import oes_fast as oes
from oes_fast.pipelines import progress
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.progress import ProgressDisplay


class Shown(ProgressDisplay):
    """Records what it is asked to show."""

    infos: list[tuple[str, int]]

    def __call__(self, info: StepInfo) -> None:
        self.infos.append((info.phase, info.step))


def run(problem, **options):
    net, mask, z, noisy, _ = problem
    oes.search_mask(net, z, noisy, density=0.5, steps=2, backend="reference", **options)
    oes.train_sparse(net, mask, z, noisy, steps=2, backend="reference", **options)


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_every_step_is_shown_where_it_is_asked_for(problem, monkeypatch, capfd):
    Shown.infos = []
    monkeypatch.setattr(progress, "ProgressDisplay", Shown)
    run(problem)
    assert Shown.infos == []
    run(problem, progress=True)
    assert Shown.infos == [(phase, step) for phase in ("search", "train") for step in range(3)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
def test_a_file_gets_lines_on_stderr(problem, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run(problem, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split("  ")[0] for line in shown.err.splitlines()] == [
        *(f"Searching {step}/2" for step in range(3)),
        *(f"Training {step}/2" for step in range(3)),
    ]


def test_a_callback_still_ends_the_run(problem, capsys):
    net, mask, z, noisy, _ = problem
    fit = oes.train_sparse(
        net, mask, z, noisy, steps=9, backend="reference", progress=True, callback=lambda info: info.step == 1
    )
    assert fit.interrupted
    assert fit.steps == 2  # after the update under way


def test_progress_is_a_flag(problem):
    net, mask, z, noisy, _ = problem
    with pytest.raises(oes.InputError, match="progress: expected"):
        oes.train_sparse(net, mask, z, noisy, progress="yes")


class Cell:
    """What IPython.display does, recorded: every bar with all that it showed."""

    def __init__(self) -> None:
        self.bars: list[list[dict[str, str]]] = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.bars.append([data])
        return self

    def update(self, data, *, raw):
        assert raw
        self.bars[-1].append(data)


def test_a_notebook_gets_one_bar_for_each_phase(problem, monkeypatch):
    cell = Cell()
    module = types.ModuleType("IPython.display")
    module.display = cell.display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_jupyter=True)
    net, mask, z, noisy, clean = problem
    with ProgressDisplay(console=console) as show:
        oes.search_mask(net, z, noisy, density=0.5, steps=2, backend="reference", callback=show, clean=clean)
        oes.train_sparse(net, mask, z, noisy, steps=1, backend="reference", callback=show)
    searching, training = cell.bars
    assert [bar["text/plain"].split("  ")[0] for bar in searching] == [f"Searching {i}/2" for i in range(3)]
    assert " dB" in searching[-1]["text/plain"]
    assert '<progress value="2" max="2">' in searching[-1]["text/html"]
    assert len(training) == 2
    assert console.file.getvalue() == ""


WITHOUT_A_DISPLAY = """
import os, pathlib, sys, torch, oes_fast as oes
from oes_fast.pipelines import progress

def full():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

def unread():
    ours, theirs = os.pipe()
    os.close(ours)
    os.dup2(theirs, 2)

def closed():
    os.close(2)

def search(**options):
    net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
    z, noisy = oes.noise_input(4, (32, 32), seed=0), torch.full((1, 3, 32, 32), 0.5)
    oes.search_mask(net, z, noisy, density=0.2, steps=3, **options)

progress.LINE_SECONDS = 0.0
search(progress=False)  # imports what a run needs, which takes longer than the run
for spoil in (full, unread, closed):
    if os.fork() == 0:
        spoil()
        search(progress=True)
        pathlib.Path(spoil.__name__).touch()
        sys.exit(0)
    os.wait()
"""


def test_a_run_goes_on_without_a_display(tmp_path):
    """Rich alone ends the process where nobody reads on."""
    program = tmp_path / "run.py"
    program.write_text(WITHOUT_A_DISPLAY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=environment, check=False)
    assert {path.name for path in tmp_path.iterdir()} == {"run.py", "full", "unread", "closed"}
