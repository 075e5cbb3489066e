"""What a command says of how long it will take: the arithmetic, and that no bit depends on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_runs import NOISE, STEPS, assert_same_run, files_of, interrupt_at, result_of, run

import oes_fast as oes
from oes_fast.bench.steps import likely_mask
from oes_fast.cli import estimate
from oes_fast.cli.estimate import Estimate, Phase, StepTimer, roughly, step_time
from oes_fast.cli.progress import ProgressReport
from oes_fast.pipelines.loop import StepInfo

pytest_plugins = ("cli_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("same_threads"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

CPU = torch.device("cpu")


class Clock:
    """Gives the seconds that it is set to, and counts how often it was asked."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return self.now


def info(phase: str, step: int, steps: int) -> StepInfo:
    return StepInfo(phase, step, steps, torch.zeros(1), None, None)  # type: ignore[arg-type]


def lines(
    told: Estimate, clock: Clock, phase: str, steps: range, of: int, seconds: float, first: float = 9.0
) -> list[str]:
    """What is said over steps of ``seconds``; those that warm up take ``first``."""
    found = []
    for step in steps:
        if (line := told.see(info(phase, step, of))) is not None:
            found.append(line)
        clock.now += first if step - steps[0] < estimate.WARM_UP else seconds
    return found


class TestTimer:
    def test_is_the_mean_of_the_steps_after_those_that_warm_up(self) -> None:
        clock = Clock()
        timer = StepTimer(CPU, clock)
        found = []
        for step in range(10, 10 + estimate.WARM_UP + 20):  # of a run that is resumed
            found.append(timer.see(step))
            clock.now += 7.0 if step < 10 + estimate.WARM_UP else 0.125
        assert [seconds for seconds in found if seconds] == [0.125]
        assert found.index(0.125) == estimate.WARM_UP + 4  # half a second
        assert timer.seconds == 0.125

    def test_slow_steps_are_timed_thrice_fast_ones_fifty_times(self) -> None:
        for seconds, made in ((2.0, 3), (1e-3, 50)):
            clock = Clock()
            timer = StepTimer(CPU, clock)
            for step in range(200):
                if timer.see(step) is not None:
                    break
                clock.now += seconds
            assert step == estimate.WARM_UP + made
            assert timer.seconds == pytest.approx(seconds)


class TestLine:
    def test_search_and_training(self) -> None:
        clock = Clock()
        told = Estimate(CPU, "search", after=Phase("train", 2_000, 0.018), clock=clock)
        found = lines(told, clock, "search", range(100), 600, 0.095)
        assert found == ["About 2 min: search 600 steps at 95 ms, training 2,000 at 18 ms"]
        assert told.described() == {
            "seconds": pytest.approx(600 * 0.095 + 36),
            "steps": {"search": 600, "train": 2_000},
            "ms": {"search": pytest.approx(95), "train": pytest.approx(18)},
        }
        asked = clock.asked
        assert lines(told, clock, "train", range(100), 2_000, 1.0) == []
        assert clock.asked == asked  # nothing is looked at any more

    def test_what_a_search_leaves_to_the_training(self) -> None:
        clock = Clock()
        told = Estimate(CPU, "train", stops=True, clock=clock)
        assert lines(told, clock, "search", range(50), 600, 1.0) == []
        assert told.described() is None
        (line,) = lines(told, clock, "train", range(100), 40_000, 0.0061)
        assert line == "About 4 min, less where the rule ends the training: training 40,000 steps at 6.1 ms"

    def test_several_runs_and_what_a_resumed_command_has_left(self) -> None:
        clock = Clock()
        told = Estimate(CPU, "train", runs=4, clock=clock)
        (line,) = lines(told, clock, "train", range(1_000, 1_050), 8_000, 0.1)
        assert line == "About 12 min: training 7,000 steps in 4 runs at 100 ms"
        after = Phase("train", 8_000, 0.01, runs=4)
        told = Estimate(CPU, "search", after=after, runs=4, clock=clock)
        (line,) = lines(told, clock, "search", range(50), 300, 0.1)
        assert line == "About 2 min: search 300 steps at 100 ms, training 8,000 in 4 runs at 10 ms"

    def test_nothing_of_what_is_over_soon(self) -> None:
        clock = Clock()
        told = Estimate(CPU, "train", clock=clock)
        assert lines(told, clock, "train", range(400), 400, 0.02) == []  # 8 seconds
        assert told.described() == {
            "seconds": pytest.approx(8),
            "steps": {"train": 400},
            "ms": {"train": pytest.approx(20)},
        }
        told = Estimate(CPU, "train", clock=clock)
        assert lines(told, clock, "train", range(900, 1_000), 1_000, 9.0) == []  # resumed near its end
        assert told.described() is None

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [
            (10, "10 s"),
            (87.4, "85 s"),
            (87.6, "1 min"),
            (170, "3 min"),
            (5_340, "89 min"),
            (5_400, "1 h 30 min"),
            (7_200, "2 h"),
            (8_000, "2 h 10 min"),
            (40_000, "11 h"),
        ],
    )
    def test_time_in_words(self, seconds: float, said: str) -> None:
        assert roughly(seconds) == said

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [(0.00052, "0.52 ms"), (0.0061, "6.1 ms"), (0.00997, "10 ms"), (0.9994, "999 ms"), (1.23, "1.2 s")],
    )
    def test_time_of_a_step_in_words(self, seconds: float, said: str) -> None:
        assert step_time(seconds) == said


