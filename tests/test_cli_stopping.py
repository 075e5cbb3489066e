"""The command line under Ctrl-C, kill -9 and full disks: nothing computed is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runs import NOISE, RESULTS, STEPS, assert_same_run, fails, files_of, interrupt_at, result_of, run

import oes_fast as oes
from oes_fast.cli.progress import ProgressReport
from oes_fast.pipelines import checkpoint

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")


class TestStopping:
    @pytest.mark.parametrize(("phase", "step"), [("search", 0), ("train", 2)])
    def test_ctrl_c_then_resume_is_an_undisturbed_run(
        self,
        phase: str,
        step: int,
        cli_images: Path,
        cli_denoised: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS]
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at(phase, step))
            assert run(*args) == 130
        assert "--resume" in capsys.readouterr().err.splitlines()[-1]
        assert result_of(out)["interrupted"]
        assert result_of(out)["steps"][phase] == step + 1
        assert out.exists() == (phase == "train")
        assert ".search.ckpt" in files_of(out)
        assert "checkpoint" in fails(capsys, *args)
        assert "lr" in fails(capsys, *args, "--resume", "--search-lr", "0.5")
        assert run(*args, "--resume") == 0
        assert_same_run(out, cli_denoised)
        assert files_of(out) == RESULTS

    def test_restart_throws_the_checkpoints_away(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        (tmp_path / "out.train.ckpt").write_text("no checkpoint at all")
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1", "--quiet"]
        assert run(*args, "--resume") == 2
        assert run(*args, "--restart") == 0
        assert ".train.ckpt" not in files_of(out)

    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    def test_a_process_that_is_interrupted_then_killed_goes_on(
        self, cli_images: Path, cli_denoised: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS, "--checkpoint-seconds", "0"]
        stopped = start(*args)
        wait_for(tmp_path / "out.search.ckpt", stopped)
        stopped.send_signal(signal.SIGINT)
        _, stderr = stopped.communicate(timeout=60)
        assert stopped.returncode == 130, stderr
        assert "Traceback" not in stderr
        killed = start(*args, "--resume")
        wait_for(tmp_path / "out.train.ckpt", killed)
        killed.kill()
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        assert run(*args, "--resume") == 0
        # The interval between checkpoints is the one setting that differs.
        wanted = result_of(cli_denoised)
        wanted["settings"]["checkpoint_seconds"] = 0.0
        other = tmp_path / "wanted.png"
        other.write_bytes(cli_denoised.read_bytes())
        other.with_suffix(".json").write_text(json.dumps(wanted))
        mask = cli_denoised.with_name("denoised_mask.safetensors")
        (tmp_path / "wanted_mask.safetensors").write_bytes(mask.read_bytes())
        assert_same_run(out, other)


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oes_fast", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestNothingIsLost:
    def test_full_disk_for_one_result(
        self,
        cli_images: Path,
        cli_mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def full(*args: object, **more: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        out = tmp_path / "out.png"
        args = ["train", cli_images / "rgb.png", cli_mask, "-o", out, "--steps", "2", "--sigma", "0.1"]
        with monkeypatch.context() as patch:
            patch.setattr("oes_fast.cli.restore.save_image", full)
            assert run(*args) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device" in error
        assert "--resume" in error
        assert files_of(out) == {"_comparison.png", "_psnr.png", ".json", ".train.ckpt"}
        assert result_of(out)["not_written"].keys() == {"restored"}
        assert run(*args, "--resume") == 0
        assert files_of(out) == {".png", "_comparison.png", "_psnr.png", ".json"}

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_device(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1", "--no-plots"]
        assert run(*args, "--json", "/dev/full") == 2
        assert "/dev/full: cannot write: No space left on device" in capsys.readouterr().err
        assert files_of(out) == {".png", ".train.ckpt"}

    def test_full_disk_for_a_checkpoint(
        self,
        cli_images: Path,
        cli_mask: Path,
        cli_denoised: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        saved = []

        def full_at_third(path: Path, *rest: object) -> None:
            saved.append(path)
            if len(saved) == 3:
                raise oes.OutputError(f"{path}: cannot write: No space left on device")
            save(path, *rest)

        save = checkpoint.save_tensors
        out = tmp_path / "out.png"
        args = ["train", cli_images / "rgb.png", cli_mask, "-o", out, "--steps", "8", "--seed", "3"]
        args += ["--sigma", "0.1", "--checkpoint-seconds", "0", "--threads", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_tensors", full_at_third)
            assert run(*args) == 0
        assert "goes on without a checkpoint of step 2" in capsys.readouterr().err
        assert out.read_bytes() == cli_denoised.read_bytes()
