"""What --resume, --restart and neither do to the checkpoints they find: nothing is lost, all is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_runs import NOISE, RESULTS, STEPS, assert_same_run, fails, files_of, interrupt_at, result_of, run

from oes_fast.cli.progress import ProgressReport
from oes_fast.io.files import load_tensors, save_tensors

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")

BOTH = {".search.ckpt", ".train.ckpt"}


@pytest.fixture(scope="module")
def stopped(cli_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with what a denoise run leaves that was stopped in its search, and in its training."""
    folders = {}
    for phase in ("search", "train"):
        folder = folders[phase] = tmp_path_factory.mktemp(phase)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at(phase, 0))
            args = ["denoise", cli_images / "rgb.png", "-o", folder / "out.png", *NOISE, *STEPS, "--no-plots"]
            assert run(*args) == 130
    return folders


@pytest.fixture
def unfinished(stopped: dict[str, Path], cli_images: Path, tmp_path: Path) -> list[object]:
    """The arguments of a denoise run whose search is finished and whose training is not."""
    return copy(stopped["train"], cli_images, tmp_path)


def copy(folder: Path, images: Path, to: Path) -> list[object]:
    for path in folder.glob("out*.ckpt"):
        (to / path.name).write_bytes(path.read_bytes())
    return ["denoise", images / "rgb.png", "-o", to / "out.png", *NOISE, *STEPS, "--no-plots"]


def step_of(path: Path) -> int:
    return load_tensors(path)[1]["step"]


def test_neither_names_the_files_and_what_becomes_of_them(
    unfinished: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, *unfinished)
    assert "out.search.ckpt and " in error
    assert re.search(r"--resume goes on from them, --restart sets \S*out.train.ckpt aside as", error)
    assert re.search(r"keeps the finished search in \S*out.search.ckpt", error)
    assert files_of(tmp_path / "out.png") == BOTH


def test_other_training_then_restart_as_advised(
    unfinished: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    before = (tmp_path / "out.train.ckpt").read_bytes()
    other = ["--train-lr", "0.5", "--average", "off"]
    capsys.readouterr()
    assert run(*unfinished, *other, "--resume", "--quiet") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "with --average 0.99, this run has off" in error
    assert "with --train-lr 0.01, this run has 0.5" in error
    assert re.search(r"--restart sets \S*out.train.ckpt aside as \S*out.train.old.ckpt", error)
    assert files_of(out) == BOTH
    assert run(*unfinished, *other, "--restart", "--quiet") == 0
    assert "set aside as" in capsys.readouterr().err
    assert result_of(out)["seconds"]["search"] < 60
    assert files_of(out) == (RESULTS - {"_comparison.png", "_psnr.png"}) | {".train.old.ckpt"}
    assert (tmp_path / "out.train.old.ckpt").read_bytes() == before


def test_other_options_of_the_steps_are_named(
    unfinished: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--schedule", "cosine", "--input-noise", "0.05"]
    error = fails(capsys, *unfinished, *other, "--weight-decay", "0.1", "--resume")
    assert "with --schedule off, this run has cosine over 2 steps" in error
    assert "with --input-noise off, this run has 0.05" in error


def test_a_damaged_training_is_set_aside_alone(
    unfinished: list[object],
    cli_denoised: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = tmp_path / "out.train.ckpt"
    train.write_bytes(train.read_bytes()[:-1000])
    (tmp_path / "out.train.old.ckpt").write_text("set aside before")
    error = fails(capsys, *unfinished, "--resume")
    assert "expected a complete safetensors file" in error
    assert "aside as" in error
    assert "out.train.old2.ckpt" in error
    searched = []

    def watch(self: ProgressReport, info: object) -> None:
        if info.phase == "search":
            searched.append(info.step)

    monkeypatch.setattr(ProgressReport, "__call__", watch)
    assert run(*unfinished, "--restart", "--quiet") == 0
    assert searched == [2], "the finished search was not kept"
    assert (tmp_path / "out.train.old.ckpt").read_text() == "set aside before"
    assert train.with_name("out.train.old2.ckpt").exists()
    assert_same_run(tmp_path / "out.png", cli_denoised)


def test_an_unfinished_search_is_started_afresh(
    stopped: dict[str, Path], cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = copy(stopped["search"], cli_images, tmp_path)
    search = tmp_path / "out.search.ckpt"
    before = search.read_bytes()
    assert step_of(search) == 1
    error = fails(capsys, *args)
    assert re.search(
        r"--restart sets \S*out.search.ckpt aside as \S*out.search.old.ckpt and starts it", error
    )
    assert run(*args, "--restart", "--quiet") == 0
    assert (tmp_path / "out.search.old.ckpt").read_bytes() == before
    assert not search.exists()


def test_a_search_of_another_image_is_said_in_words_and_never_destroyed(
    unfinished: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (tmp_path / name).read_bytes() for name in ("out.search.ckpt", "out.train.ckpt")}
    error = fails(capsys, *unfinished, "--size", "16", "--resume")
    assert (
        "another noisy image (24 x 24 pixels of 3 channels, this run 16 x 16 pixels of 3 channels)" in error
    )
    assert not re.search(r"\b[0-9a-f]{16}\b", error)
    assert "out.search.old.ckpt and" in error
    assert "starts both afresh" in error
    assert run(*unfinished, "--size", "16", "--restart", "--quiet") == 0
    for name, data in before.items():
        assert (tmp_path / name.replace(".ckpt", ".old.ckpt")).read_bytes() == data


def test_another_seed_is_named(unfinished: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, *unfinished, "--seed", "4", "--resume")
    assert "with --seed 3, this run has 4" in error
    assert "other initial weights (option --seed)" in error


def test_a_damaged_search_is_not_called_finished(
    unfinished: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.search.ckpt").write_text("no checkpoint")
    assert "keeps" not in fails(capsys, *unfinished)
    assert "keeps" not in fails(capsys, *unfinished, "--resume")
    assert files_of(tmp_path / "out.png") == BOTH


def test_checkpoints_without_words(
    unfinished: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older versions wrote them."""
    search = tmp_path / "out.search.ckpt"
    tensors, metadata = load_tensors(search)
    del metadata["words"]
    save_tensors(search, tensors, metadata)
    error = fails(capsys, *unfinished, "--size", "16", "--resume")
    assert "for another noisy image;" in error
