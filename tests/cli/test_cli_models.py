"""--model and --model-option: every command, and what masks, checkpoints and results say of the network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cli_runs import NOISE, STEPS, fails, interrupt_at, result_of, run

import oes_fast as oes
from oes_fast.cli.progress import ProgressReport
from oes_fast.recipe import Recipe
from oes_fast.weights_file import save_weights

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

OPTIONS = {"num_input_channels": 3, "num_blocks": 1, "num_channels": 4}
MODEL = ["--model", "resnet", *(f"--model-option={key}={value}" for key, value in OPTIONS.items())]
QUICK = ["--threads", "1", "--no-plots", "--quiet"]
UNET = ["--model", "unet", "--model-option", "feature_scale=32"]


@pytest.fixture(scope="module")
def denoised(cli_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resnet") / "out.png"
    assert run("denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS, *MODEL, *QUICK) == 0
    return out


@pytest.fixture
def mask(denoised: Path) -> Path:
    return denoised.with_name("out_mask.safetensors")


def test_results_and_masks_say_what_the_network_is(denoised: Path, mask: Path) -> None:
    settings = result_of(denoised)["settings"]
    assert (settings["model"], settings["model_options"]) == ("resnet", OPTIONS)
    found = oes.Mask.load(mask)
    assert (found.settings["model"], found.settings["model_options"]) == ("resnet", OPTIONS)
    assert found.settings["network_seed"] == 3
    net, _ = oes.models.generator("resnet", (3, 24, 24), seed=3, **OPTIONS)
    assert found.fingerprint == oes.fingerprint(net)


def test_a_mask_brings_its_network(cli_images: Path, denoised: Path, mask: Path, tmp_path: Path) -> None:
    image, out = cli_images / "rgb.png", tmp_path / "out.png"
    train = ["--steps", "8", *QUICK]
    assert run("train", image, mask, "-o", out, *NOISE, *train) == 0
    assert out.read_bytes() == denoised.read_bytes()
    assert result_of(out)["settings"]["model_options"] == OPTIONS
    assert run("train", image, mask, "-o", out, *NOISE, *train, *MODEL) == 0  # what it says already
    assert out.read_bytes() == denoised.read_bytes()
    assert run("transfer", mask, cli_images / "rgba.png", "-o", tmp_path / "moved.png", *train) == 0
    assert result_of(tmp_path / "moved.png")["settings"]["model"] == "resnet"
    noise = [*NOISE, *QUICK, "--train-steps", "8"]
    assert run("denoise", image, "-o", tmp_path / "b.png", "--mask", mask, *noise) == 0
    assert (tmp_path / "b.png").read_bytes() == denoised.read_bytes()


def test_weights_of_any_model_are_read(
    cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", cli_images / "rgb.png", mask, "-o", tmp_path / "out.png", "--steps", "2", *QUICK]
    other, _ = oes.models.generator("resnet", (3, 24, 24), seed=7, **OPTIONS)
    save_weights(tmp_path / "weights.safetensors", other)
    assert run(*train, "--seed", "7") == 0
    wanted = (tmp_path / "out.png").read_bytes()
    assert run(*train, "--weights", tmp_path / "weights.safetensors") != 2
    assert run(*train, "--seed", "7", "--weights", tmp_path / "weights.safetensors") == 0
    assert (tmp_path / "out.png").read_bytes() == wanted
    save_weights(tmp_path / "weights.safetensors", oes.models.unet(3, 3, feature_scale=32))
    error = fails(capsys, *train, "--weights", tmp_path / "weights.safetensors")
    assert "expected the weights of the network" in error


def test_what_contradicts_a_mask_is_named_beside_it(
    cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", cli_images / "rgb.png", mask, "-o", tmp_path / "out.png", *QUICK]
    error = fails(capsys, *train, "--model", "unet")
    assert f"--model: expected resnet, which {mask} was made for, got unet" in error
    error = fails(capsys, *train, "--model-option", "num_blocks=2")
    assert f"--model-option num_blocks: expected 1, which {mask} was made for, got 2" in error
    error = fails(capsys, *train, "--model-option", "pad=zero")
    assert "--model-option pad: expected reflection, which" in error
    assert not list(tmp_path.iterdir())


def test_a_mask_that_does_not_say_is_one_of_the_default(
    cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = oes.Mask.load(mask)
    oes.Mask(found.flat, found.fingerprint, {"network_seed": 3}).save(tmp_path / "mask.safetensors")
    train = ["train", cli_images / "rgb.png", tmp_path / "mask.safetensors", "-o", tmp_path / "out.png"]
    train += ["--steps", "2", *QUICK]
    error = fails(capsys, *train)
    assert f"made for the network {found.fingerprint}, used with the network 3008867-" in error
    assert run(*train, *MODEL) == 0  # unless the user knows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "vgg"], "--model: expected one of skip, unet, .*, conv_decoder, dcgan, got 'vgg'"),
        (["--model", "skip_1d"], "--model: expected one of skip, .*, got 'skip_1d'"),
        (["--model-option", "depth=3"], "--model-option: expected options of skip: .*; got 'depth'"),
        (["--model-option", "pad"], "--model-option: expected KEY=VALUE, got 'pad'"),
        (["--model-option", "pad=circular"], "--model-option pad: expected one of reflection, zero, got"),
        ([*UNET[:3], "feature_scale=x"], "--model-option feature_scale: expected a whole number, got 'x'"),
        ([*UNET[:3], "concat_x=yes"], "--model-option concat_x: expected fewer input channels"),
    ],
)
@pytest.mark.parametrize("command", ["denoise", "search", "prune"])
def test_options_that_do_not_fit(
    command: str,
    options: list[str],
    message: str,
    cli_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / ("out.png" if command == "denoise" else "out.safetensors")
    more = ["--method", "random"] if command == "prune" else []
    error = fails(capsys, command, cli_images / "rgb.png", "-o", out, *more, *options, "--quiet")
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["search", "denoise"])
def test_a_checkpoint_of_another_model_is_refused_by_name(
    command: str,
    cli_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending, phase = (".safetensors", "search") if command == "search" else (".png", "train")
    steps = STEPS if command == "denoise" else ["--density", "0.5", "--steps", "4", "--threads", "1"]
    args = [command, cli_images / "rgb.png", "-o", tmp_path / f"out{ending}", *NOISE, *steps, "--no-plots"]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at(phase, 1))
        assert run(*args, *MODEL) == 130
    capsys.readouterr()
    assert run(*args, *UNET, "--resume", "--quiet") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "for another network (option --model)" in error
    assert "(resnet with num_input_channels=3, num_blocks=1, num_channels=4: " in error
    assert "this run unet with feature_scale=32: " in error
    assert run(*args, *MODEL, "--resume", "--quiet") == 0


def test_prune(cli_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.safetensors"
    common = [cli_images / "rgb.png", "-o", out, *NOISE, "--density", "0.6", *MODEL, *QUICK]
    assert run("prune", *common, "--method", "snip") == 0
    found = oes.Mask.load(out)
    assert found.recipe == Recipe("resnet", OPTIONS)
    assert found.settings["network_seed"] == 3
    assert result_of(out)["settings"]["model"] == "resnet"
    imp = ["--method", "imp", "--steps", "4", "--rounds", "1", "--rewind-step", "1"]
    assert run("prune", *common, *imp) == 0
    weights = tmp_path / "mask_weights.safetensors"
    train = ["train", cli_images / "rgb.png", out, "-o", tmp_path / "out.png", "--weights", weights, *NOISE]
    assert run(*train, "--steps", "2", *QUICK) == 0


def test_compare(cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared"
    args = [
        "compare",
        cli_images / "rgb.png",
        "-o",
        out,
        "--methods",
        "random,dense_dip,tv",
        "--threads",
        "1",
    ]
    args += ["--train-steps", "3", "--densities", "0.5", "--no-plots", "--quiet"]
    assert run(*args, *MODEL) == 0
    found = json.loads((out / "compare.json").read_text())
    assert (found["settings"]["model"], found["settings"]["model_options"]) == ("resnet", OPTIONS)
    cells = {path.name.split("_")[1]: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    assert cells["random"]["settings"]["model"] == cells["dense"]["settings"]["model"] == "resnet"
    assert "model" not in cells["tv"]["settings"]
    assert oes.Mask.load(next((out / "cells").glob("*_mask.safetensors"))).recipe.name == "resnet"
    assert run(*args) == 2
    error = capsys.readouterr().err
    assert "with --model resnet, this run has skip; with --model-option {'num_input" in error
    assert run(*args, "--model-option", "seed=3") == 2
    assert "--model-option: expected options of skip" in capsys.readouterr().err


def test_inspect(cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--probes", 2, "--iterations", 2, "--eigenvalues", 0, "--lanczos-steps", 0, "--threads", 1]
    capsys.readouterr()
    assert run("inspect", mask, "--dense", "--json", tmp_path / "a.json") == 0
    text = capsys.readouterr().out
    assert "model resnet" in text
    assert "conv 1: 3x3, 3 > 4" in text
    args += ["--image", cli_images / "rgb.png", "--dense", "--quiet", "--json", tmp_path / "b.json"]
    assert run("inspect", mask, *args) == 0
    masks = json.loads((tmp_path / "b.json").read_text())["masks"]
    assert all(each["network_known"] and each["figures"]["jacobian"]["frobenius"] > 0 for each in masks)
    # Of a later version, or of somebody's own: what can be shown is.
    found = oes.Mask.load(mask)
    oes.Mask(found.flat, found.fingerprint, {"model": "mine"}).save(tmp_path / "mine.safetensors")
    assert run("inspect", tmp_path / "mine.safetensors") == 0
    assert "which is not known: no layers are shown" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["skip_1d", "skip_3d", "dcgan", "unet"])
def test_inspect_takes_masks_of_every_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (3, *[16] * oes.models.MODELS[model].dims)
    options = {"num_channels_down": (4,)} if model.startswith("skip") else {}
    net, _ = oes.models.generator(model, shape, seed=0, **options)
    count = sum(p.numel() for p in net.parameters())
    oes.Mask.from_flat(net, torch.arange(count) % 2 == 0).save(tmp_path / "mask.safetensors")
    assert run("inspect", tmp_path / "mask.safetensors") == 0
    text = capsys.readouterr().out
    assert f"model {model}" in text
    assert "conv 1: " in text


def test_info_lists_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "--json", tmp_path / "info.json") == 0
    text = capsys.readouterr().out
    models = json.loads((tmp_path / "info.json").read_text())["models"]
    assert list(models) == list(oes.models.MODELS)
    assert models["unet"]["options"]["feature_scale"] == 4
    assert models["skip_3d"]["dims"] == 3
    for name, model in models.items():
        assert f"  {name} " in text
        assert model["help"] in text
    assert "num_channels_down=16,32,64,128,128,128, num_channels_up=none" in text
