"""Fixtures of the command line's tests, a pytest plugin: tiny images, and runs that nothing disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optional_packages
import pytest
import torch
from cli_processes import end_all
from cli_runs import NOISE, SIDE, STEPS, run
from PIL import Image as PillowImage
from small_generator import small_generator

from oes_fast.cli import restore


@pytest.fixture
def same_threads() -> Iterator[None]:
    """--threads is undone after the test, and no process of it is left."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    end_all()


@pytest.fixture(scope="session")
def cli_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny images of every kind."""
    folder = tmp_path_factory.mktemp("images")
    levels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    PillowImage.fromarray(levels[..., :3]).save(folder / "rgb.png")
    PillowImage.fromarray(levels).save(folder / "rgba.png")
    PillowImage.fromarray(levels[..., 0]).save(folder / "grey.png")
    PillowImage.fromarray(levels[..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    return folder


@pytest.fixture(scope="session")
def cli_denoised(cli_images: Path) -> Path:
    """The output of a denoise run of 2 + 8 steps that nothing disturbed."""
    out = cli_images / "denoised.png"
    assert run("denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS, "--verify") == 0
    return out


@pytest.fixture(scope="session")
def cli_mask(cli_images: Path) -> Path:
    """The output of the search that :func:`denoised` starts with."""
    out = cli_images / "mask.safetensors"
    args = [
        "search",
        cli_images / "rgb.png",
        "-o",
        out,
        *NOISE,
        "--preset",
        "paper",
        "--density",
        "0.5",
        "--steps",
        "2",
    ]
    assert run(*args, "--threads", "1") == 0
    return out


@pytest.fixture
def small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restorations are made by a network of few channels; skips the test where deepinv is not here."""
    optional_packages.deepinv()
    monkeypatch.setattr(restore, "fresh_generator", small_generator)
