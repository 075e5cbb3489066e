"""--mask profile: a mask with the layer profile of a found one, in the place of a search or a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import NOISE, fails, files_of, result_of, run

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]
OPTIONS = [*NOISE, "--train-steps", "4", "--threads", "1", "--no-plots", "--quiet"]
SMALL = "--model-option=num_channels_down=8,8"


def test_the_mask_is_drawn_written_and_trained(cli_images: Path, tmp_path: Path):
    out, again = tmp_path / "out.png", tmp_path / "again.png"
    assert (
        run(
            "denoise",
            cli_images / "rgb.png",
            "-o",
            out,
            "--mask",
            "profile",
            "--density",
            "0.3",
            SMALL,
            *OPTIONS,
        )
        == 0
    )
    assert files_of(out) == {".png", "_mask.safetensors", ".json"}
    written = oes.Mask.load(tmp_path / "out_mask.safetensors")
    net = oes.models.skip(num_channels_down=(8, 8))
    assert torch.equal(written.flat, oes.pruning.profile(net, density=0.3, seed=3).flat)
    result = result_of(out)
    assert result["settings"]["profile"] == {"density": 0.3}
    assert "search" not in result["settings"]
    assert list(result["steps"]) == ["train"]
    # The file that was written repeats the run.
    file = tmp_path / "out_mask.safetensors"
    assert run("denoise", cli_images / "rgb.png", "-o", again, "--mask", file, *OPTIONS) == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_density_is_by_default_that_of_the_preset(cli_images: Path, tmp_path: Path):
    out = tmp_path / "out.png"
    assert (
        run(
            "denoise",
            cli_images / "grey.png",
            "-o",
            out,
            "--mask",
            "profile",
            "--preset",
            "quick",
            SMALL,
            *OPTIONS,
        )
        == 0
    )
    assert result_of(out)["settings"]["profile"] == {"density": 0.2}


def test_other_networks_are_refused_in_one_line(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = fails(
        capsys,
        "denoise",
        cli_images / "rgb.png",
        "-o",
        tmp_path / "a.png",
        "--mask",
        "profile",
        "--model",
        "unet",
    )
    assert "--model: expected a network whose parameters have the names of oes.models.skip()" in said
