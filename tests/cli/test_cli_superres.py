"""``oes-fast superres``: more rows and columns than were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import RESULTS, SIDE, fails, files_of, result_of, run
from task_runs import RUN

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "small_task"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


def test_of_a_clean_image(cli_images: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "out.png", cli_images / "rgba.png"
    assert run("superres", image, "--factor", "4", "--sigma", "0.02", "-o", out, *RUN) == 0
    assert files_of(out) == RESULTS
    restored = oes.load_image(out)
    assert restored.pixels.shape == (1, 3, SIDE, SIDE)
    assert restored.alpha is not None
    task = oes.tasks.superresolution(oes.load_image(image).pixels, 4, sigma=0.02, seed=0)
    result = result_of(out)
    assert result["command"] == "superres"
    assert result["image"]["task"] == {"name": "superresolution", "factor": 4, "filter": "bicubic"}
    assert result["psnr"]["noisy"] == pytest.approx(oes.psnr(task.first, task.clean))
    assert result["psnr"]["restored"] == pytest.approx(oes.psnr(restored.pixels, task.clean), abs=0.05)


def test_of_a_measured_image(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, large = tmp_path / "out.png", tmp_path / "large.png"
    oes.save_image(large, torch.rand(1, 3, 2 * SIDE, 2 * SIDE))
    args = ["superres", cli_images / "rgba.png", "--factor", "2", "--filter", "bilinear", "-o", out, *RUN]
    capsys.readouterr()
    assert run(*args, "--clean", large) == 0
    assert "the alpha channel is left out" in capsys.readouterr().err
    restored = oes.load_image(out)
    assert restored.pixels.shape == (1, 3, 2 * SIDE, 2 * SIDE)
    assert restored.alpha is None
    assert result_of(out)["psnr"]["restored"] == pytest.approx(
        oes.psnr(restored.pixels, oes.load_image(large).pixels), abs=0.05
    )
    assert run(*args, "--clean", large, "--size", "16") == 0
    assert oes.load_image(out).pixels.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--factor"),
        (["--factor", "1"], "--factor: expected an integer >= 2, got 1"),
        (["--factor", "2.5"], "--factor: expected an integer, got '2.5'"),
        (["--factor", "100000"], "--factor: expected one whose restored image fits in memory, got 100000"),
        (["--factor", "99999999999999999999"], "--factor: expected one whose restored image fits in memory"),
        (["--factor", "24", "--sigma", "0"], "--factor: expected one whose filter fits the image of 24 x 24"),
        (["--factor", "5", "--sigma", "0"], "--factor: expected one that divides the image's 24 rows"),
        (["--factor", "2", "--filter", "lanczos"], "--filter: expected one of bicubic, gaussian, bilinear"),
        (
            ["--factor", "12", "--sigma", "0", "--filter", "gaussian"],
            "--factor: expected one whose filter fits",
        ),
    ],
)
def test_options(
    options: list[str], says: str, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, "superres", cli_images / "rgb.png", "-o", tmp_path / "o.png", *options)
    assert list(tmp_path.iterdir()) == []


def test_clean_image_has_the_size_of_the_restored_one(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["superres", cli_images / "rgb.png", "--factor", "2", "-o", tmp_path / "o.png"]
    error = fails(capsys, *args, "--clean", cli_images / "rgb.png")
    assert "--clean: expected 48 x 48 pixels of 3 channels as the restored image, got 24 x 24" in error
