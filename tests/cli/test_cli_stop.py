"""--stop: what the commands that train write, print and refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optional_packages
import pytest
import torch
from cli_runs import fails, files_of, interrupt_at, result_of, run
from small_generator import small_generator

import oes_fast as oes
from oes_fast.cli import restore, settings
from oes_fast.cli.progress import ProgressReport
from oes_fast.pipelines.stop_rule import StopRule

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "quick_rules"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

SEARCH = ["--density", "0.5", "--search-steps", "2"]
STEPS = 80
SETTINGS = ["--seed", 3, "--threads", "1", "--no-verify", "--no-plots"]


def quick(name: str, *, seed: int) -> StopRule | None:
    """The rules with a look every step, which make up their minds soon."""
    return {
        "variance": oes.VarianceStop(window=3, patience=2, every=1),
        "holdout": oes.HoldoutStop(share=0.2, smooth=1, patience=2, every=1, seed=seed),
        "discrepancy": oes.DiscrepancyStop(smooth=1, every=1),
        "none": None,
    }[name]


@pytest.fixture(scope="module", autouse=True)
def quick_rules() -> Iterator[None]:
    """Such rules, and a network of few channels whose images never count as flat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "rule_of", quick)
        patch.setattr(restore, "fresh_generator", small_generator)
        patch.setattr("oes_fast.pipelines.inputs.FLAT", 0.0)
        yield


def denoise(images: Path, out: Path, *more: object) -> list[object]:
    steps = ["--train-steps", STEPS, "--train-lr", "0.1"]
    return ["denoise", images / "rgb.png", "-o", out, *SEARCH, *steps, *SETTINGS, *more]


@pytest.mark.parametrize("rule", ["variance", "holdout"])
def test_the_image_is_the_one_at_the_stop(cli_images, tmp_path, capsys, rule):
    out = tmp_path / "out.png"
    average = ["--average", "0.5"]  # which no longer rises when the output does not
    assert run(*denoise(cli_images, out, "--sigma", "0.1", "--stop", rule, *average)) == 0
    result = result_of(out)
    stop = result["stop"]
    assert (stop["rule"], stop["stopped"], result["interrupted"]) == (rule, True, False)
    assert result["steps"]["train"] < STEPS
    assert result["settings"]["train"]["stop"] == rule
    values = stop["curve"]["criterion"]
    assert stop["curve"]["step"][values.index(min(values))] == stop["step"]
    at = result["history"]["train"]["step"]
    assert result["psnr"]["restored"] == result["psnr"]["average"]
    assert at[-1] == result["steps"]["train"]
    printed = capsys.readouterr().out
    assert f"{rule}: image of step {stop['step']}; " in printed
    assert "Output there" in printed
    assert files_of(out) == {".png", "_mask.safetensors", ".json"}  # no checkpoint is left
    assert result["estimated_sigma"] is None  # it is known

    # The library gives the same image.
    clean = oes.load_image(cli_images / "rgb.png").pixels
    noisy = oes.add_noise(clean, 0.1, 3)
    net, z = small_generator(noisy, seed=3)
    mask = oes.Mask.load(tmp_path / "out_mask.safetensors", net)
    options = {"steps": STEPS, "lr": 0.1, "average": 0.5, "seed": 3, "verify": False}
    fit = oes.train_sparse(net, mask, z, noisy, stop=quick(rule, seed=3), **options)
    assert fit.stop.step == stop["step"]
    assert result["psnr"]["last"] == pytest.approx(float(oes.psnr(fit.output, clean)), abs=1e-4)
    assert result["psnr"]["restored"] == pytest.approx(float(oes.psnr(fit.average, clean)), abs=1e-4)


def test_a_stopped_run_goes_on_to_the_same_stop(cli_images, tmp_path, monkeypatch):
    out, whole = tmp_path / "out.png", tmp_path / "whole.png"
    options = ["--sigma", "0.1", "--stop", "variance", "--quiet"]
    assert run(*denoise(cli_images, whole, *options)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at("train", 3))
        assert run(*denoise(cli_images, out, *options)) == 130
    interrupted = result_of(out)["stop"]
    assert (interrupted["stopped"], result_of(out)["interrupted"]) == (False, True)
    assert run(*denoise(cli_images, out, *options, "--resume")) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert result_of(out)["stop"] == result_of(whole)["stop"]


