"""Bad input of every kind: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from cli_runs import SIDE, SMALL, fails, run
from PIL import Image as PillowImage

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--sigma", "-0.1"], "--sigma: expected a finite number >= 0"),
            (["--sigma", "nan"], "--sigma: expected a finite number >= 0"),
            (["--sigma", "25"], "divide by 255"),
            (["--size", "0"], "--size: expected an integer >= 16, got 0"),
            (["--size", "10000000000"], "--size: 10000000000 x 10000000000 pixels need 1,"),
            (["--size", "x"], "--size"),
            (["--density", "0"], "--density: expected a finite number > 0"),
            (["--density", "2"], "--density: expected a finite number"),
            (["--search-steps", "0"], "--search-steps: expected an integer >= 1"),
            (["--train-steps", "-5"], "--train-steps: expected an integer >= 1, got -5"),
            (["--search-lr", "0"], "--search-lr"),
            (["--train-lr", "inf"], "--train-lr"),
            (["--kl", "-1"], "--kl"),
            (["--schedule", "step"], "--schedule: expected one of cosine, linear, got 'step'"),
            (["--input-noise", "-0.1"], "--input-noise: expected a finite number >= 0.0, got -0.1"),
            (["--weight-decay", "nan"], "--weight-decay: expected a finite number >= 0.0"),
            (["--temperature", "0"], "--temperature"),
            (["--start", "0"], "--start: expected a finite number > 0.0 and < 1.0, got 0.0"),
            (["--start", "missing.safetensors"], "missing.safetensors"),
            (["--start", "half"], "expected a mask file"),
            (["--search-size", "0"], "--search-size: expected an integer >= "),
            (["--search-size", "24"], "--search-size: expected at least 16 pixels and fewer than the 24 of"),
            (["--mask-option", "det"], "--mask-option"),
            (["--average", "1"], "--average"),
            (["--average", "often"], "--average: expected a decay in [0, 1) or off, got 'often'"),
            (["--seed", "-1"], "--seed"),
            (["--noise-seed", "-1"], "--noise-seed"),
            (["--threads", "0"], "--threads"),
            (["--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
            (["--preset", "slow"], "--preset: expected one of paper, quick, fast, got 'slow'"),
            (["--backend", "magic"], "--backend: expected one of auto, reference"),
            (["--device", "tpu"], "--device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
            (["--device", "cuda:99"], "--device"),
            (["--bits", "12"], "--bits: expected 8 or 16, got 12"),
            (["--mask", "missing.safetensors"], "missing.safetensors"),
            (["--mask", "mask.txt"], "expected a mask file"),
            (["--clean", "missing.png"], "missing.png"),
            (["--clean", "missing.png", "--sigma", "0.1"], "--clean: expected no --sigma"),
            (["--steps", "3"], "--steps"),
            (["--sigma", "25"], "--sigma: expected a number from 0 to 1"),
            (["--size", "1e3"], "--size: expected an integer, got '1e3'; see oes-fast denoise --help"),
            (["--tv=much"], "--tv: expected a number, got 'much'; see oes-fast denoise --help"),
            (["--density", "1e-9"], "--density: expected to keep one weight of"),
            (["--train-steps", "4294967296"], "--train-steps: expected an integer < 4294967296"),
            (["--search-steps", "4294967296"], "--search-steps: expected an integer < 4294967296"),
            (["--search-lr", "1e300"], "--search-lr: expected a number of float32, which go to 3.4e+38"),
            (["--train-lr", "1e300"], "--train-lr: expected a number of float32"),
            (["--kl", "1e300"], "--kl: expected a number of float32"),
            (["--tv", "1e300"], "--tv: expected a number of float32"),
            (["--weight-decay", "1e300"], "--weight-decay: expected a number of float32"),
            (["--input-noise", "1e300"], "--input-noise: expected a number of float32"),
            (["--temperature", "1e300"], "--temperature: expected a number of float32"),
            (["--temperature", "1e-300"], "--temperature: expected a finite number >= 1.17"),
            (["--json", ""], "--json: expected a value, got an empty one"),
            (["--clean="], "--clean: expected a value, got an empty one"),
        ],
    )
    def test_options(
        self,
        options: list[str],
        says: str,
        cli_images: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        assert says in fails(capsys, "denoise", cli_images / "rgb.png", "-o", out, *options)
        assert list(tmp_path.iterdir()) == []

    def test_backend_that_cannot_run(
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        missing = [(name, status.reason) for name, status in oes.backends().items() if not status.available]
        for name, reason in missing:
            error = fails(
                capsys, "denoise", cli_images / "rgb.png", "-o", tmp_path / "out.png", "--backend", name
            )
            assert " ".join(reason.split()) in error

    @pytest.mark.parametrize("name", ["out", "out.xyz", "missing/out.png", "file.txt/out.png", ""])
    def test_output(
        self, name: str, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file.txt").write_text("a file")
        fails(capsys, "denoise", cli_images / "rgb.png", "-o", tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
    def test_folder_without_permission(
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tmp_path.chmod(0o555)
        assert "no permission" in fails(capsys, "denoise", cli_images / "rgb.png", "-o", tmp_path / "out.png")

    def test_output_over_the_input(
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        image = tmp_path / "image.png"
        image.write_bytes((cli_images / "rgb.png").read_bytes())
        assert "the name of an input" in fails(capsys, "denoise", image, "-o", image)
        assert "another output" in fails(
            capsys, "denoise", image, "-o", tmp_path / "o.png", "--json", tmp_path / "o.png"
        )
        assert image.read_bytes() == (cli_images / "rgb.png").read_bytes()

    def test_links_in_a_circle_and_devices(
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        circle = tmp_path / "circle.png"
        circle.symlink_to(circle)
        assert "it does not exist" in fails(capsys, "denoise", circle, "-o", tmp_path / "out.png")
        assert "symbolic links" in fails(capsys, "denoise", cli_images / "rgb.png", "-o", circle)
        if Path("/dev/zero").exists():  # which has no end
            error = fails(capsys, "denoise", "/dev/zero", "-o", tmp_path / "out.png")
            assert "/dev/zero: expected a file, got a device" in error
        assert "IN: expected a file, got an empty name" in fails(
            capsys, "denoise", "", "-o", tmp_path / "out.png"
        )

    @pytest.mark.parametrize("command", ["denoise", "search", "compare"])
    def test_a_folder_that_takes_no_file(
        self,
        command: str,
        cli_images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def full(*args: object, **more: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("oes_fast.io.files.tempfile.TemporaryFile", full)
        for place in ("restore", "search"):
            monkeypatch.setattr(f"oes_fast.cli.{place}.load_problem", lambda *_, **__: pytest.fail("began"))
        out = tmp_path / {"denoise": "o.png", "search": "o.safetensors", "compare": "o"}[command]
        error = fails(capsys, command, cli_images / "rgb.png", "-o", out)
        assert "cannot write: No space left on device" in error

    def test_images(self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        import tifffile

        images = tmp_path / "images"
        images.mkdir()
        (images / "text.png").write_text("these are words")
        (images / "empty.png").write_bytes(b"")
        (images / "cut.png").write_bytes((cli_images / "rgb.png").read_bytes()[:400])
        PillowImage.new("RGB", (1, 1)).save(images / "one.png")
        tifffile.imwrite(images / "nan.tif", np.full((SIDE, SIDE), np.nan, dtype=np.float32))
        tifffile.imwrite(images / "range.tif", np.full((SIDE, SIDE), 255, dtype=np.float32))
        out = tmp_path / "out.png"
        for path in sorted(images.iterdir()):
            assert path.name in fails(capsys, "denoise", path, "-o", out)
            assert path.name in fails(capsys, "denoise", cli_images / "rgb.png", "-o", out, "--clean", path)
        assert "does not exist" in fails(capsys, "denoise", images / "missing.png", "-o", out)
        assert "a folder" in fails(capsys, "denoise", images, "-o", out)
        assert "astronaut" in fails(capsys, "denoise", "skimage:nothing", "-o", out)
        assert "NaN" in fails(capsys, "denoise", images / "nan.tif", "-o", out)
        assert "3 channels" in fails(
            capsys, "denoise", cli_images / "grey.png", "-o", out, "--clean", cli_images / "rgb.png"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["images"]

    def test_masks(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rgb, grey = (oes.models.skip(32, channels, **SMALL) for channels in (3, 1))
        error = fails(capsys, "train", cli_images / "grey.png", cli_mask, "-o", tmp_path / "out.png")
        assert str(cli_mask) in error
        assert oes.fingerprint(rgb) in error
        assert oes.fingerprint(grey) in error
        (tmp_path / "text.safetensors").write_text("these are words")
        (tmp_path / "text.pkl").write_text("these are words")
        (tmp_path / "tensors.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
        for name in ("text.safetensors", "text.pkl", "tensors.safetensors"):
            image, out = cli_images / "rgb.png", tmp_path / "out.png"
            assert name in fails(capsys, "train", image, tmp_path / name, "-o", out)
            assert name in fails(capsys, "transfer", tmp_path / name, image, "-o", out)
        assert not (tmp_path / "out.png").exists()

    def test_masks_that_keep_nothing_or_name_no_network(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found, file = oes.Mask.load(cli_mask), tmp_path / "mask.safetensors"
        settings = dict(found.settings)
        for flat, changes, says in (
            (~found.flat & found.flat, {}, "expected a mask that keeps one weight at least, got one that"),
            (found.flat, {"model": 5}, "expected settings with a name as model, got 5"),
            (found.flat, {"model": "nothing"}, "expected a mask for one of skip, unet"),
            (found.flat, {"model_options": {"num_channels_down": "x"}}, "expected the options of a network"),
            (found.flat, {"model_options": {"num_channels_down": [10**9] * 2}}, "expected the options of a"),
        ):
            oes.Mask(flat, found.fingerprint, settings | changes).save(file)
            image, out = cli_images / "rgb.png", tmp_path / "out.png"
            for args in (["train", image, file], ["transfer", file, image]):
                assert f"{file}: {says}" in fails(capsys, *args, "-o", out)
        assert list(tmp_path.iterdir()) == [file]

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
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert ".safetensors" in fails(capsys, "search", cli_images / "rgb.png", "-o", tmp_path / "mask.png")

    def test_faults_of_ours_are_one_line_too(
        self,
        cli_images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def fault(*args: object, **more: object) -> None:
            raise KeyError("a fault")

        monkeypatch.setattr("oes_fast.cli.restore.load_problem", fault)
        args = ["denoise", cli_images / "rgb.png", "-o", tmp_path / "out.png"]
        assert "OES_FAST_DEBUG=1" in fails(capsys, *args, code=1)
        monkeypatch.setenv("OES_FAST_DEBUG", "1")
        with pytest.raises(KeyError):
            run(*args)
