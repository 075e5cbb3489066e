"""``oes-fast inpaint``: images with missing pixels, measured or made."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import optional_packages
import pytest
import torch
from cli_processes import start, wait_for
from cli_runs import RESULTS, SIDE, assert_same_run, fails, files_of, interrupt_at, result_of, run
from PIL import Image as PillowImage
from small_generator import small_generator
from task_runs import RUN, STEPS, save

import oes_fast as oes
from oes_fast.cli import main, restore
from oes_fast.cli.progress import ProgressReport

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "small_task"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


def test_missing_pixels_of_a_clean_image(cli_images: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "out.png", cli_images / "rgb.png"
    args = ["inpaint", image, "--missing", "0.5", "-o", out, *RUN, "--seed", "3"]
    assert run(*args, "--sigma", "0.1", "--tv", "0.01") == 0
    assert files_of(out) == RESULTS
    task = oes.tasks.inpainting(oes.load_image(image).pixels, missing=0.5, sigma=0.1, seed=3)
    torch.set_num_threads(1)
    net, z = small_generator(task.noisy, shape=task.shape, seed=3)
    common = {**task.arguments(), "tv": 0.01, "verify": False}
    mask = oes.search_mask(net, z, task.noisy, density=0.5, steps=2, seed=3, **common).mask
    fit = oes.train_sparse(net, mask, z, task.noisy, steps=4, average=0.99, **common)
    assert torch.equal(oes.Mask.load(tmp_path / "out_mask.safetensors").flat, mask.flat)
    oes.save_image(tmp_path / "library.png", fit.average)
    assert (tmp_path / "library.png").read_bytes() == out.read_bytes()
    result = result_of(out)
    assert result["command"] == "inpaint"
    assert result["image"]["task"] == {"name": "inpainting", **task.settings}
    assert (result["image"]["sigma"], result["image"]["height"]) == (0.1, SIDE)
    assert result["seeds"] == {"seed": 3, "noise": 3}
    assert result["settings"]["tv"] == 0.01
    assert result["psnr"]["noisy"] == pytest.approx(oes.psnr(task.first, task.clean))
    assert result["psnr"]["average"] == pytest.approx(oes.psnr(fit.average, task.clean))
    assert result["psnr"]["peak"] == pytest.approx(max(fit.history.psnr))
    assert not run(*args, "--sigma", "0.1", "--noise-seed", "4", "--no-plots")
    assert result_of(out)["psnr"]["noisy"] != result["psnr"]["noisy"]


def test_without_noise_the_whole_image_is_the_clean_one(cli_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run("inpaint", cli_images / "grey.png", "--missing", "0.3", "-o", out, *RUN, "--no-plots") == 0
    result = result_of(out)
    assert result["image"]["sigma"] == 0.0
    assert result["psnr"]["noisy"] > 0
    assert result["image"]["channels"] == 1


def test_measured_image_with_a_mask(cli_images: Path, tmp_path: Path) -> None:
    """White is known; the hidden pixels have no say."""
    known = np.zeros((SIDE, SIDE), np.uint8)
    known[:, ::2] = 255
    PillowImage.fromarray(known).save(tmp_path / "mask.png")
    save(tmp_path / "mask.npy", known // 255)
    pixels = np.array(PillowImage.open(cli_images / "rgba.png"))
    spoilt = pixels.copy()
    spoilt[:, 1::2, :3] = 77
    PillowImage.fromarray(spoilt).save(tmp_path / "spoilt.png")
    outs = []
    for name, image, mask in (
        ("a", cli_images / "rgba.png", "mask.png"),
        ("b", cli_images / "rgba.png", "mask.npy"),
        ("c", tmp_path / "spoilt.png", "mask.png"),
    ):
        outs.append(tmp_path / f"{name}.png")
        assert run("inpaint", image, "--mask", tmp_path / mask, "-o", outs[-1], *RUN) == 0
    assert files_of(outs[0]) == RESULTS - {"_psnr.png"}
    assert len({out.read_bytes() for out in outs}) == 1
    assert oes.load_image(outs[0]).alpha is not None
    result = result_of(outs[0])
    assert result["psnr"] is None
    assert result["image"]["task"]["known"] == 0.5
    assert result["seeds"]["noise"] is None


def test_weights_mask_and_clean(cli_images: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    args = ["inpaint", cli_images / "rgb.png", "--missing", "0.4", *RUN, "--no-plots"]
    assert run(*args, "-o", out) == 0
    assert run(*args, "-o", again, "--weights-mask", tmp_path / "out_mask.safetensors") == 0
    assert again.read_bytes() == out.read_bytes()
    assert files_of(again) == {".png", ".json"}
    assert run(*args, "-o", again, "--clean", cli_images / "rgb.png") == 0
    result = result_of(again)
    assert result["image"]["sigma"] is None
    assert result["psnr"] == result_of(out)["psnr"]


def test_stopped_then_resumed_is_an_undisturbed_run(
    cli_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = ["inpaint", cli_images / "rgb.png", "--missing", "0.5", "--sigma", "0.1", *STEPS]
    assert run(*args, "-o", tmp_path / "whole.png") == 0
    out = tmp_path / "out.png"
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at("train", 2))
        assert run(*args, "-o", out) == 130
    assert result_of(out)["interrupted"]
    error = fails(capsys, *args, "-o", out, "--resume", "--missing", "0.6")
    assert "the checkpoint was made for another noisy image" in error
    error = fails(capsys, *args, "-o", out, "--resume", "--tv", "0.1")
    assert "--tv" in error
    assert "this run has 0.1" in error
    assert run(*args, "-o", out, "--resume") == 0
    assert_same_run(out, tmp_path / "whole.png")
    assert files_of(out) == RESULTS


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_process_that_is_killed_goes_on(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not optional_packages.torchvision_loads():
        pytest.skip("torchvision does not load in a process of its own")
    monkeypatch.setattr(restore, "fresh_generator", oes.fresh_generator)  # that of the other process
    args = [
        "inpaint",
        cli_images / "rgb.png",
        "--missing",
        "0.5",
        "--sigma",
        "0.1",
        "--checkpoint-seconds",
        "0",
    ]
    args += [*STEPS, "--train-steps", "9", "--model-option", "num_channels_down=8,8"]
    out = tmp_path / "out.png"
    killed = start(*args, "-o", out)
    wait_for(tmp_path / "out.train.ckpt", killed)
    killed.kill()
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert run(*args, "-o", out, "--resume") == 0
    assert run(*args, "-o", tmp_path / "whole.png") == 0
    assert_same_run(out, tmp_path / "whole.png")
    assert files_of(out) == RESULTS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--mask: expected it or --missing, got neither"),
        (["--missing", "0.5", "--mask", "mask.png"], "--mask: expected it or --missing, got both"),
        (["--missing", "0"], "--missing: expected a finite number > 0"),
        (["--missing", "1.5"], "--missing: expected a finite number"),
        (["--missing", "0.9999999"], "--missing: expected a share that leaves one known pixel at least"),
        (["--mask", "missing.png"], "missing.png: expected a file, got nothing"),
        (["--missing", "0.5", "--sigma", "-1"], "--sigma: expected a finite number >= 0"),
        (["--missing", "0.5", "--sigma", "25"], "--sigma: expected a number from 0 to 1"),
        (["--missing", "0.5", "--sigma", "0", "--clean", "a.png"], "--clean: expected no --sigma"),
        (["--missing", "0.5", "--tv", "-1"], "--tv: expected a finite number >= 0"),
        (["--missing", "0.5", "--weights-mask", "no.safetensors"], "no.safetensors"),
        (["--missing", "0.5", "--search-steps", "0"], "--search-steps: expected an integer >= 1"),
        (["--missing", "0.5", "--bits", "12"], "--bits"),
    ],
)
def test_options(
    options: list[str], says: str, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, "inpaint", cli_images / "rgb.png", "-o", tmp_path / "o.png", *options)
    assert list(tmp_path.iterdir()) == []


def test_masks_that_are_none(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.png").write_text("these are words")
    (tmp_path / "words.npy").write_text("these are words")
    PillowImage.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "black.png")
    for name, says in {
        save(tmp_path / "small.npy", np.ones((4, SIDE))): f"--mask: expected shape ({SIDE}, {SIDE})",
        save(tmp_path / "deep.npy", np.ones((1, SIDE, SIDE))): "expected real numbers of shape (H, W)",
        save(tmp_path / "nan.npy", np.full((SIDE, SIDE), np.nan)): "expected finite values",
        save(tmp_path / "complex.npy", np.ones((SIDE, SIDE), complex)): "expected real numbers",
        tmp_path / "words.npy": "expected a complete NumPy array",
        tmp_path / "words.png": "words.png",
        tmp_path / "black.png": "--mask: expected one known pixel at least",
    }.items():
        args = ["inpaint", cli_images / "rgb.png", "--mask", name, "-o", tmp_path / "o.png"]
        assert says in fails(capsys, *args)
    PillowImage.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(tmp_path / "white.png")
    args = ["inpaint", cli_images / "rgb.png", "--mask", tmp_path / "white.png"]
    assert "the name of an input" in fails(capsys, *args, "-o", tmp_path / "white.png")
    assert "3 channels" in fails(capsys, *args, "-o", tmp_path / "o.png", "--clean", cli_images / "grey.png")


def test_help_lists_own_and_shared_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command, own in {
        "inpaint": "--missing",
        "superres": "--factor",
        "deblur": "--kernel",
        "mri": "--slice",
    }.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        for option in (
            own,
            "--sigma",
            "--weights-mask",
            "--density",
            "--tv",
            "--resume",
            "--json",
            "--output",
        ):
            assert option in text


def test_a_mask_of_other_numbers_is_refused(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "mask.npy", np.full((24, 24), 0.7))
    args = ["inpaint", cli_images / "rgb.png", "--mask", tmp_path / "mask.npy", "-o", tmp_path / "o.png"]
    assert "--mask: expected 0 or 1 in every element" in fails(capsys, *args)


def test_no_search_on_a_smaller_image(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["inpaint", cli_images / "rgb.png", "--missing", "0.5", "-o", tmp_path / "o.png"]
    args += ["--search-size", "16", "--sigma", "0", "--threads", "1"]
    assert "--search-size: expected it for denoising alone" in fails(capsys, *args)
