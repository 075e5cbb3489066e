"""``oes-fast compare``: options, table, files, exit codes, and processes that are stopped or killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_processes import end, start, wait_for
from cli_runs import fails, run
from small_generator import small_generator

import oes_fast as oes
from oes_fast.comparison import run as cells

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

STEPS = ["--train-steps", "6", "--search-steps", "2", "--densities", "0.5", "--record-every", "2"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "fresh_generator", small_generator)


@pytest.mark.usefixtures("small")
def test_writes_every_result_and_a_table(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    args = ["compare", cli_images / "rgb.png", "-o", out, "--methods", "oes,random,dense_dip,tv", *STEPS]
    args += ["--seeds", "0,1", "--threads", "1", "--no-verify"]
    assert run(*args) == 0
    captured = capsys.readouterr()
    table = captured.out.splitlines()
    assert table[0].startswith("rgb: noisy image")
    assert [line.split()[0] for line in table[2:6]] == ["oes", "random", "dense_dip", "tv"]
    assert max(len(line) for line in table if "/" not in line) <= 80
    assert "8/8  rgb, tv, seed 1: done" in captured.err
    assert {path.name for path in out.iterdir()} == {
        "cells", "compare.csv", "compare.json", "densities.png", "images.png", "masked.png", "psnr.png",
        "ssim.png",
    }  # fmt: skip
    found = json.loads((out / "compare.json").read_text())
    assert found["settings"]["methods"] == ["oes", "random", "dense_dip", "tv"]
    assert found["images"] == {"rgb": [1, 3, 24, 24]}
    with (out / "compare.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert run(*args, "--quiet") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert run(*args[:-1], "--train-lr", "0.5") == 2
    assert "--train-lr 0.01, this run has 0.5" in capsys.readouterr().err


def test_a_failed_cell_is_said_and_in_the_exit_code(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setitem(cells.CLASSICAL, "nlm", broken)
    args = ["compare", cli_images / "grey.png", "-o", tmp_path, "--methods", "nlm,tv", "--no-plots"]
    assert run(*args, *STEPS) == 1
    err = capsys.readouterr().err
    assert "oes-fast: warning: grey, nlm, seed 0: failed: RuntimeError: no memory" in err
    assert "1 cells failed; the same command tries them again" in err
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "compare.csv", "compare.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "oes,lasso"], "--methods: expected one of random,"),
        (["--methods", ","], "--methods: expected one at least"),
        (["--densities", "0.1,x"], "--densities: expected numbers separated by commas, got '0.1,x'"),
        (["--densities", "2"], "--densities: expected a finite number > 0.0 and < 1.0"),
        (["--seeds", "0.5"], "--seeds: expected whole numbers separated by commas"),
        (["--seeds", "1,1"], "--seeds: expected each once, got 1 twice"),
        (["--sigma", "0"], "--sigma: expected a finite number > 0.0"),
        (["--train-steps", "0"], "--train-steps: expected an integer >= 1"),
        (["--ssim-every", "15"], "--ssim-every: expected a multiple of record_every"),
        (
            ["--methods", "imp", "--imp-densities", "0.5,0.2"],
            "--imp-densities: expected all of densities among them",
        ),
        (["--average", "2"], "--average: expected"),
        (["--scope", "layer"], "--scope: expected one of global, tensor"),
        (["--preset", "slow"], "--preset: expected one of"),
        (["--size", "4"], "--size: expected an integer >= 16"),
        (["--jobs", "0"], "--jobs: expected an integer >= 1"),
        (["--sigma", "25"], "--sigma: expected a number from 0 to 1, in units of the [0, 1] range"),
        (["--train-lr", "1e300"], "--train-lr: expected a number of float32"),
        (["--param-noise", "1e300"], "--param-noise: expected a number of float32"),
        (["--checkpoint-seconds", "nan"], "--checkpoint-seconds: expected a finite number >= 0.0, got nan"),
        (["--backend", "abacus"], "--backend: expected one of"),
    ],
)
def test_bad_options(
    options: list[str], message: str, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compare", cli_images / "rgb.png", "-o", tmp_path / "out", *options]
    assert message in fails(capsys, *args)
    assert not (tmp_path / "out" / "cells").exists()


def test_an_empty_name_is_not_this_folder(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["compare", cli_images / "rgb.png", "--methods", "tv", "-o", ""]
    assert "-o: expected a value, got an empty one" in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_are_named_once(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: object, _: object) -> None:
        raise oes.OutputError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr("oes_fast.comparison.comparison.write_json", full)
    assert run("compare", cli_images / "rgb.png", "-o", tmp_path, "--methods", "tv", "--no-plots") == 2
    said = capsys.readouterr().err
    assert f"error: {tmp_path / 'compare.json'}: cannot write: No space left on device\n" in said


def test_images_of_one_name(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rgb.png").write_bytes((cli_images / "rgb.png").read_bytes())
    args = ["compare", cli_images / "rgb.png", tmp_path / "rgb.png", "-o", tmp_path / "out"]
    assert "expected images of different names, got rgb twice" in fails(capsys, *args)


@pytest.mark.usefixtures("small")
def test_ctrl_c_writes_the_summary_of_what_there_is(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return train_sparse(*args, **options)

    args = ["compare", cli_images / "rgb.png", "-o", tmp_path, "--methods", "tv,random,nlm", *STEPS]
    args += ["--no-plots", "--no-verify", "--threads", "1"]
    train_sparse = cells.train_sparse
    with monkeypatch.context() as patch:
        patch.setattr(cells, "train_sparse", interrupted)
        assert run(*args) == 130
    captured = capsys.readouterr()
    assert "interrupted: 1 of 3 cells are done; the same command goes on from there" in captured.err
    assert "tv" in captured.out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["interrupted"]
    assert found["missing"] == ["rgb_random_0.5_seed0", "rgb_nlm_seed0"]
    assert (tmp_path / "cells" / "rgb_random_0.5_seed0.train.ckpt").exists()
    assert run(*args) == 0
    assert not list((tmp_path / "cells").glob("*.ckpt"))


def children_of(pid: int) -> list[int]:
    """The processes of a comparison's slots."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_processes_that_are_killed_or_stopped(cli_images: Path, tmp_path: Path) -> None:
    args = ["compare", cli_images / "rgb.png", "-o", tmp_path, "--methods", "random,tv", "--jobs", "2"]
    args += ["--densities", "0.5,0.4", "--train-steps", "1000000", "--threads", "1", "--no-plots"]
    args += ["--no-verify", "--checkpoint-seconds", "0"]
    checkpoints = [tmp_path / "cells" / f"rgb_random_{d}_seed0.train.ckpt" for d in (0.5, 0.4)]
    process = start(*args)
    for checkpoint in checkpoints:
        wait_for(checkpoint, process)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    wait_for(tmp_path / "cells" / "rgb_tv_seed0.png", process)  # in the process that takes its place
    wait_for_change(checkpoints, process)
    out, err = end(process, signal.SIGINT)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "failed: its process was killed" in err
    assert "interrupted: 1 of 3 cells are done" in err
    assert "tv" in out
    found = json.loads((tmp_path / "compare.json").read_text())
    assert len(found["failed"]) == len(found["missing"]) == 1


def wait_for_change(paths: list[Path], process: subprocess.Popen[str]) -> None:
    """Until one of the files is written again."""
    before = [path.stat().st_mtime_ns for path in paths]
    deadline = time.monotonic() + 300
    while [path.stat().st_mtime_ns for path in paths] == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