def test_the_mask_that_is_tried_leaves_channels_alive() -> None:
    net = oes.models.skip(seed=0)
    mask = likely_mask(net, 0.05)
    assert mask.density == pytest.approx(0.05, rel=0.02)
    pieces = mask.flat.split([parameter.numel() for parameter in net.parameters()])
    *others, (_, of_last_layer) = zip(net.named_parameters(), pieces, strict=True)
    assert of_last_layer.all()  # its bias
    for (name, parameter), piece in others:
        kept = piece.float().mean()
        if parameter.ndim == 1:
            assert kept == float(name.endswith("weight")), name
        elif parameter.numel() > 10_000:
            assert 0.03 < kept < 0.07, name
    small = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
    scales = sum(p.numel() for name, p in small.named_parameters() if p.ndim == 1 and name.endswith("weight"))
    assert likely_mask(small, 0.005).kept > scales > 0  # more than the density allows


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest run is timed and said."""
    settings = {"FEWEST": 2, "WARM_UP": 0, "LEAST": 1, "MOST": 1, "SHORTEST": 0.0}
    for name, value in settings.items():
        monkeypatch.setattr(estimate, name, value)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The steps of each training that was made to be thrown away."""
    found: list[int] = []
    train = estimate.train_sparse

    def watched(*args: object, **options: object) -> oes.TrainResult:
        fit = train(*args, **options)
        found.append(fit.steps)
        return fit

    monkeypatch.setattr(estimate, "train_sparse", watched)
    return found


def denoise(images: Path, out: Path, *more: object) -> int:
    return run("denoise", images / "rgb.png", "-o", out, *NOISE, *STEPS, *more)


class TestCommand:
    @pytest.mark.usefixtures("eager")
    @pytest.mark.parametrize("stop", ["none", "variance"])
    def test_no_bit_depends_on_it(
        self,
        cli_images: Path,
        tmp_path: Path,
        tried: list[int],
        stop: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        told, quiet = tmp_path / "told.png", tmp_path / "quiet.png"
        state = torch.get_rng_state()
        assert denoise(cli_images, told, "--stop", stop) == 0
        assert torch.equal(torch.get_rng_state(), state)
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("About ")]
        assert ": search 2 steps at " in line
        assert ", training 8 at " in line
        assert ("less where the rule" in line) == (stop != "none")
        assert tried == [2]
        found = result_of(told)["estimate"]
        assert found["steps"] == {"search": 2, "train": 8}
        total = sum(found["ms"][name] * steps for name, steps in found["steps"].items()) / 1e3
        assert found["seconds"] == pytest.approx(total)
        assert denoise(cli_images, quiet, "--stop", stop, "--quiet") == 0
        assert "About" not in capsys.readouterr().err
        assert tried == [2]  # nothing was tried for nobody
        assert result_of(quiet)["estimate"] is None
        assert_same_run(told, quiet)

    def test_a_short_run_tries_nothing(self, cli_images: Path, tmp_path: Path, tried: list[int]) -> None:
        assert denoise(cli_images, tmp_path / "out.png") == 0
        assert tried == []
        assert result_of(tmp_path / "out.png")["estimate"] is None

    @pytest.mark.usefixtures("eager")
    def test_single_phases_try_nothing(
        self, cli_images: Path, cli_mask: Path, tmp_path: Path, tried: list[int]
    ) -> None:
        out, found = tmp_path / "out.png", tmp_path / "mask.safetensors"
        args = [cli_images / "rgb.png", cli_mask, "-o", out, "--steps", 8, "--threads", 1]
        assert run("train", *args, "--runs", 2, "--sigma", 0.1, "--no-plots") == 0
        assert result_of(out)["estimate"]["steps"] == {"train": 16}
        assert run("search", cli_images / "rgb.png", "-o", found, *NOISE, "--steps", 2, "--density", 0.5) == 0
        assert result_of(found)["estimate"]["steps"] == {"search": 2}
        assert tried == []

    @pytest.mark.usefixtures("eager")
    def test_a_search_that_is_done_is_not_counted(
        self, cli_images: Path, tmp_path: Path, tried: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out.png"
        with monkeypatch.context() as patch:
            patch.setattr(ProgressReport, "__call__", interrupt_at("train", 3))
            assert denoise(cli_images, out) == 130
        assert tried == [2]
        assert ".train.ckpt" in files_of(out)
        assert denoise(cli_images, out, "--resume") == 0
        assert tried == [2]
        assert result_of(out)["estimate"]["steps"] == {"train": 4}  # four were made

    @pytest.mark.usefixtures("eager")
    def test_what_fails_leaves_the_run_alone(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise oes.OESError("the loss is not finite")

        monkeypatch.setattr(estimate, "train_sparse", fails)
        assert denoise(cli_images, tmp_path / "out.png") == 0
        assert result_of(tmp_path / "out.png")["estimate"]["steps"] == {"train": 8}

    @pytest.mark.usefixtures("eager")
    @pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
    def test_a_signal_meanwhile_ends_the_command(
        self, cli_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        see: Callable[[StepTimer, int], float | None] = StepTimer.see

        def interrupted(self: StepTimer, step: int) -> float | None:
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(StepTimer, "see", see)
            return None

        monkeypatch.setattr(StepTimer, "see", interrupted)
        out = tmp_path / "out.png"
        assert denoise(cli_images, out) == 130
        assert result_of(out)["steps"]["search"] < 2
        assert ".png" not in files_of(out)