def test_another_rule_is_not_gone_on_with(cli_images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.png"
    options = ["--sigma", "0.1", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(ProgressReport, "__call__", interrupt_at("train", 3))
        assert run(*denoise(cli_images, out, *options, "--stop", "variance")) == 130
    capsys.readouterr()
    said = fails(capsys, *denoise(cli_images, out, *options, "--stop", "holdout", "--resume"))
    assert "with --stop variance, window 3, patience 2, every 1, this run has holdout, share 0.2" in said
    assert "with --stop variance" in fails(capsys, *denoise(cli_images, out, *options, "--resume"))


def test_the_noise_of_a_photograph_is_estimated(cli_images, tmp_path, capsys):
    pytest.importorskip("pywt")
    out = tmp_path / "out.png"
    assert run(*denoise(cli_images, out, "--stop", "discrepancy")) == 0
    result, printed = result_of(out), capsys.readouterr().out
    noisy = oes.load_image(cli_images / "rgb.png").pixels
    assert result["estimated_sigma"] == pytest.approx(oes.estimate_sigma(noisy))
    assert f"{oes.estimate_sigma(noisy):.3g}, estimated" in printed
    assert result["stop"]["rule"] == "discrepancy"


def test_each_of_several_runs_stops(cli_images, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert run(*denoise(cli_images, out, "--sigma", "0.1", "--stop", "variance", "--runs", 2)) == 0
    result = result_of(out)
    stops = [each["stop"] for each in result["runs"]]
    assert all(stop["stopped"] for stop in stops)
    assert result["interrupted"] is False
    assert "the rule ended 2 of 2 runs" in capsys.readouterr().out
    assert files_of(out) >= {".png", ".json"}
    assert not [name for name in files_of(out) if name.endswith(".ckpt")]


@pytest.mark.parametrize("command", ["train", "transfer"])
def test_with_a_mask(cli_images, tmp_path, command):
    out = tmp_path / "out.png"
    assert run(*denoise(cli_images, out, "--sigma", "0.1", "--quiet")) == 0
    assert result_of(out)["stop"] is None
    other, files = tmp_path / "other.png", [cli_images / "rgb.png", tmp_path / "out_mask.safetensors"]
    files = files if command == "train" else files[::-1]
    options = ["--sigma", "0.1", "--steps", STEPS, "--lr", "0.1", "--quiet", *SETTINGS[2:]]
    assert run(command, *files, "-o", other, *options, "--stop", "variance") == 0
    assert result_of(other)["stop"]["stopped"]
    assert result_of(other)["steps"]["train"] < STEPS


def test_odd_names_are_refused(cli_images, tmp_path, capsys):
    said = fails(capsys, *denoise(cli_images, tmp_path / "out.png", "--stop", "soon"))
    assert "--stop: expected one of variance, holdout, discrepancy, none, got 'soon'" in said


def test_inverse_problems_stop_where_it_means_something(cli_images, tmp_path, capsys):
    optional_packages.deepinv()
    out = tmp_path / "out.png"
    common = ["-o", out, *SEARCH, "--train-steps", STEPS, *SETTINGS, "--quiet"]
    inpaint = ["inpaint", cli_images / "rgb.png", "--missing", "0.5", "--sigma", "0.1", *common]
    assert run(*inpaint, "--stop", "holdout") == 0
    assert result_of(out)["stop"]["rule"] == "holdout"
    said = fails(capsys, *inpaint, "--stop", "discrepancy")
    assert "--stop: expected variance, holdout or none where pixels are missing" in said
    mri = ["mri", cli_images / "grey.png", "--sigma", "0.1", "--acceleration", "2", *common]
    said = fails(capsys, *mri, "--stop", "holdout")
    assert "--stop: expected variance or none for k-space, got holdout" in said
    superres = ["superres", cli_images / "rgb.png", "--factor", "2", "--sigma", "0.05", *common]
    assert run(*superres, "--stop", "holdout") == 0
    assert result_of(out)["stop"]["curve"]["step"]
    assert torch.isfinite(oes.load_image(out).pixels).all()
