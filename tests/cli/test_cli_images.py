"""What a restored image keeps of the file it came from, and what the commands say that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_runs import result_of, run
from image_samples import SRGB
from PIL import Image as PillowImage

import oes_fast as oes

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")


def test_depth_alpha_and_profile_go_through(
    cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.tif"
    oes.save_image(
        source, torch.rand(1, 3, 16, 16), bits=16, alpha=torch.rand(1, 1, 16, 16), icc_profile=SRGB
    )
    given = oes.load_image(source)
    capsys.readouterr()
    assert run("transfer", cli_mask, source, "-o", out, "--steps", "1", "--quiet") == 0
    assert str(tmp_path) not in capsys.readouterr().err
    written = oes.load_image(out)
    assert given.alpha is not None
    assert written.alpha is not None
    assert torch.equal(written.alpha, given.alpha)
    assert written.bits == given.bits == 16
    assert written.icc_profile == given.icc_profile == SRGB
    assert result_of(out)["image"]["icc_profile"]


def test_what_is_left_out_is_said(cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.tif", tmp_path / "out.jpg"
    ink = (torch.rand(16, 16, 4) * 255).byte().numpy()
    PillowImage.fromarray(ink, "CMYK").save(source)
    args = ["transfer", cli_mask, source, "-o", out, "--steps", "1", "--quiet"]
    capsys.readouterr()
    assert run(*args) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if str(tmp_path) in line]
    assert said == [
        f"oes-fast: warning: {source}: CMYK is converted to RGB by (1 - ink) (1 - black), "
        "without colour management"
    ]
