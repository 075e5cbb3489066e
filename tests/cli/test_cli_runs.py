"""--runs: several trainings of one image, their mean and their spread, kept and resumed one by one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import optional_packages
import pytest
import torch
from cli_runs import RESULTS, fails, files_of, interrupt_at, result_of, run
from small_generator import small_generator
from task_runs import save

import oes_fast as oes
from oes_fast.cli import restore, runs
from oes_fast.cli.progress import ProgressReport
from oes_fast.pipelines.checkpoint import checkpoint_step

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads", "small_networks"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

COUNT, STEPS, SEED = 3, 6, 3
SPREAD = {"_spread.png", "_spread.npy"}
CHECKPOINTS = {f".train.{number}.ckpt" for number in range(COUNT)}
SEARCH = ["--density", "0.5", "--search-steps", "2"]
SETTINGS = ["--sigma", "0.1", "--seed", SEED, "--threads", "1", "--no-verify", "--quiet"]
RUNS = [*SETTINGS, "--runs", COUNT]


@pytest.fixture(scope="module", autouse=True)
def small_networks() -> Iterator[None]:
    """Restorations are made by a network of few channels, and none of so few steps counts as flat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "fresh_generator", small_generator)
        patch.setattr("oes_fast.pipelines.inputs.FLAT", 0.0)
        yield


