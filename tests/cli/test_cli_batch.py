"""``oes-fast batch``: options, table, files, exit codes, and processes that are stopped or killed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from cli_processes import end, start, wait_for
from cli_runs import fails, run
from image_sets import SMALL_OPTIONS, files_in, results_in, write_images
from rich.console import Console

from oes_fast.batch import Outcome, Step
from oes_fast.cli.batch import BatchProgress

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

STEPS = ["--density", "0.5", "--search-steps", "2", "--train-steps", "4", "--average", "0.5"]
SMALL = [*STEPS, *SMALL_OPTIONS, "--backend", "reference", "--threads", "1", "--no-verify"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_images(tmp_path / "in", "a.png", "b c.png", "sub/d.png")
    (folder / "corrupt.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_writes_every_result_and_a_table(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = ["batch", source, "-r", "-o", out, "--sigma", "0.1", *SMALL]
    assert run(*args) == 1
    captured = capsys.readouterr()
    table = captured.out.splitlines()
    assert [line.split("  ")[0] for line in table[1:5]] == ["a", "b c", "corrupt", "sub/d"]
    assert table[3].split() == ["corrupt", "failed"]
    assert "Images    3 of 4 restored, 1 failed; other files, left out: 1" in table
    assert max(len(line) for line in table if "/" not in line) <= 80
    assert "oes-fast: warning: corrupt: failed: " in captured.err
    assert "images that failed: 1; --retry-failed tries them again; batch.csv says why" in captured.err
    assert files_in(out) == {
        *(f"{name}.{suffix}" for name in ("a", "b c", "sub/d") for suffix in ("png", "json")),
        *("batch.csv", "batch.json", "batch.sqlite", "batch_mask_rgb.safetensors"),
    }
    with (out / "batch.csv").open() as file:
        assert [line["state"] for line in csv.DictReader(file)] == ["done", "done", "failed", "done"]
    assert json.loads((out / "batch.json").read_text())["settings"]["sigma"] == 0.1
    (source / "corrupt.png").unlink()
    assert run(*args, "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert "--train-steps 4, this run has 9" in fails(capsys, *args, "--train-steps", "9")


def test_a_mask_and_a_list(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("batch", source / "a.png", "-o", tmp_path / "first", *SMALL) == 0
    mask = tmp_path / "first" / "batch_mask_rgb.safetensors"
    monkeypatch.chdir(source)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"sub/d.png\na.png\n")))
    args = ["--mask", mask, "--no-verify", "--train-steps", "4", "--average", "0.5", "--backend", "reference"]
    assert run("batch", "-", "-o", tmp_path / "out", *args, "--threads", "1", "--format", "tif") == 0
    assert {name for name in files_in(tmp_path / "out") if name.endswith(".tif")} == {"a.tif", "sub/d.tif"}
    assert capsys.readouterr().out.splitlines()[-5].startswith("Images   2 of 2 restored")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--search", "all"], "--search: expected first, each or a number of images, got 'all'"),
        (["--search", "0"], "--search: expected"),
        (["--mask", "none.safetensors"], "none.safetensors: expected a file, got nothing"),
        (["--sigma", "0.1", "--clean", "."], "--clean: expected no --sigma beside it"),
        (["--workers", "0"], "--workers: expected"),
        (["--threads", "0"], "--threads: expected"),
        (["--format", "gif"], "--format: expected"),
        (["--bits", "12"], "--bits: expected 8 or 16, got 12"),
        (["--model", "none"], "--model: expected"),
        (["--device", "gpu"], "--device: expected"),
        (["--average", "2"], "--average: expected"),
    ],
)
def test_options_that_do_not_fit(
    args: list[str], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, "batch", source, "-o", tmp_path / "out", *args)


def test_sources_that_do_not_fit(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(source, "a.jpg")
    assert "a is also that of" in fails(capsys, "batch", source, "-o", tmp_path / "out", *SMALL)
    assert "expected another folder for the results" in fails(capsys, "batch", source, "-o", source, *SMALL)
    missing = fails(capsys, "batch", source / "none", "-o", tmp_path / "out", *SMALL)
    assert "it does not exist" in missing


def images_in(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in results_in(folder).items() if name.endswith(".png")}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_killed_or_stopped_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_images(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    whole, out = tmp_path / "whole", tmp_path / "out"
    steps = [*SMALL, "--train-steps", "60"]
    assert run("batch", source, "-o", whole, *steps, "--quiet") == 0
    given = ["--mask", whole / "batch_mask_rgb.safetensors", *steps[6:]]  # without options of the search
    killed = start("batch", source, "-o", out, *given, "--workers", "2", "--checkpoint-seconds", "0")
    wait_for(out / "a.json", killed)
    began = time.monotonic()
    end(killed)  # with its workers, whose output ends with them
    assert time.monotonic() - began < 15  # less than they would have to write checkpoints
    done = (out / "a.json").stat().st_mtime_ns

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(BatchProgress, "step", interrupted)
        assert run("batch", source, "-o", out, *given) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "of 4 images are restored; the same command goes on from there" in last
    assert run("batch", source, "-o", out, *given, "--quiet") == 0
    assert (out / "a.json").stat().st_mtime_ns == done
    assert images_in(out) == images_in(whole)
    assert files_in(out) == files_in(whole)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    with BatchProgress(console=console) as progress:
        progress.listed(3, 1)
        progress.step(Step("mask for RGB images", "search", 5, 10, 0.1, None))
        progress.searched(Outcome("mask for RGB images", "done"))
        progress.step(Step("a [1]", "train", 5, 10, 0.1, 21.5))
        progress.ended(Outcome("a [1]", "done"))
        progress.ended(Outcome("b", "failed", failure="bad"))
    shown = stream.getvalue() + capsys.readouterr().err
    assert "b: failed: bad" in shown
    assert ("All images" in shown) == terminal
    assert progress.restored == 1
    if not terminal:
        assert "3 images, 1 of them done before\n2/3  a [1]: done  0:00 gone, 0:00 left\n" in shown
