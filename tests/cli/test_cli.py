"""The commands on tiny images: what they write, and that it is right."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_runs import NOISE, RESULTS, SMALL, STEPS, files_of, result_of, run

import oes_fast as oes
from oes_fast.cli import main
from oes_fast.cli.search_size import shrunk
from oes_fast.pipelines.progress import duration

pytest_plugins = ("cli_fixtures",)
pytestmark = pytest.mark.usefixtures("same_threads")


def replace_all_but(ending: str) -> Callable[..., None]:
    """os.replace on a disk that is full for files of one name."""
    replace = os.replace

    def call(source: Path, target: Path) -> None:
        if str(target).endswith(ending):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    return call


class TestDenoise:
    def test_writes_every_result_and_removes_the_checkpoints(self, cli_denoised: Path) -> None:
        assert files_of(cli_denoised) == RESULTS

    def test_json_holds_what_a_program_needs(self, cli_denoised: Path, cli_images: Path) -> None:
        result = result_of(cli_denoised)
        assert result["command"] == "denoise"
        assert result["versions"]["torch"] == torch.__version__
        assert result["seeds"] == {"seed": 3, "noise": 3}
        assert result["steps"] == {"search": 2, "train": 8}
        train = {"steps": 8, "lr": 1e-2, "average": 0.99}
        assert result["settings"]["train"] == {
            **train,
            "schedule": None,
            "weight_decay": 0.0,
            "input_noise": 0.0,
            "stop": "none",
        }
        assert result["settings"]["search"]["density"] == 0.5
        net = oes.models.skip(**SMALL)
        assert result["mask"]["fingerprint"] == oes.fingerprint(net)
        assert result["mask"]["kept"] == int(0.5 * sum(p.numel() for p in net.parameters()))
        assert result["seconds"]["total"] == pytest.approx(
            result["seconds"]["search"] + result["seconds"]["train"]
        )
        assert (result["device"], result["threads"]) == ("cpu", 1)
        assert result["backend"] in oes.backends()
        assert not result["interrupted"]
        assert not result["resumed"]
        assert isinstance(result["collapsed"], bool)
        assert result["history"]["train"]["step"] == [0, 8]
        assert {len(column) for column in result["history"]["train"].values()} == {2}
        assert sorted(Path(p).name for p in result["files"].values()) == sorted(
            path.name for path in cli_images.glob("denoised*")
        )

    def test_psnr_is_that_of_the_written_image(self, cli_denoised: Path, cli_images: Path) -> None:
        psnr = result_of(cli_denoised)["psnr"]
        clean = oes.load_image(cli_images / "rgb.png").pixels
        assert psnr["noisy"] == pytest.approx(oes.psnr(oes.add_noise(clean, 0.1, 3), clean))
        assert psnr["restored"] == psnr["average"]
        assert psnr["restored"] == pytest.approx(
            oes.psnr(oes.load_image(cli_denoised).pixels, clean), abs=0.05
        )
        assert psnr["peak"] >= psnr["last"]

    @pytest.mark.parametrize("given", [[], ["--verify"], ["--no-verify"]], ids=str)
    def test_runs_are_verified_unless_told_otherwise(
        self, given: list[str], cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Asked(Exception):
            pass

        def search_mask(*args: object, verify: bool, **settings: object) -> None:
            raise Asked(verify)

        monkeypatch.setattr("oes_fast.cli.restore.search_mask", search_mask)
        monkeypatch.setenv("OES_FAST_DEBUG", "1")
        with pytest.raises(Asked, match=str(given != ["--no-verify"])):
            main(["denoise", str(cli_images / "rgb.png"), "-o", str(tmp_path / "o.png"), "--quiet", *given])

    def test_without_a_preset_it_is_fast(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Asked(Exception):
            pass

        def search_mask(*args: object, **settings: object) -> None:
            raise Asked(*(settings[name] for name in ("steps", "lr", "kl", "temperature", "schedule")))

        monkeypatch.setattr("oes_fast.cli.restore.search_mask", search_mask)
        monkeypatch.setenv("OES_FAST_DEBUG", "1")
        with pytest.raises(Asked) as asked:
            main(["denoise", str(cli_images / "rgb.png"), "-o", str(tmp_path / "o.png"), "--quiet"])
        assert asked.value.args == (600, 0.3, 1e-7, 0.5, "cosine")

    @pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
    def test_is_what_the_library_computes(self, cli_denoised: Path, cli_images: Path) -> None:
        noisy = oes.add_noise(oes.load_image(cli_images / "rgb.png").pixels, 0.1, 3)
        torch.set_num_threads(1)
        net, z = oes.fresh_generator(noisy, seed=3, options=SMALL)
        found = oes.search_mask(net, z, noisy, density=0.5, steps=2, seed=3)
        fit = oes.train_sparse(net, found.mask, z, noisy, steps=8, average=0.99)
        assert torch.equal(
            oes.Mask.load(cli_denoised.with_name("denoised_mask.safetensors")).flat, found.mask.flat
        )
        oes.save_image(cli_images / "library.png", fit.average)
        assert (cli_images / "library.png").read_bytes() == cli_denoised.read_bytes()

    def test_options_of_the_steps_are_those_of_the_library(self, cli_images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        options = ["--schedule", "cosine", "--input-noise", "0.05", "--weight-decay", "0.001"]
        args = ["denoise", cli_images / "rgb.png", "-o", out, *NOISE, *STEPS, *options, "--no-plots"]
        assert run(*args, "--quiet") == 0
        noisy = oes.add_noise(oes.load_image(cli_images / "rgb.png").pixels, 0.1, 3)
        torch.set_num_threads(1)
        net, z = oes.fresh_generator(noisy, seed=3, options=SMALL)
        same = {"schedule": "cosine", "input_noise": 0.05, "seed": 3, "verify": False}
        found = oes.search_mask(net, z, noisy, density=0.5, steps=2, **same)
        fit = oes.train_sparse(net, found.mask, z, noisy, steps=8, average=0.99, weight_decay=0.001, **same)
        oes.save_image(tmp_path / "library.png", fit.average)
        assert (tmp_path / "library.png").read_bytes() == out.read_bytes()
        settings = result_of(out)["settings"]
        assert settings["train"]["schedule"] == settings["search"]["schedule"] == "cosine"
        assert settings["train"]["input_noise"] == settings["search"]["input_noise"] == 0.05
        assert settings["train"]["weight_decay"] == 0.001

    def test_without_noise_or_clean_there_is_no_psnr(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, "--mask", cli_mask, "--train-steps", "1"]
        assert run(*args, "--quiet") == 0
        assert result_of(out)["psnr"] is None
        assert files_of(out) == {".png", "_comparison.png", ".json"}

    def test_clean_image_gives_the_psnr(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["train", cli_images / "rgba.png", cli_mask, "-o", out, "--steps", "1", "--no-plots"]
        assert run(*args, "--clean", cli_images / "rgb.png", "--average", "off") == 0
        psnr = result_of(out)["psnr"]
        assert psnr["noisy"] is None or psnr["noisy"] > 100
        assert psnr["average"] is None
        assert psnr["restored"] == psnr["last"]
        assert files_of(out) == {".png", ".json"}

    def test_collapse_is_said_and_is_no_error(
        self, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flat = torch.zeros(3_008_867, dtype=torch.bool)
        flat[-3:] = True  # the biases of the output alone
        oes.Mask.from_flat(oes.models.skip(), flat).save(tmp_path / "mask.safetensors")
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, "--mask", tmp_path / "mask.safetensors"]
        capsys.readouterr()
        assert run(*args, "--train-steps", "2", "--quiet") == 0
        assert capsys.readouterr().err.startswith("oes-fast: warning: train: the output is flat")
        assert result_of(out)["collapsed"]
        assert out.exists()

    def test_quiet_prints_nothing(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["denoise", cli_images / "rgb.png", "-o", tmp_path / "o.png", "--mask", cli_mask, "--quiet"]
        capsys.readouterr()
        assert run(*args, "--train-steps", "1") == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert all(line.startswith("oes-fast: warning: ") for line in captured.err.splitlines())


class TestOtherCommands:
    def test_search_writes_mask_plots_and_json(self, cli_mask: Path) -> None:
        assert files_of(cli_mask) == {".safetensors", "_probabilities.png", "_layers.png", ".json"}
        result = result_of(cli_mask)
        assert result["command"] == "search"
        assert sum(layer["kept"] for layer in result["layers"]) == result["mask"]["kept"]
        count = sum(p.numel() for p in oes.models.skip(**SMALL).parameters())
        assert sum(layer["count"] for layer in result["layers"]) == count
        assert oes.Mask.load(cli_mask).settings["network_seed"] == 3

    def test_mask_options(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "mask.safetensors"
        args = ["search", cli_images / "rgb.png", "-o", out, *NOISE, "--density", "0.5", "--steps", "2"]
        masks = {"topk": oes.Mask.load(cli_mask).flat}
        for option in ("drawn", "mean"):
            assert run(*args, "--threads", "1", "--no-plots", "--mask-option", option) == 0
            mask = oes.Mask.load(out)
            assert mask.settings["mask_option"] == option
            assert result_of(out)["settings"]["search"]["mask_option"] == option
            masks[option] = mask.flat
        assert files_of(out) == {".safetensors", ".json"}
        assert int(masks["mean"].sum()) == int(masks["topk"].sum()) != int(masks["drawn"].sum())
        assert (masks["mean"] != masks["topk"]).any()

    def test_a_search_starts_at_a_probability_or_a_mask(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path
    ) -> None:
        noise = [*NOISE, "--density", "0.5", "--threads", "1", "--no-plots"]
        found = {}
        for start in ("0.25", cli_mask):
            out = tmp_path / "mask.safetensors"
            args = ["search", cli_images / "rgb.png", "-o", out, *noise, "--steps", "2", "--start", start]
            assert run(*args) == 0
            found[str(start)] = oes.Mask.load(out)
            assert result_of(out)["settings"]["search"]["start"] == (0.25 if start == "0.25" else str(start))
        assert found["0.25"].settings["start"] == 0.25
        assert found[str(cli_mask)].settings["start"].startswith("mask ")
        assert (found[str(cli_mask)].flat != found["0.25"].flat).any()
        args = ["denoise", cli_images / "rgb.png", "-o", tmp_path / "o.png", "--search-steps", "2", *noise]
        assert run(*args, "--train-steps", "1", "--start", cli_mask) == 0
        assert (oes.Mask.load(tmp_path / "o_mask.safetensors").flat == found[str(cli_mask)].flat).all()
        before = cli_mask.read_bytes()
        assert run("search", cli_images / "rgb.png", "-o", cli_mask, *noise, "--start", cli_mask) == 2
        assert cli_mask.read_bytes() == before

    @pytest.mark.parametrize("name", ["rgb.png", "grey.png"])
    def test_a_search_on_a_smaller_image_is_one_of_the_shrunk_image(
        self, name: str, cli_images: Path, tmp_path: Path
    ) -> None:
        out, mask = tmp_path / "o.png", tmp_path / "mask.safetensors"
        options = [*NOISE, "--preset", "paper", "--density", "0.5", "--threads", "1", "--search-size", "16"]
        steps = ["--search-steps", "2", "--train-steps", "3"]
        assert run("denoise", cli_images / name, "-o", out, *options, *steps) == 0
        result = result_of(out)
        assert result["settings"]["search"]["size"] == 16
        assert result["psnr"]["masked"] is None
        assert result["psnr"]["restored"] is not None
        assert run("search", cli_images / name, "-o", mask, *options, "--steps", "2") == 0
        found = oes.Mask.load(mask)
        assert (oes.Mask.load(tmp_path / "o_mask.safetensors").flat == found.flat).all()
        clean = oes.load_image(cli_images / name).pixels
        noisy = shrunk(oes.add_noise(clean, 0.1, 3), 16)
        assert noisy.shape[-2:] == (16, 16)
        net, z = oes.fresh_generator(noisy, options=SMALL, seed=3)
        expected = oes.search_mask(net, z, noisy, density=0.5, steps=2, seed=3, verify=False)
        assert (expected.mask.flat == found.flat).all()

    def test_a_plot_that_fails_costs_nothing_else(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, histogram = tmp_path / "mask.safetensors", tmp_path / "mask_probabilities.png"
        histogram.write_bytes(b"an older one")
        monkeypatch.setattr("oes_fast.io.files.os.replace", replace_all_but("_probabilities.png"))
        args = ["search", cli_images / "rgb.png", "-o", out, *NOISE, "--density", "0.5", "--steps", "1"]
        assert run(*args, "--plots", "--quiet") == 2
        assert histogram.read_bytes() == b"an older one"
        assert result_of(out)["not_written"].keys() == {"probabilities"}
        assert files_of(out) >= {".safetensors", "_probabilities.png", "_layers.png", ".json"}
        assert not list(tmp_path.glob(".oes-*"))

    def test_search_then_train_is_denoise(
        self, cli_images: Path, cli_mask: Path, cli_denoised: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = ["train", cli_images / "rgb.png", cli_mask, "-o", out, "--sigma", "0.1"]
        assert run(*args, "--steps", "8", "--threads", "1") == 0
        assert out.read_bytes() == cli_denoised.read_bytes()
        assert files_of(out) == RESULTS - {"_mask.safetensors"}

    def test_transfer_draws_fresh_weights(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgba.png", "-o", out, "--steps", "1"]
        assert run(*args) == 0
        assert result_of(out)["seeds"]["seed"] == 4
        assert run(*args, "--seed", "7") == 0
        assert result_of(out)["seeds"]["seed"] == 7

    def test_published_mask(self, cli_images: Path, tmp_path: Path) -> None:
        bits = torch.arange(3_008_867) % 2 == 0
        (tmp_path / "mask.pkl").write_bytes(pickle.dumps(bits.float()))
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "rgb.png", "-o", out, "--mask", tmp_path / "mask.pkl"]
        assert run(*args, "--train-steps", "1") == 0
        assert result_of(out)["mask"]["kept"] == int(bits.sum())
        assert result_of(out)["seeds"]["seed"] == 0

    def test_info(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("info", "--json", tmp_path / "info.json") == 0
        printed = capsys.readouterr().out
        result = json.loads((tmp_path / "info.json").read_text())
        assert set(result["backends"]) == set(oes.backends())
        for name, status in result["backends"].items():
            assert name in printed
            assert status["available"] or status["reason"]

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("--version") == 0
        assert capsys.readouterr().out == f"oes-fast {oes.__version__}\n"

    @pytest.mark.parametrize("command", ["denoise", "search", "train", "transfer", "info"])
    def test_help_has_an_example(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(command, "--help") == 0
        assert "Example:" in capsys.readouterr().out


class TestImageKinds:
    def test_alpha_is_carried_through(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", cli_mask, cli_images / "rgba.png", "-o", out, "--steps", "1", "--quiet"]
        assert run(*args) == 0
        source, written = oes.load_image(cli_images / "rgba.png"), oes.load_image(out)
        assert source.alpha is not None
        assert written.alpha is not None
        assert torch.equal(written.alpha, source.alpha)
        assert written.bits == 8

    def test_bits_may_be_chosen(self, cli_images: Path, cli_mask: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.tif"
        args = ["transfer", cli_mask, cli_images / "rgba.png", "-o", out, "--steps", "1", "--bits", "16"]
        assert run(*args) == 0
        assert oes.load_image(out).bits == 16

    def test_grey_of_16_bits_stays_so(self, cli_images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        args = ["denoise", cli_images / "grey16.png", "-o", out, "--size", "16", "--density", "0.5"]
        assert run(*args, "--search-steps", "1", "--train-steps", "1") == 0
        written = oes.load_image(out)
        assert written.pixels.shape == (1, 1, 16, 16)
        assert written.bits == 16
        assert result_of(out)["image"]["channels"] == 1


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]