@pytest.fixture(scope="module")
def undisturbed(cli_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a denoise run of three trainings that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "out.png"
    assert run(*denoise(cli_images, out), *RUNS) == 0
    return out


@pytest.fixture(scope="module")
def mask(undisturbed: Path) -> Path:
    return undisturbed.with_name("out_mask.safetensors")


def denoise(images: Path, out: Path) -> list[object]:
    return ["denoise", images / "rgb.png", "-o", out, *SEARCH, "--train-steps", STEPS]


def train(images: Path, mask: Path, out: Path) -> list[object]:
    return ["train", images / "rgb.png", mask, "-o", out, "--steps", STEPS]


def problem(images: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean, noisy) of those runs."""
    clean = oes.load_image(images / "rgb.png").pixels
    return clean, oes.add_noise(clean, 0.1, SEED)


def trained(images: Path, mask: Path, seed: int, steps: int = STEPS, **options: object) -> oes.TrainResult:
    """One of those runs by the library."""
    torch.set_num_threads(1)
    clean, noisy = problem(images)
    net, z = small_generator(noisy, seed=seed)
    settings = {"steps": steps, "clean": clean, "average": 0.99, "verify": False, "seed": seed}
    return oes.train_sparse(net, oes.Mask.load(mask, net), z, noisy, **settings, **options)


def images_of(out: Path) -> dict[str, bytes]:
    return {name: out.with_name(f"out{name}").read_bytes() for name in (".png", "_spread.npy")}


def figures_of(out: Path) -> dict:
    """The result without times."""
    result = result_of(out)
    for each in result["runs"]:
        del each["seconds"]
    return {name: result[name] for name in ("runs", "spread", "psnr", "steps", "history", "interrupted")}


class TestResults:
    def test_the_mean_is_that_of_single_runs_by_the_library(
        self, undisturbed: Path, mask: Path, cli_images: Path, tmp_path: Path
    ) -> None:
        assert files_of(undisturbed) == RESULTS | SPREAD
        fits = [trained(cli_images, mask, SEED + number) for number in range(COUNT)]
        found = oes.mean_of_runs(fits)
        oes.save_image(tmp_path / "library.png", found.mean)
        assert (tmp_path / "library.png").read_bytes() == undisturbed.read_bytes()
        spread = np.load(undisturbed.with_name("out_spread.npy"))
        assert (spread.shape, spread.dtype) == ((24, 24, 3), np.float32)
        assert np.array_equal(spread, found.spread[0].permute(1, 2, 0).numpy())
        clean = problem(cli_images)[0]
        result = result_of(undisturbed)
        assert result["psnr"]["restored"] == oes.psnr(found.mean, clean)
        assert [each["psnr"]["restored"] for each in result["runs"]] == [
            oes.psnr(fit.average, clean) for fit in fits
        ]
        assert result["spread"]["mean"] == pytest.approx(spread.mean())
        assert result["spread"]["max"] == pytest.approx(spread.max())

    def test_runs_at_once_have_the_same_bits(
        self, undisturbed: Path, mask: Path, cli_images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = [*train(cli_images, mask, out), *RUNS, "--threads", "2"]
        assert run(*args, "--checkpoint-seconds", "0") == 0
        assert images_of(out) == images_of(undisturbed)
        assert figures_of(out)["runs"] == figures_of(undisturbed)["runs"]

    def test_json_describes_every_run(self, undisturbed: Path) -> None:
        result = result_of(undisturbed)
        assert [each["seed"] for each in result["runs"]] == [3, 4, 5]
        assert all(each["used"] and each["failed"] is None for each in result["runs"])
        assert all(each["steps"] == STEPS and each["seconds"] > 0 for each in result["runs"])
        assert all(each["history"]["step"] == [0, 6] for each in result["runs"])
        assert result["steps"] == {"search": 2, "train": STEPS}
        assert result["seconds"]["total"] == pytest.approx(
            result["seconds"]["search"] + result["seconds"]["train"]
        )
        assert set(result["history"]) == {"search"}
        assert result["settings"]["runs"] == COUNT
        assert result["seeds"] == {"seed": SEED, "noise": SEED}
        assert result["files"].keys() >= {"restored", "spread", "spread_numbers"}
        assert not result["interrupted"]

    def test_one_run_is_what_it_was(
        self, undisturbed: Path, cli_images: Path, mask: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        assert run(*denoise(cli_images, out), *SETTINGS, "--runs", "1") == 0
        assert files_of(out) == RESULTS
        result = result_of(out)
        assert not result.keys() & {"runs", "spread"}
        assert "runs" not in result["settings"]
        oes.save_image(tmp_path / "library.png", trained(cli_images, mask, SEED).average)
        assert (tmp_path / "library.png").read_bytes() == out.read_bytes()
        assert out.with_name("out_mask.safetensors").read_bytes() == mask.read_bytes()
        first = result_of(undisturbed)["runs"][0]
        assert first["history"] == result["history"]["train"]
        assert first["psnr"] == {**result["psnr"], "masked": None}

    def test_the_table_names_runs_and_spread(
        self, mask: Path, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.png"
        given = [each for each in RUNS if each != "--quiet"]
        assert run(*train(cli_images, mask, out), *given, "--no-plots") == 0
        printed = capsys.readouterr()
        assert files_of(out) == {".png", "_spread.npy", ".json"}
        lines = dict(line.split("  ", 1) for line in printed.out.splitlines() if "  " in line)
        assert lines["Runs"].strip() == "3, seeds 3 to 5"
        assert "dB to" in lines["Each run"]
        assert "on average" in lines["Spread"]
        assert "3 trainings" in lines["Time"]
        assert f"Training {COUNT * STEPS}/{COUNT * STEPS}" in printed.err

    def test_transfer_keeps_alpha_and_takes_its_own_seed(
        self, mask: Path, cli_images: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out.png"
        args = ["transfer", mask, cli_images / "rgba.png", "-o", out, "--steps", "2", "--runs", "2"]
        assert run(*args, "--no-verify", "--quiet") == 0
        assert [each["seed"] for each in result_of(out)["runs"]] == [4, 5]
        source, written = oes.load_image(cli_images / "rgba.png"), oes.load_image(out)
        assert torch.equal(written.alpha, source.alpha)
        assert result_of(out)["psnr"] is None
        assert files_of(out) == {".png", "_comparison.png", ".json"} | SPREAD

    def test_grey_spread_has_no_channels(self, cli_images: Path, tmp_path: Path) -> None:
        out = tmp_path / "out.png"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restore, "fresh_generator", grey_generator)
            args = ["denoise", cli_images / "grey.png", "-o", out, *SEARCH, "--train-steps", "2"]
            assert run(*args, *SETTINGS, "--runs", "2", "--tv", "0.01") == 0
        assert np.load(tmp_path / "out_spread.npy").shape == (24, 24)
        assert result_of(out)["settings"]["tv"] == 0.01

    def test_complex_image_and_its_spread(self, tmp_path: Path) -> None:
        optional_packages.deepinv()
        drawn = np.random.default_rng(0).normal(size=(2, 16, 16))
        kspace = save(tmp_path / "kspace.npy", 30 * (drawn[0] + 1j * drawn[1]))
        out = tmp_path / "out.png"
        args = ["mri", kspace, "-o", out, *SEARCH, "--train-steps", "2", "--runs", "2", "--seed", "3"]
        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "mean_of_runs", lambda r: found.extend(r) or oes.mean_of_runs(r))
            assert run(*args, "--no-verify", "--quiet") == 0
        assert files_of(out) == {".png", ".npy", "_mask.safetensors", "_comparison.png", ".json"} | SPREAD
        scale = result_of(out)["image"]["task"]["scale"]
        numbers = [
            scale * torch.view_as_complex(fit.average[0].permute(1, 2, 0).contiguous()) for fit in found
        ]
        both = torch.stack(numbers).numpy()
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), both.mean(0), rtol=1e-5, atol=1e-6)
        away = np.abs(both - both.mean(0)) ** 2
        np.testing.assert_allclose(
            np.load(tmp_path / "out_spread.npy"), np.sqrt(away.sum(0)), rtol=1e-4, atol=1e-5
        )
        magnitudes = np.abs(both / scale)
        assert result_of(out)["spread"]["max"] <= magnitudes.std(0, ddof=1).max() * 1.001


def test_the_spread_of_another_command_is_told_of(
    mask: Path, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, old = tmp_path / "out.png", tmp_path / "out_spread.npy"
    old.write_text("kept")
    capsys.readouterr()
    assert run(*train(cli_images, mask, out), *SETTINGS, "--no-plots") == 0
    said = capsys.readouterr().err
    assert "out_spread.npy: the spread of an earlier command, not of this one; it is not removed" in said
    assert old.read_text() == "kept"


def test_curves_are_means_over_the_steps_that_all_have() -> None:
    """Runs that were interrupted end at steps of their own, which are recorded as well."""
    histories = []
    for last, level in ((23, 20.0), (30, 30.0)):
        history = oes.History()
        for step in (0, 10, 20, last):
            history.add(step, torch.tensor(0.5), level + step, level + 2 * step)
        histories.append(history)
    net = oes.models.skip(2, 1, num_channels_down=(2,), num_channels_skip=2, filter_size_down=3, seed=0)
    fits = [
        oes.TrainResult(
            output=torch.zeros(1, 1, 4, 4), history=history, mask=None, steps=history.step[-1],
            interrupted=True, collapsed=False, diverged=False, seconds=1.0, backend="torch",
            average=torch.zeros(1, 1, 4, 4), net=net,
        )
        for history in histories
    ]  # fmt: skip
    found = runs.Runs((3, 4), tuple(fits), {}, oes.mean_of_runs(fits), 50, 1.0).curves()
    assert found == {
        "output, mean of 2 runs": ([0, 10, 20], [25.0, 35.0, 45.0]),
        "average of the outputs, mean of 2 runs": ([0, 10, 20], [25.0, 45.0, 65.0]),
    }


def grey_generator(noisy: torch.Tensor, **options: object) -> tuple[torch.nn.Module, torch.Tensor]:
    return small_generator(noisy, **{**options, "shape": (1, 24, 24)})


class TestStopping:
    @pytest.mark.parametrize("step", [2, STEPS + 2])
    def test_ctrl_c_then_resume_is_an_undisturbed_run(
        self,
        step: int,
        undisturbed: Path,
        mask: Path,
        cli_images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        args = [*denoise(cli_images, out), *RUNS]
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at("train", step))
            assert run(*args) == 130
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"interrupted with {step // STEPS} of 3 trainings finished, results so far were" in error
        assert "out.search.ckpt, " in error
        assert "2 more; the same command with --resume" in error
        assert result_of(out)["interrupted"]
        assert files_of(out) >= {".png", "_mask.safetensors", ".json", ".search.ckpt"} | CHECKPOINTS
        error = fails(capsys, *args)
        assert "checkpoints of an unfinished run are here" in error
        assert "keeps the finished search" in error
        assert run(*args, "--resume") == 0
        assert files_of(out) == RESULTS | SPREAD
        assert images_of(out) == images_of(undisturbed)
        assert figures_of(out) == figures_of(undisturbed)

    def test_a_kill_within_and_between_runs(
        self, undisturbed: Path, mask: Path, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One run is finished, one is not, one has not begun: each goes on from where it was."""
        out = tmp_path / "out.png"
        trained(cli_images, mask, SEED, checkpoint=tmp_path / "out.train.0.ckpt")
        trained(cli_images, mask, SEED + 1, 4, checkpoint=tmp_path / "out.train.1.ckpt")
        shown = []
        monkeypatch.setattr(ProgressReport, "__call__", lambda self, info: shown.append(info.step))
        assert run(*train(cli_images, mask, out), *RUNS, "--resume") == 0
        assert min(shown) >= STEPS + 4  # what was made before counts, and nothing is made again
        assert max(shown) == COUNT * STEPS
        assert images_of(out) == images_of(undisturbed)
        assert result_of(out)["resumed"]
        assert files_of(out) == (RESULTS | SPREAD) - {"_mask.safetensors"}

    def test_restart_sets_all_trainings_aside_and_keeps_the_search(
        self, undisturbed: Path, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out.png"
        args = [*denoise(cli_images, out), *RUNS]
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at("train", 2))
            assert run(*args) == 130
        before = {path.name: path.read_bytes() for path in tmp_path.glob("*.train.*.ckpt")}
        searched = []
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", lambda self, i: searched.append((i.phase, i.step)))
            assert run(*args, "--train-lr", "0.02", "--restart") == 0
        assert [step for phase, step in searched if phase == "search"] == [2]
        assert ("train", 0) in searched
        for name, content in before.items():
            assert (tmp_path / name.replace(".ckpt", ".old.ckpt")).read_bytes() == content
        assert not list(tmp_path.glob("*train.?.ckpt"))
        assert images_of(out) != images_of(undisturbed)

    def test_other_settings_are_named_with_what_restart_does(
        self, mask: Path, cli_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(COUNT):
            trained(cli_images, mask, SEED + number, 1, checkpoint=tmp_path / f"out.train.{number}.ckpt")
        args = [*train(cli_images, mask, tmp_path / "out.png"), *RUNS, "--lr", "0.5", "--resume"]
        error = fails(capsys, *args)
        assert "out.train.0.ckpt: the checkpoint was made with --lr 0.01, this run has 0.5" in error
        assert "out.train.0.old.ckpt, " in error
        assert "and starts all afresh" in error

    def test_more_runs_go_on_from_fewer(
        self, undisturbed: Path, mask: Path, cli_images: Path, tmp_path: Path
    ) -> None:
        for number in range(2):
            trained(cli_images, mask, SEED + number, checkpoint=tmp_path / f"out.train.{number}.ckpt")
        out = tmp_path / "out.png"
        assert run(*train(cli_images, mask, out), *RUNS, "--resume") == 0
        assert images_of(out) == images_of(undisturbed)

    def test_checkpoints_of_another_number_of_runs_are_left_alone(
        self, cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.png"
        others = ["out.train.ckpt", "out.train.3.ckpt", "out.train.17.ckpt"]
        for name in (*others, "out.train.1.old.ckpt", "out.search.ckpt", "out2.train.ckpt"):
            (tmp_path / name).write_text("kept")
        capsys.readouterr()
        assert run(*train(cli_images, mask, out), *RUNS) == 0
        (warning,) = capsys.readouterr().err.splitlines()
        assert "out.train.17.ckpt and 2 more: not of a command with this --runs" in warning
        assert all((tmp_path / name).read_text() == "kept" for name in others)

    def test_a_second_signal_leaves_the_checkpoints(
        self, cli_images: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out.png"
        monkeypatch.setattr(
            ProgressReport, "__call__", interrupt_at("train", 2, signal.SIGINT, signal.SIGINT)
        )
        args = [*train(cli_images, mask, out), *RUNS, "--checkpoint-seconds", "0"]
        assert run(*args) == 130
        assert ".png" not in files_of(out)
        assert checkpoint_step(tmp_path / "out.train.0.ckpt") == 2

    def test_sigterm_ends_all(
        self, cli_images: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out.png"
        monkeypatch.setattr(ProgressReport, "__call__", interrupt_at("train", 2, signal.SIGTERM))
        assert run(*train(cli_images, mask, out), *RUNS) == 143
        assert files_of(out) >= {".png", ".json"} | CHECKPOINTS
        assert result_of(out)["interrupted"]


class TestBadRuns:
    def test_a_collapsed_run_is_left_out(
        self,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def train_many(*args: object, **options: object) -> list[oes.TrainResult]:
            first, second, third = oes.train_many(*args, **options)
            return [first, replace(second, collapsed=True), third]

        monkeypatch.setattr(runs, "train_many", train_many)
        out = tmp_path / "out.png"
        assert run(*train(cli_images, mask, out), *RUNS) == 0
        assert "left out of the mean: number 1 of 3, from 0" in capsys.readouterr().err
        result = result_of(out)
        assert [each["used"] for each in result["runs"]] == [True, False, True]
        assert [each["collapsed"] for each in result["runs"]] == [False, True, False]
        assert not result["collapsed"]
        wanted = oes.mean_of_runs([trained(cli_images, mask, seed) for seed in (SEED, SEED + 2)])
        assert result["psnr"]["restored"] == oes.psnr(wanted.mean, problem(cli_images)[0])

    def test_where_all_collapsed_the_mean_is_of_all(
        self,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("oes_fast.pipelines.inputs.FLAT", 10.0)
        out = tmp_path / "out.png"
        assert run(*train(cli_images, mask, out), *RUNS) == 0
        assert "all runs collapsed or diverged; the mean is of all of them" in capsys.readouterr().err
        assert result_of(out)["collapsed"]
        assert all(each["used"] for each in result_of(out)["runs"])

    @pytest.mark.parametrize("bad", [1, 3])
    def test_a_failed_run_does_not_lose_the_others(
        self,
        bad: int,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def train_many(*args: object, **options: object) -> list[oes.TrainResult]:
            error = oes.OESError("run 0: train: the loss is nan at step 3")
            error.results = [None] * bad + oes.train_many(*args, **options)[bad:]
            error.errors = [error] * bad + [None] * (COUNT - bad)
            raise error

        monkeypatch.setattr(runs, "train_many", train_many)
        out = tmp_path / "out.png"
        args = [*train(cli_images, mask, out), *RUNS]
        if bad == COUNT:
            assert "the loss is nan at step 3; kept: " in fails(capsys, *args)
            assert files_of(out) == CHECKPOINTS
            return
        assert run(*args) == 0
        assert "the loss is nan at step 3; it is left out of the mean" in capsys.readouterr().err
        first, *others = result_of(out)["runs"]
        assert first == {"seed": SEED, "used": False, "failed": "run 0: train: the loss is nan at step 3"}
        assert all(each["used"] for each in others)
        assert not CHECKPOINTS & files_of(out)

    def test_the_mean_of_one_has_no_spread(
        self, cli_images: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def train_many(*args: object, **options: object) -> list[oes.TrainResult]:
            first, *others = oes.train_many(*args, **options)
            return [first, *(replace(other, collapsed=True) for other in others)]

        monkeypatch.setattr(runs, "train_many", train_many)
        out = tmp_path / "out.png"
        for ending in SPREAD:
            out.with_name(f"out{ending}").write_text("of an earlier result")
        assert run(*train(cli_images, mask, out), *RUNS) == 0
        assert result_of(out)["spread"] is None
        assert not SPREAD & files_of(out)

    def test_each_failed_run_is_told_with_its_own_words(
        self,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def train_many(*args: object, **options: object) -> list[oes.TrainResult]:
            errors = [oes.OESError(f"run {n}: the loss is nan at step {n + 3}") for n in range(2)]
            errors[0].results = [None, None, *oes.train_many(*args, **options)[2:]]
            errors[0].errors = [*errors, None]
            raise errors[0]

        monkeypatch.setattr(runs, "train_many", train_many)
        out = tmp_path / "out.png"
        assert run(*train(cli_images, mask, out), *RUNS) == 0
        printed = capsys.readouterr().err
        said = [each["failed"] for each in result_of(out)["runs"]]
        assert said == ["run 0: the loss is nan at step 3", "run 1: the loss is nan at step 4", None]
        assert all(f"{text}; it is left out of the mean" in printed for text in said[:2])

    def test_what_is_no_matter_of_a_loss_ends_the_command(
        self,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """It can be gone on with once there is room again."""

        def train_many(*args: object, **options: object) -> list[oes.TrainResult]:
            first = oes.OESError("run 0: the loss is nan at step 3")
            first.errors = [first, None, oes.OutputError("run 2: no space")]
            first.results = [None, oes.train_many(*args, **options)[1], None]
            raise first

        monkeypatch.setattr(runs, "train_many", train_many)
        out = tmp_path / "out.png"
        assert "run 2: no space; kept: " in fails(capsys, *train(cli_images, mask, out), *RUNS)
        assert files_of(out) == CHECKPOINTS


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--runs", "0"], "--runs: expected an integer >= 1 and < 101, got 0"),
            (["--runs", "101"], "--runs: expected an integer >= 1 and < 101, got 101"),
            (["--runs", "2", "--weights", "w.safetensors"], "--runs: expected 1 with --weights"),
            (["--runs", "2", "--seed", str(2**63 - 1)], "--seed: expected an integer >= 0 and < "),
        ],
        ids=str,
    )
    def test_numbers_out_of_range(
        self,
        options: list[str],
        says: str,
        cli_images: Path,
        mask: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out.png"
        assert says in fails(capsys, "train", cli_images / "rgb.png", mask, "-o", out, *options)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["out_spread.npy", "out_spread.png", "out.train.2.ckpt"])
    def test_files_are_reserved_before_the_work(
        self, name: str, cli_images: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [*train(cli_images, mask, tmp_path / "out.png"), *RUNS]
        assert "got the name of another output" in fails(capsys, *args, "--json", tmp_path / name)
        (tmp_path / name).mkdir()
        assert f"{name}: cannot write: expected a file name, got a folder" in fails(capsys, *args)


def test_every_command_that_trains_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("denoise", "train", "transfer", "inpaint", "superres", "deblur", "mri"):
        assert run(command, "--help") == 0
        assert "--runs" in capsys.readouterr().out
