"""``oes-fast prune``: masks of every method for ``train``, with the weights that a ticket starts from."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from cli_runs import NOISE, fails, files_of, interrupt_at, result_of, run
from small_generator import small_generator

import oes_fast as oes
from oes_fast.cli import prune, restore
from oes_fast.cli.progress import ProgressReport
from oes_fast.pruning import METHODS

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads", "small")

RUN = ["--density", "0.4", "--threads", "1", "--no-verify", "--quiet"]
IMP = ["--method", "imp", "--rounds", "2", "--steps", "6", "--rewind-step", "2"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prune, restore):
        monkeypatch.setattr(module, "fresh_generator", small_generator)


def noisy_rgb(folder: Path) -> torch.Tensor:
    return oes.add_noise(oes.load_image(folder / "rgb.png").pixels, 0.1, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_mask_is_the_method_s(method: str, cli_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    own = {"oes": ["--steps", "3"], "imp": ["--steps", "3", "--share", "0.5"]}.get(method, [])
    assert run("prune", cli_images / "rgb.png", "-o", out, "--method", method, *NOISE, *RUN, *own) == 0
    assert files_of(out) == {".safetensors", "_layers.png", ".json"}
    noisy = noisy_rgb(cli_images)
    net, z = small_generator(noisy, seed=3)
    arguments = {"oes": {"steps": 3}, "imp": {"steps": 3, "share": 0.5}}.get(method, {})
    wanted = METHODS[method](net, z, noisy, density=0.4, seed=3, **arguments)
    found = oes.Mask.load(out, net)
    assert torch.equal(found.flat, wanted.flat)
    assert found.settings["network_seed"] == 3
    result = result_of(out)
    assert result["command"] == "prune"
    assert result["method"] == method
    assert result["mask"]["kept"] == found.kept == sum(layer["kept"] for layer in result["layers"])
    assert result["psnr"].keys() == {"noisy", "masked"}


def test_options_of_the_choice_are_passed_on(cli_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    args = ["prune", cli_images / "rgb.png", "-o", out, "--method", "magnitude", *NOISE, *RUN]
    assert run(*args, "--scope", "tensor", "--small", "score", "--no-plots") == 0
    net, _ = small_generator(noisy_rgb(cli_images), seed=3)
    wanted = oes.pruning.magnitude(net, density=0.4, scope="tensor", small="score", seed=3)
    assert torch.equal(oes.Mask.load(out).flat, wanted.flat)
    assert run(*args, "--published") == 0
    wanted = oes.pruning.magnitude(net, density=0.4, published=True, seed=3)
    assert torch.equal(oes.Mask.load(out).flat, wanted.flat)


def test_a_ticket_is_trained_from_its_rewound_weights(
    cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, image = tmp_path / "mask.safetensors", cli_images / "rgb.png"
    assert run("prune", image, "-o", mask, *IMP, *NOISE, *RUN) == 0
    weights = tmp_path / "mask_weights.safetensors"
    assert files_of(mask) == {".safetensors", "_weights.safetensors", "_layers.png", ".json"}
    args = ["train", image, mask, "--sigma", "0.1", "--steps", "4", "--threads", "1", "--quiet", "--no-plots"]
    args += ["--no-verify"]
    assert run(*args, "-o", tmp_path / "a.png", "--weights", weights) == 0
    noisy = noisy_rgb(cli_images)
    net, z = small_generator(noisy, seed=3)
    rounds = oes.pruning.imp_rounds(
        net, z, noisy, density=0.4, rounds=2, steps=6, rewind_step=2, seed=3, lr=0.01
    )
    fit = oes.train_sparse(rounds.net, rounds.mask, z, noisy, steps=4)
    result = result_of(tmp_path / "a.png")
    assert result["history"]["train"]["loss"] == fit.history.loss
    assert result["weights"] == str(weights)
    capsys.readouterr()
    assert run(*args, "-o", tmp_path / "b.png") == 0
    assert "found for the weights of step 2" in capsys.readouterr().err
    assert result_of(tmp_path / "b.png")["history"]["train"]["loss"] != fit.history.loss


def test_published_rounds(cli_images: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "mask.safetensors", cli_images / "rgb.png"
    args = ["--method", "imp", "--published", "--rounds", "2", "--share", "0.3", "--steps", "2"]
    assert run("prune", image, "-o", out, *args, *NOISE, *RUN[2:], "--no-plots") == 0
    mask = oes.Mask.load(out)
    net, _ = small_generator(noisy_rgb(cli_images), seed=3)
    kept = sum(int((parameter != 0).sum()) for parameter in net.parameters())
    for _ in range(2):
        kept -= math.ceil(0.3 * kept)
    assert (mask.kept, mask.settings["round"]) == (kept, 2)


@pytest.mark.parametrize(
    ("method", "phase", "step"),
    [("imp", "imp round 1 of 2", 1), ("imp", "imp round 2 of 2", 2), ("oes", "search", 2)],
)
def test_a_stopped_run_goes_on(
    method: str,
    phase: str,
    step: int,
    cli_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, image = tmp_path / "mask.safetensors", cli_images / "rgb.png"
    own = IMP if method == "imp" else ["--method", "oes", "--steps", "6"]
    args = ["prune", image, "-o", out, *NOISE, *RUN, "--no-plots"]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at(phase, step))
        assert run(*args, *own) == 130
    assert "--resume" in capsys.readouterr().err
    assert files_of(out) == {f".{'imp' if method == 'imp' else 'search'}.ckpt"}
    assert "unfinished run is here" in fails(capsys, *args, *own)
    assert "--lr" in fails(capsys, *args, *own, "--resume", "--lr", "0.5")
    assert run(*args, *own, "--resume") == 0
    assert not [name for name in files_of(out) if name.endswith("ckpt")]
    other = tmp_path / "other.safetensors"
    assert run("prune", image, "-o", other, *own, *NOISE, *RUN, "--no-plots") == 0
    assert torch.equal(oes.Mask.load(out).flat, oes.Mask.load(other).flat)


def test_restart_sets_the_rounds_aside(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mask.safetensors"
    args = ["prune", cli_images / "rgb.png", "-o", out, *IMP, *NOISE, *RUN, "--no-plots"]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at("imp round 2 of 2", 1))
        assert run(*args) == 130
    assert run(*args, "--restart") == 0
    assert files_of(out) == {".safetensors", "_weights.safetensors", ".json", ".imp.old.ckpt"}
    assert (tmp_path / "mask.imp.old.ckpt" / "rounds.safetensors").exists()
    (tmp_path / "mask.imp.ckpt").mkdir()
    (tmp_path / "mask.imp.ckpt" / "rounds.safetensors").write_text("none")
    assert run(*args, "--resume") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "lasso"], "--method: expected one of random,"),
        (["--method", "snip", "--steps", "5"], "--steps: expected it with --method oes or imp alone"),
        (
            ["--method", "oes", "--rounds", "5"],
            "--rounds: expected it with --method imp alone, got it with oes",
        ),
        (["--method", "imp", "--kl", "0.1"], "--kl: expected it with --method oes alone"),
        (["--method", "imp", "--temperature", "1"], "--temperature: expected it with --method oes alone"),
        (["--method", "oes", "--temperature", "0"], "--temperature: expected a finite number >= 1.17"),
        (["--method", "oes", "--published"], "--published: expected another --method than oes"),
        (
            ["--method", "imp", "--steps", "5", "--rewind-step", "5"],
            "--rewind-step: expected an integer >= 0 and < 5",
        ),
        (
            ["--method", "imp", "--rounds", "2", "--share", "0.3"],
            "--share: expected it without --rounds, each of which prunes the same, got both",
        ),
        (
            ["--method", "imp", "--published", "--rounds", "2", "--density", "0.3"],
            "--rounds: expected it without --density with --published",
        ),
        (["--method", "snip", "--scope", "layer"], "--scope: expected one of global"),
        (["--method", "snip", "--density", "1"], "--density: expected a finite number > 0.0 and < 1.0"),
        (["--method", "snip", "--density", "0.001"], "--density: expected"),
        (["--method", "oes", "--steps", "4294967296"], "--steps: expected an integer < 4294967296"),
        (["--method", "imp", "--lr", "1e300"], "--lr: expected a number of float32"),
        (["--method", "imp", "--rounds", "70000"], "--rounds: expected an integer >= 1 and < 65536"),
        (["--method", "imp", "--share", "1e-12"], "--share: expected one that comes to the density 0.05 in"),
        (["--method", "imp", "--density", "1e-9"], "at least, got 1e-09"),
    ],
)
def test_bad_options(
    options: list[str], message: str, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["prune", cli_images / "rgb.png", "-o", tmp_path / "mask.safetensors", "--no-verify", *options]
    assert message in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["prune", cli_images / "rgb.png", "-o", tmp_path / "mask.npz", "--method", "random"]
    assert "expected a name that ends in .safetensors" in fails(capsys, *args)


def test_a_signal_before_there_is_a_run(
    cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prune, "load_problem", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    args = ["prune", cli_images / "rgb.png", "-o", tmp_path / "m.safetensors", "--method", "random"]
    assert fails(capsys, *args, code=143) == "oes-fast: error: stopped by SIGTERM\n"
