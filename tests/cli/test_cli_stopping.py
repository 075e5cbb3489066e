"""The command line under Ctrl-C, kill -9 and full disks: nothing computed is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_processes import end, start, wait_for
from cli_runs import NOISE, RESULTS, STEPS, assert_same_run, fails, files_of, interrupt_at, result_of, run

import oes_fast as oes
from oes_fast import _command
from oes_fast.cli import restore, signals
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
        _, stderr = stopped.communicate(timeout=300)
        assert stopped.returncode == 130, stderr
        assert "Traceback" not in stderr
        killed = start(*args, "--resume")
        wait_for(tmp_path / "out.train.ckpt", killed)
        killed.kill()
        killed.communicate(timeout=300)
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


SEARCH = ["--density", "0.5", "--threads", "1", "--no-plots", "--quiet"]


class TestSignals:
    @pytest.mark.parametrize(
        ("phase", "number", "code", "says"),
        [
            ("train", signal.SIGTERM, 143, "stopped by SIGTERM"),
            ("search", signal.SIGHUP, 129, "stopped by SIGHUP"),
        ],
    )
    def test_save_as_ctrl_c_does(
        self,
        phase: str,
        number: int,
        code: int,
        says: str,
        cli_images: Path,
        cli_denoised: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS]
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at(phase, 1, number))
            assert run(*args) == code
        assert f"{says} after 2 steps of the {phase}" in capsys.readouterr().err.replace("training", "train")
        assert result_of(out)["steps"][phase] == 2
        assert out.with_name("out_mask.safetensors").exists()
        if phase == "train":
            assert run(*args, "--resume") == 0
            assert_same_run(out, cli_denoised)

    def test_one_request_may_come_as_two_signals(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out.safetensors"
        both = interrupt_at("search", 1, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)
        monkeypatch.setattr(ProgressReport, "__call__", both)
        args = ["search", cli_images / "rgb.png", "-o", out, "--steps", "9", *SEARCH]
        assert run(*args) == 129
        assert files_of(out) == {".safetensors", ".json", ".search.ckpt"}

    @pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
    def test_a_second_one_stops_at_once(
        self,
        second: int,
        cli_images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.safetensors"
        monkeypatch.setattr(ProgressReport, "__call__", interrupt_at("search", 1, second, second))
        monkeypatch.setattr(signals, "SAME_SECONDS", -1.0)
        args = ["search", cli_images / "rgb.png", "-o", out, "--steps", "9", *SEARCH]
        assert run(*args, "--checkpoint-seconds", "0") == 128 + second
        assert capsys.readouterr().err.count("\n") == 1
        assert files_of(out) == {".search.ckpt"}

    def test_one_while_the_results_are_written_lets_them_be_written(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*args: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            return write_json(*args)

        write_json = restore.write_json
        monkeypatch.setattr(restore, "write_json", interrupted)
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgb.png", "-o", out, "--steps", "1", "--no-plots"]
        assert run(*args) == 0
        assert files_of(out) == {".png", ".json"}

    def test_one_between_search_and_training_leaves_the_mask(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*args: object, **options: object) -> object:
            found = search_mask(*args, **options)
            os.kill(os.getpid(), signal.SIGINT)
            return found

        search_mask = restore.search_mask
        monkeypatch.setattr(restore, "search_mask", interrupted)
        out = tmp_path / "out.png"
        assert run("denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS) == 130
        assert files_of(out) == {"_mask.safetensors", ".json", ".search.ckpt"}

    def test_one_while_the_image_is_loaded(
        self,
        cli_images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(restore, "load_problem", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        args = ["denoise", cli_images / "rgb.png", "-o", tmp_path / "out.png"]
        assert fails(capsys, *args, code=143) == "oes-fast: error: stopped by SIGTERM\n"
        assert list(tmp_path.iterdir()) == []

    def test_those_of_the_host_are_its_own(self, cli_images: Path, tmp_path: Path) -> None:
        seen = []
        before = signal.signal(signal.SIGTERM, lambda *_: seen.append("host"))
        try:
            with signals.handled():
                os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["host"]
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with signals.handled():
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with signals.handled(), pytest.raises(signals.Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        finally:
            signal.signal(signal.SIGTERM, before)

    @pytest.mark.parametrize(
        ("argv", "original", "wanted"),
        [
            (["-m"], ["python", "-m", "oes_fast", "info"], True),
            (["-m"], ["python", "-u", "-moes_fast"], True),
            (["-m"], ["python", "-m", "pytest", "-m", "oes_fast"], False),
            (["/bin/oes-fast", "info"], ["python", "/bin/oes-fast", "info"], True),
            (["/bin/oes-fast", "info"], ["python", "-c", "spawn_main()", "--multiprocessing-fork"], False),
            (["train.py"], ["python", "train.py"], False),
            ([""], ["python"], False),
        ],
    )
    def test_a_process_that_is_the_command(
        self, argv: list[str], original: list[str], wanted: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", original)
        assert _command.is_command() == wanted

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_one_in_the_first_moments_is_one_line(self, number: int) -> None:
        process = start("info")
        wait_until_handled(process.pid)
        _, err = end(process, number)
        word = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
        assert (process.returncode, err) == (128 + number, f"oes-fast: error: {word}\n")

    @pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
    def test_sigterm_for_process_1_of_a_container(self, cli_images: Path, tmp_path: Path) -> None:
        space = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
        if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no namespaces here")
        out = tmp_path / "out.safetensors"
        args = ["search", cli_images / "rgb.png", "-o", out, "--steps", "1000000", *SEARCH]
        process = start(*args, "--checkpoint-seconds", "0", before=space)
        wait_for(tmp_path / "out.search.ckpt", process)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 143, err
        assert result_of(out)["interrupted"]
        assert files_of(out) == {".safetensors", ".json", ".search.ckpt"}


def wait_until_handled(pid: int) -> None:
    """Until the process has its handler for SIGTERM, which is before it imports torch."""
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) & (1 << (signal.SIGTERM - 1)):
            return
        time.sleep(0.005)


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
