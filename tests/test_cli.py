"""The command line: every command on tiny images; bad input, Ctrl-C, kill and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file

import oes_fast as oes
from oes_fast.cli import main
from oes_fast.cli.progress import ProgressReport, duration
from oes_fast.pipelines.steps import StepInfo

SIDE = 24
# A mask of 5 % after two steps leaves nothing alive, and nothing to compare.
STEPS = ["--density", "0.5", "--search-steps", "2", "--train-steps", "8", "--threads", "1"]
NOISE = ["--sigma", "0.1", "--seed", "3"]
RESULTS = {".png", "_mask.safetensors", "_comparison.png", "_psnr.png", ".json"}


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny images of every kind."""
    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    PillowImage.fromarray(levels[..., :3]).save(folder / "rgb.png")
    PillowImage.fromarray(levels).save(folder / "rgba.png")
    PillowImage.fromarray(levels[..., 0]).save(folder / "grey.png")
    PillowImage.fromarray(levels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    return folder


@pytest.fixture(scope="module")
def denoised(folder: Path) -> Path:
    """The output of a denoise run of 2 + 8 steps that nothing disturbed."""
    out = folder / "denoised.png"
    assert main(["denoise", str(folder / "rgb.png"), "-o", str(out), *NOISE, *STEPS]) == 0
    return out


@pytest.fixture(scope="module")
def mask(folder: Path) -> Path:
    """The output of the search that :func:`denoised` starts with."""
    out = folder / "mask.safetensors"
    args = ["search", str(folder / "rgb.png"), "-o", str(out), *NOISE, "--density", "0.5", "--steps", "2"]
    assert main([*args, "--threads", "1"]) == 0
    return out


def files_of(out: Path) -> set[str]:
    """Endings of the files named after ``out``."""
    return {path.name.removeprefix(out.stem) for path in out.parent.glob(f"{out.stem}[._]*")}


def result_of(out: Path) -> dict:
    return json.loads(out.with_suffix(".json").read_text())


def assert_same_run(out: Path, wanted: Path) -> None:
    """Images, masks and histories are equal to the last bit."""
    assert out.read_bytes() == wanted.read_bytes()
    ours, theirs = (load_file(path.with_name(f"{path.stem}_mask.safetensors")) for path in (out, wanted))
    assert torch.equal(ours["bits"], theirs["bits"])
    for key in ("history", "psnr", "steps", "mask", "settings", "seeds"):
        assert result_of(out)[key] == result_of(wanted)[key], key


def interrupt_at(phase: str, step: int) -> Callable[[ProgressReport, StepInfo], None]:
    """A progress callback that presses Ctrl-C at a step."""

    def call(self: ProgressReport, info: StepInfo) -> None:
        if (info.phase, info.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGINT)

    return call


def fails(capsys: pytest.CaptureFixture[str], *args: object, code: int = 2) -> str:
    """The one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert main([str(a) for a in args]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("oes-fast: error: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


class TestDenoise:
    def test_writes_every_result_and_removes_the_checkpoints(self, denoised: Path) -> None:
        assert files_of(denoised) == RESULTS

    def test_json_holds_what_a_program_needs(self, denoised: Path, folder: Path) -> None:
        result = result_of(denoised)
        assert result["command"] == "denoise"
        assert result["versions"]["torch"] == torch.__version__
        assert result["seeds"] == {"seed": 3, "noise": 3}
        assert result["steps"] == {"search": 2, "train": 8}
        assert result["settings"]["train"] == {"steps": 8, "lr": 1e-2, "average": 0.99}
        assert result["settings"]["search"]["density"] == 0.5
        assert result["mask"]["fingerprint"] == oes.fingerprint(oes.models.skip())
        assert result["mask"]["kept"] == int(0.5 * 3_008_867)
        assert result["seconds"]["total"] == pytest.approx(
            result["seconds"]["search"] + result["seconds"]["train"]
        )
        assert (result["device"], result["threads"]) == ("cpu", 1)
        assert result["backend"] in oes.backends()
        assert not result["interrupted"]
        assert not result["resumed"]
        assert isinstance(result["collapsed"], bool)
        assert result["history"]["train"]["step"] == [0, 8]
        assert {len(column) for column in result["history"]["train"].values()} == {2}
        assert sorted(Path(p).name for p in result["files"].values()) == sorted(
            path.name for path in folder.glob("denoised*")
        )

    def test_psnr_is_that_of_the_written_image(self, denoised: Path, folder: Path) -> None:
        psnr = result_of(denoised)["psnr"]
        clean = oes.load_image(folder / "rgb.png").pixels
        assert psnr["noisy"] == pytest.approx(oes.psnr(oes.add_noise(clean, 0.1, 3), clean))
        assert psnr["restored"] == psnr["average"]
        assert psnr["restored"] == pytest.approx(oes.psnr(oes.load_image(denoised).pixels, clean), abs=0.05)
        assert psnr["peak"] >= psnr["last"]

    @pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
    def test_is_what_the_library_computes(self, denoised: Path, folder: Path) -> None:
        noisy = oes.add_noise(oes.load_image(folder / "rgb.png").pixels, 0.1, 3)
        torch.set_num_threads(1)
        net, z = oes.fresh_generator(noisy, seed=3)
        found = oes.search_mask(net, z, noisy, density=0.5, steps=2, seed=3)
        fit = oes.train_sparse(net, found.mask, z, noisy, steps=8, average=0.99)
        assert torch.equal(
            oes.Mask.load(denoised.with_name("denoised_mask.safetensors")).flat, found.mask.flat
        )
        oes.save_image(folder / "library.png", fit.average)
        assert (folder / "library.png").read_bytes() == denoised.read_bytes()

    def test_without_noise_or_clean_there_is_no_psnr(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", str(folder / "rgb.png"), "-o", str(out), "--mask", str(mask), "--train-steps", "1"]
        assert main([*args, "--quiet"]) == 0
        assert result_of(out)["psnr"] is None
        assert files_of(out) == {".png", "_comparison.png", ".json"}

    def test_clean_image_gives_the_psnr(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["train", str(folder / "rgba.png"), str(mask), "-o", str(out), "--steps", "1", "--no-plots"]
        assert main([*args, "--clean", str(folder / "rgb.png"), "--average", "off"]) == 0
        psnr = result_of(out)["psnr"]
        assert psnr["noisy"] is None or psnr["noisy"] > 100
        assert psnr["average"] is None
        assert psnr["restored"] == psnr["last"]
        assert files_of(out) == {".png", ".json"}

    def test_collapse_is_said_and_is_no_error(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flat = torch.zeros(3_008_867, dtype=torch.bool)
        flat[-3:] = True  # the biases of the output alone
        oes.Mask.from_flat(oes.models.skip(), flat).save(tmp_path / "mask.safetensors")
        out = tmp_path / "out.png"
        args = [
            "denoise",
            str(folder / "rgb.png"),
            "-o",
            str(out),
            "--mask",
            str(tmp_path / "mask.safetensors"),
        ]
        capsys.readouterr()
        assert main([*args, "--train-steps", "2", "--quiet"]) == 0
        assert capsys.readouterr().err.startswith("oes-fast: warning: train: the output is flat")
        assert result_of(out)["collapsed"]
        assert out.exists()

    def test_quiet_prints_nothing(
        self, folder: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [
            "denoise",
            str(folder / "rgb.png"),
            "-o",
            str(tmp_path / "o.png"),
            "--mask",
            str(mask),
            "--quiet",
        ]
        capsys.readouterr()
        assert main([*args, "--train-steps", "1"]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert all(line.startswith("oes-fast: warning: ") for line in captured.err.splitlines())


class TestOtherCommands:
    def test_search_writes_mask_plots_and_json(self, mask: Path) -> None:
        assert files_of(mask) == {".safetensors", "_probabilities.png", "_layers.png", ".json"}
        result = result_of(mask)
        assert result["command"] == "search"
        assert sum(layer["kept"] for layer in result["layers"]) == result["mask"]["kept"]
        assert sum(layer["count"] for layer in result["layers"]) == 3_008_867
        assert oes.Mask.load(mask).settings["network_seed"] == 3

    def test_search_then_train_is_denoise(
        self, folder: Path, mask: Path, denoised: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = ["train", str(folder / "rgb.png"), str(mask), "-o", str(out), "--sigma", "0.1"]
        assert main([*args, "--steps", "8", "--threads", "1"]) == 0
        assert out.read_bytes() == denoised.read_bytes()
        assert files_of(out) == RESULTS - {"_mask.safetensors"}

    def test_transfer_draws_fresh_weights(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", str(mask), str(folder / "rgba.png"), "-o", str(out), "--steps", "1"]
        assert main(args) == 0
        assert result_of(out)["seeds"]["seed"] == 4
        assert main([*args, "--seed", "7"]) == 0
        assert result_of(out)["seeds"]["seed"] == 7

    def test_published_mask(self, folder: Path, tmp_path: Path) -> None:
        import pickle

        bits = torch.arange(3_008_867) % 2 == 0
        (tmp_path / "mask.pkl").write_bytes(pickle.dumps(bits.float()))
        out = tmp_path / "out.png"
        args = ["denoise", str(folder / "rgb.png"), "-o", str(out), "--mask", str(tmp_path / "mask.pkl")]
        assert main([*args, "--train-steps", "1"]) == 0
        assert result_of(out)["mask"]["kept"] == int(bits.sum())
        assert result_of(out)["seeds"]["seed"] == 0

    def test_info(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
        printed = capsys.readouterr().out
        result = json.loads((tmp_path / "info.json").read_text())
        assert set(result["backends"]) == set(oes.backends())
        for name, status in result["backends"].items():
            assert name in printed
            assert status["available"] or status["reason"]

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"oes-fast {oes.__version__}\n"

    @pytest.mark.parametrize("command", ["denoise", "search", "train", "transfer", "info"])
    def test_help_has_an_example(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, "--help"]) == 0
        assert "Example:" in capsys.readouterr().out


class TestImageKinds:
    def test_alpha_is_carried_through(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", str(mask), str(folder / "rgba.png"), "-o", str(out), "--steps", "1", "--quiet"]
        assert main(args) == 0
        source, written = oes.load_image(folder / "rgba.png"), oes.load_image(out)
        assert source.alpha is not None
        assert written.alpha is not None
        assert torch.equal(written.alpha, source.alpha)
        assert written.bits == 8

    def test_bits_may_be_chosen(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.tif"
        args = [
            "transfer",
            str(mask),
            str(folder / "rgba.png"),
            "-o",
            str(out),
            "--steps",
            "1",
            "--bits",
            "16",
        ]
        assert main(args) == 0
        assert oes.load_image(out).bits == 16

    def test_grey_of_16_bits_stays_so(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", str(folder / "grey16.png"), "-o", str(out), "--size", "16", "--density", "0.5"]
        assert main([*args, "--search-steps", "1", "--train-steps", "1"]) == 0
        written = oes.load_image(out)
        assert written.pixels.shape == (1, 1, 16, 16)
        assert written.bits == 16
        assert result_of(out)["image"]["channels"] == 1


class TestStopping:
    @pytest.mark.parametrize(("phase", "step"), [("search", 0), ("train", 2)])
    def test_ctrl_c_then_resume_is_an_undisturbed_run(
        self,
        phase: str,
        step: int,
        folder: Path,
        denoised: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", str(folder / "rgb.png"), "-o", str(out), *NOISE, *STEPS]
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at(phase, step))
            assert main(args) == 130
        assert "--resume" in capsys.readouterr().err.splitlines()[-1]
        assert result_of(out)["interrupted"]
        assert result_of(out)["steps"][phase] == step + 1
        assert out.exists() == (phase == "train")
        assert ".search.ckpt" in files_of(out)
        assert "checkpoint" in fails(capsys, *args)
        assert "lr" in fails(capsys, *args, "--resume", "--search-lr", "0.5")
        assert main([*args, "--resume"]) == 0
        assert_same_run(out, denoised)
        assert files_of(out) == RESULTS

    def test_restart_throws_the_checkpoints_away(self, folder: Path, mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        (tmp_path / "out.train.ckpt").write_text("no checkpoint at all")
        args = ["transfer", str(mask), str(folder / "rgb.png"), "-o", str(out), "--steps", "1", "--quiet"]
        assert main([*args, "--resume"]) == 2
        assert main([*args, "--restart"]) == 0
        assert ".train.ckpt" not in files_of(out)

    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    def test_a_process_that_is_interrupted_then_killed_goes_on(
        self, folder: Path, denoised: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = [
            "denoise",
            str(folder / "rgb.png"),
            "-o",
            str(out),
            *NOISE,
            *STEPS,
            "--checkpoint-seconds",
            "0",
        ]
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
        assert main([*args, "--resume"]) == 0
        # The interval between checkpoints is the one setting that differs.
        wanted = result_of(denoised)
        wanted["settings"]["checkpoint_seconds"] = 0.0
        other = tmp_path / "wanted.png"
        other.write_bytes(denoised.read_bytes())
        other.with_suffix(".json").write_text(json.dumps(wanted))
        mask = denoised.with_name("denoised_mask.safetensors")
        (tmp_path / "wanted_mask.safetensors").write_bytes(mask.read_bytes())
        assert_same_run(out, other)


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oes_fast", *args]
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
        folder: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def full(*args: object, **more: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        out = tmp_path / "out.png"
        args = ["train", str(folder / "rgb.png"), str(mask), "-o", str(out), "--steps", "2", "--sigma", "0.1"]
        with monkeypatch.context() as patch:
            patch.setattr("oes_fast.cli.restore.save_image", full)
            assert main(args) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device" in error
        assert "--resume" in error
        assert files_of(out) == {"_comparison.png", "_psnr.png", ".json", ".train.ckpt"}
        assert result_of(out)["not_written"].keys() == {"restored"}
        assert main([*args, "--resume"]) == 0
        assert files_of(out) == {".png", "_comparison.png", "_psnr.png", ".json"}

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_device(
        self, folder: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", str(mask), str(folder / "rgb.png"), "-o", str(out), "--steps", "1", "--no-plots"]
        assert main([*args, "--json", "/dev/full"]) == 2
        assert "/dev/full: cannot write: No space left on device" in capsys.readouterr().err
        assert files_of(out) == {".png", ".train.ckpt"}

    def test_full_disk_for_a_checkpoint(
        self,
        folder: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from oes_fast.pipelines import checkpoint

        saved = []

        def full_at_third(path: Path, *rest: object) -> None:
            saved.append(path)
            if len(saved) == 3:
                raise oes.OutputError(f"{path}: cannot write: No space left on device")
            save(path, *rest)

        save = checkpoint.save_tensors
        out = tmp_path / "out.png"
        args = ["train", str(folder / "rgb.png"), str(mask), "-o", str(out), "--steps", "8", "--seed", "3"]
        args += ["--sigma", "0.1", "--checkpoint-seconds", "0", "--threads", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_tensors", full_at_third)
            assert main(args) == 2
        assert "--resume" in capsys.readouterr().err.splitlines()[-1]
        assert files_of(out) == {".train.ckpt"}
        assert main([*args, "--resume"]) == 0
        assert out.read_bytes() == (folder / "denoised.png").read_bytes()


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--sigma", "-0.1"], "--sigma: expected a finite number >= 0"),
            (["--sigma", "nan"], "--sigma: expected a finite number >= 0"),
            (["--sigma", "25"], "divide by 255"),
            (["--size", "0"], "--size: expected an integer >= 16, got 0"),
            (["--size", "x"], "--size"),
            (["--density", "0"], "--density: expected a finite number > 0"),
            (["--density", "2"], "--density: expected a finite number"),
            (["--search-steps", "0"], "--search-steps: expected an integer >= 1"),
            (["--train-steps", "-5"], "--train-steps: expected an integer >= 1, got -5"),
            (["--search-lr", "0"], "--search-lr"),
            (["--train-lr", "inf"], "--train-lr"),
            (["--kl", "-1"], "--kl"),
            (["--temperature", "0"], "--temperature"),
            (["--average", "1"], "--average"),
            (["--average", "often"], "--average: expected a decay in [0, 1) or off, got 'often'"),
            (["--seed", "-1"], "--seed"),
            (["--noise-seed", "-1"], "--noise-seed"),
            (["--threads", "0"], "--threads"),
            (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
            (["--preset", "fast"], "--preset: expected one of paper, quick, got 'fast'"),
            (["--backend", "magic"], "--backend: expected one of auto, reference"),
            (["--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
            (["--device", "cuda:99"], "--device"),
            (["--bits", "12"], "--bits: expected 8 or 16, got 12"),
            (["--mask", "missing.safetensors"], "missing.safetensors"),
            (["--mask", "mask.txt"], "expected a mask file"),
            (["--clean", "missing.png"], "missing.png"),
            (["--clean", "missing.png", "--sigma", "0.1"], "--clean: expected no --sigma"),
            (["--steps", "3"], "--steps"),
        ],
    )
    def test_options(
        self,
        options: list[str],
        says: str,
        folder: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        assert says in fails(capsys, "denoise", folder / "rgb.png", "-o", out, *options)
        assert list(tmp_path.iterdir()) == []

    def test_backend_that_cannot_run(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        missing = [(name, status.reason) for name, status in oes.backends().items() if not status.available]
        for name, reason in missing:
            error = fails(
                capsys, "denoise", folder / "rgb.png", "-o", tmp_path / "out.png", "--backend", name
            )
            assert " ".join(reason.split()) in error

    @pytest.mark.parametrize("name", ["out", "out.xyz", "missing/out.png", "file.txt/out.png", ""])
    def test_output(
        self, name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file.txt").write_text("a file")
        fails(capsys, "denoise", folder / "rgb.png", "-o", tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
    def test_folder_without_permission(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tmp_path.chmod(0o555)
        assert "no permission" in fails(capsys, "denoise", folder / "rgb.png", "-o", tmp_path / "out.png")

    def test_output_over_the_input(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = tmp_path / "image.png"
        image.write_bytes((folder / "rgb.png").read_bytes())
        assert "the name of an input" in fails(capsys, "denoise", image, "-o", image)
        assert "another output" in fails(
            capsys, "denoise", image, "-o", tmp_path / "o.png", "--json", tmp_path / "o.png"
        )
        assert image.read_bytes() == (folder / "rgb.png").read_bytes()

    def test_images(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        import tifffile

        images = tmp_path / "images"
        images.mkdir()
        (images / "text.png").write_text("these are words")
        (images / "empty.png").write_bytes(b"")
        (images / "cut.png").write_bytes((folder / "rgb.png").read_bytes()[:400])
        PillowImage.new("RGB", (1, 1)).save(images / "one.png")
        tifffile.imwrite(images / "nan.tif", np.full((SIDE, SIDE), np.nan, dtype=np.float32))
        tifffile.imwrite(images / "range.tif", np.full((SIDE, SIDE), 255, dtype=np.float32))
        out = tmp_path / "out.png"
        for path in sorted(images.iterdir()):
            assert path.name in fails(capsys, "denoise", path, "-o", out)
            assert path.name in fails(capsys, "denoise", folder / "rgb.png", "-o", out, "--clean", path)
        assert "does not exist" in fails(capsys, "denoise", images / "missing.png", "-o", out)
        assert "a folder" in fails(capsys, "denoise", images, "-o", out)
        assert "astronaut" in fails(capsys, "denoise", "skimage:nothing", "-o", out)
        assert "NaN" in fails(capsys, "denoise", images / "nan.tif", "-o", out)
        assert "3 channels" in fails(
            capsys, "denoise", folder / "grey.png", "-o", out, "--clean", folder / "rgb.png"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["images"]

    def test_masks(
        self, folder: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rgb, grey = oes.models.skip(), oes.models.skip(32, 1)
        error = fails(capsys, "train", folder / "grey.png", mask, "-o", tmp_path / "out.png")
        assert oes.fingerprint(rgb) in error
        assert oes.fingerprint(grey) in error
        (tmp_path / "text.safetensors").write_text("these are words")
        (tmp_path / "text.pkl").write_text("these are words")
        (tmp_path / "tensors.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
        for name in ("text.safetensors", "text.pkl", "tensors.safetensors"):
            image, out = folder / "rgb.png", tmp_path / "out.png"
            assert name in fails(capsys, "train", image, tmp_path / name, "-o", out)
            assert name in fails(capsys, "transfer", tmp_path / name, image, "-o", out)
        assert not (tmp_path / "out.png").exists()

    @pytest.mark.parametrize(
        "args",
        [
            ["denoise"],
            ["denoise", "in.png"],
            ["restore"],
            ["denoise", "--nothing"],
            ["train", "a.png", "-o", "b.png"],
        ],
    )
    def test_usage(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert "--help" in fails(capsys, *args)

    def test_search_wants_a_safetensors_name(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ".safetensors" in fails(capsys, "search", folder / "rgb.png", "-o", tmp_path / "mask.png")

    def test_faults_of_ours_are_one_line_too(
        self,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fault(*args: object, **more: object) -> None:
            raise KeyError("a fault")

        monkeypatch.setattr("oes_fast.cli.restore.load_problem", fault)
        args = ["denoise", str(folder / "rgb.png"), "-o", str(tmp_path / "out.png")]
        assert "OES_FAST_DEBUG=1" in fails(capsys, *args, code=1)
        monkeypatch.setenv("OES_FAST_DEBUG", "1")
        with pytest.raises(KeyError):
            main(args)


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
