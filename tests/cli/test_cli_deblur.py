"""``oes-fast deblur``: images blurred by a known kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import RESULTS, SIDE, fails, files_of, result_of, run
from PIL import Image as PillowImage
from task_runs import RUN, save

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "small_task"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]


@pytest.mark.parametrize("padding", ["reflect", "circular", "valid"])
def test_of_a_clean_image(padding: str, cli_images: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "out.png", cli_images / "rgb.png"
    args = ["deblur", image, "--gaussian", "0.7", "--padding", padding, "--sigma", "0.02", "-o", out, *RUN]
    assert run(*args) == 0
    assert files_of(out) == RESULTS
    task = oes.tasks.deblurring(
        oes.load_image(image).pixels, gaussian=0.7, padding=padding, sigma=0.02, seed=0
    )
    restored = oes.load_image(out).pixels
    assert restored.shape == task.first.shape
    clean = task.clean.image if padding == "valid" else task.clean
    result = result_of(out)
    assert result["image"]["task"] == {"name": "deblurring", **task.settings}
    assert result["psnr"]["noisy"] == pytest.approx(oes.psnr(task.first, clean))
    assert result["psnr"]["restored"] == pytest.approx(oes.psnr(restored, clean), abs=0.05)
    assert result["psnr"]["peak"] >= result["psnr"]["last"] - 1e-9
    assert result["psnr"]["masked"] is not None


def test_kernel_of_a_file(cli_images: Path, tmp_path: Path) -> None:
    kernel = np.zeros((5, 3))
    kernel[2] = 1, 2, 3
    save(tmp_path / "k.npy", kernel)
    PillowImage.fromarray((kernel * 80).astype(np.uint8)).save(tmp_path / "k.png")  # smaller than images are
    outs = []
    for name in ("k.npy", "k.png"):
        outs.append(tmp_path / f"{name[-3:]}.png")
        args = ["deblur", cli_images / "rgba.png", "--kernel", tmp_path / name, "-o", outs[-1], *RUN]
        assert run(*args, "--padding", "valid") == 0
    first, second = (oes.load_image(out) for out in outs)
    assert first.pixels.shape == (1, 3, SIDE, SIDE)
    assert first.alpha is not None
    assert torch.allclose(first.pixels, second.pixels, atol=1 / 128)
    assert result_of(outs[0])["image"]["task"]["kernel"] == [5, 3]
    assert result_of(outs[0])["psnr"] is None


def test_refusals(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kernel(name: str, array: np.ndarray) -> list[str]:
        return ["--kernel", str(save(tmp_path / name, array))]

    PillowImage.new("RGB", (4, 4)).save(tmp_path / "even.png")
    for options, says in (
        ([], "--kernel: expected it or --gaussian, got neither"),
        (["--kernel", "k.npy", "--gaussian", "1"], "--kernel: expected it or --gaussian, got both"),
        (["--kernel", "none.npy"], "none.npy: expected a file, got nothing"),
        (["--gaussian", "0"], "--gaussian: expected a finite number > 0"),
        (
            ["--gaussian", "1e10"],
            "--gaussian: expected at most half the side of the image, 12 pixels, got 1e+10",
        ),
        (["--gaussian", "9"], "--gaussian: expected a kernel no larger than the image"),
        (["--gaussian", "1", "--padding", "zeros"], "--padding: expected one of reflect"),
        (kernel("even.npy", np.ones((4, 3))), "--kernel: expected an odd number of rows and columns, got 4"),
        (["--kernel", str(tmp_path / "even.png")], "--kernel: expected an odd number"),
        (kernel("large.npy", np.ones((25, 3))), "--kernel: expected a kernel no larger than the image"),
        (kernel("zero.npy", np.zeros((3, 3))), "--kernel: expected weights with a sum above 0"),
        (kernel("flat.npy", np.ones(3)), "expected real numbers of shape (H, W)"),
        (kernel("nan.npy", np.full((3, 3), np.nan)), "expected finite values, got 9"),
    ):
        assert says in fails(capsys, "deblur", cli_images / "rgb.png", "-o", tmp_path / "o.png", *options)
    assert not (tmp_path / "o.png").exists()


@pytest.mark.filterwarnings("error:You're using padding")
def test_a_kernel_of_one_tap_is_no_matter_of_padding(cli_images: Path, tmp_path: Path) -> None:
    kernel, out = save(tmp_path / "one.npy", np.ones((1, 1))), tmp_path / "o.png"
    assert run("deblur", cli_images / "rgb.png", "--kernel", kernel, "-o", out, *RUN) == 0
    assert oes.load_image(out).pixels.shape == (1, 3, SIDE, SIDE)
