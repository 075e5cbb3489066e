"""Several trainings at the same time in threads: what they share, what they leave alone, how they end."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import build_problem, skip_unless_available
from test_many import alone, assert_same, each, small, together
from torch import nn

import oes_fast as oes
from oes_fast.pipelines import at_once as scheduler
from oes_fast.pipelines import functions, signals, train
from oes_fast.pipelines.at_once import AtOnce
from oes_fast.pipelines.checkpoint import checkpoint_step
from oes_fast.pipelines.kinds import SharedFunctions, kind_of

__all__ = ["each", "small"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    """As if there were three cores."""
    skip_unless_available("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    assert torch.get_num_threads() == 3  # whatever a test did
    torch.set_num_threads(before)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(runs at once, threads of each) of what is made."""
    found: list[tuple[int, int]] = []
    decide = AtOnce._decide

    def noted(self: AtOnce, function: Any) -> None:
        decide(self, function)
        found.append((self.most, self.threads))

    monkeypatch.setattr(AtOnce, "_decide", noted)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (3, 1)),
        ({"at_once": 2}, (2, 1)),
        ({"memory": 1.0}, (1, 3)),
        ({"at_once": 3, "memory": 1.0}, (1, 3)),
        ({"backend": "torch"}, (1, 3)),
        ({"optimizer": lambda w: torch.optim.SGD(w, lr=0.1)}, (1, 3)),
        ({"loss": torch.nn.L1Loss()}, (1, 3)),
    ],
)
def test_how_many_at_once(small, each, decided, options, expected):
    fits = together(small, each, **options)
    assert decided == [expected]
    options = {name: value for name, value in options.items() if name not in ("at_once", "memory")}
    for number, fit in enumerate(fits):
        assert_same(fit, alone(small, each, number, **options))


def test_memory_bounds_the_number(small, each, decided, monkeypatch):
    takes = 1000
    monkeypatch.setattr(functions.RewrittenFunction, "memory", takes)
    together(small, each, memory=2.5 * takes)
    monkeypatch.setattr(scheduler, "available_memory", lambda device: 3.5 * takes / scheduler.SHARE - takes)
    together(small, each)
    monkeypatch.setattr(scheduler, "available_memory", lambda device: float("inf"))
    together(small, each)
    assert [most for most, _ in decided] == [2, 3, 3]


def test_what_a_run_takes_is_known_about(small):
    big = build_problem(size=(256, 256), dtype=torch.float32, num_channels_down=(16, 16), density=0.5)
    function = functions.RewrittenFunction(big.net, big.z, big.mask, "cpu", verify=False)
    image, least = big.z[0, 0].numel() * 4, functions._SMALL_THINGS
    assert 16 * image < function.memory - least < 200 * image
    other = functions.RewrittenFunction(small.net, small.z, small.mask, "cpu")
    assert other.memory - least < (function.memory - least) / 10


def test_runs_are_made_at_the_same_time_and_callbacks_in_the_calling_thread(small, each, monkeypatch):
    ran: set[int] = set()
    meeting = threading.Barrier(3, timeout=120)
    evaluate = functions.RewrittenFunction.__call__

    def evaluated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() not in ran:
            ran.add(threading.get_ident())
            meeting.wait()
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(functions.RewrittenFunction, "__call__", evaluated)
    called: set[int] = set()
    together(small, each, callback=lambda number, info: called.add(threading.get_ident()))
    assert len(ran) == 3
    assert called == {threading.get_ident()}
    assert threading.get_ident() not in ran


def test_networks_of_one_kind_are_verified_and_planned_once(small, each, monkeypatch):
    made: list[tuple[nn.Module, bool]] = []
    sparsify = functions.sparsify

    def noted(net: nn.Module, *args: Any, verify: bool, **kwargs: Any) -> Any:
        made.append((net, verify))
        return sparsify(net, *args, verify=verify, **kwargs)

    monkeypatch.setattr(functions, "sparsify", noted)
    together(small, each, verify=True)
    assert made == [(each["nets"][0], True)]
    made.clear()
    nets = [each["nets"][0], each["nets"][1], build_problem(need_sigmoid=False).net.float(), each["nets"][2]]
    oes.train_many(nets, small.mask, small.z, small.noisy, steps=1)
    # That of another kind is verified as well; what comes behind it is planned again.
    assert sorted((nets.index(net), verify) for net, verify in made) == [(0, True), (2, True), (3, False)]


def test_an_input_for_all_is_laid_out_once(small, each):
    shared = SharedFunctions()
    first, _ = shared.make(each["nets"][0], small.z, small.mask, "cpu")
    second, _ = shared.make(each["nets"][1], small.z, small.mask, "cpu")
    other, _ = shared.make(each["nets"][2], each["z"][2], small.mask, "cpu")
    planes = []
    for function in (first, second, other):
        assert isinstance(function, functions.RewrittenFunction)
        function(function.initial_weights(), update_stats=False)
        (chain,) = function._module.plan(function._z)._chains
        planes.append({entry: read[1].data_ptr() for entry, read in chain._planes.items()})
    assert planes[0] == planes[1] != planes[2]
    assert planes[0]


def test_what_makes_networks_of_one_kind(small):
    other = build_problem(size=(16, 20), dtype=torch.float32, seed=1)
    kind = kind_of(small.net, small.mask, small.z)
    assert kind_of(other.net, small.mask, other.z) == kind
    assert kind_of(small.net, None, small.z) != kind
    assert kind_of(small.net, small.mask, small.z[..., :-1]) != kind
    assert kind_of(build_problem(need_sigmoid=False, seed=1).net, small.mask, small.z) != kind
    evaluated = build_problem(size=(16, 20), dtype=torch.float32).net.eval()
    assert kind_of(evaluated, small.mask, small.z) != kind

    class Own(type(small.net)):  # code that may do anything
        pass

    own = build_problem(size=(16, 20), dtype=torch.float32).net
    own.__class__ = Own
    assert kind_of(own, small.mask, small.z) != kind_of(build_problem().net, small.mask, small.z)
    assert kind_of(own, small.mask, small.z) == kind_of(own, small.mask, small.z)


def test_runs_that_may_draw_random_numbers_take_turns(small):
    """A network in plain PyTorch between others: with all threads, and in order."""
    nets = [torch.nn.Sequential(small.net, torch.nn.Dropout(0.2)) for _ in range(3)]
    arguments = {"z": small.z, "noisy": small.noisy, "steps": 3, "verify": False}
    torch.manual_seed(3)
    fits = oes.train_many([small.net, *nets], [small.mask, None, None, None], at_once=4, **arguments)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    alone = [oes.train_many(net, None, small.z, [small.noisy], steps=3, verify=False)[0] for net in nets]
    assert torch.equal(torch.get_rng_state(), after)
    for fit, expected in zip(fits[1:], alone, strict=True):
        assert torch.equal(fit.output, expected.output)


def test_ctrl_c_ends_all_runs_with_their_checkpoints(small, each, tmp_path):
    files = [tmp_path / f"{number}.ckpt" for number in range(3)]
    seen = []

    def callback(number: int, info: oes.StepInfo) -> None:
        seen.append((number, info.step))
        if (number, info.step) == (0, 3):
            signal.raise_signal(signal.SIGINT)

    options = {"steps": 5000, "average": 0.9}
    fits = together(small, each, at_once=2, callback=callback, checkpoints=files, **options)
    assert [fit.interrupted for fit in fits] == [True] * 3
    assert fits[0].steps == 4
    assert fits[2].steps == 0  # it had not begun
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ends = max(fit.steps for fit in fits) + 2
    options["steps"] = ends
    resumed = together(small, each, checkpoints=files, resume=True, **options)
    for number, fit in enumerate(resumed):
        assert_same(fit, alone(small, each, number, **options))


def test_sigterm_ends_the_process_after_all_checkpoints(small, each, tmp_path, monkeypatch):
    files = [tmp_path / f"{number}.ckpt" for number in range(3)]
    ended: list[int] = []
    raise_signal = signal.raise_signal
    monkeypatch.setattr(signals.signal, "raise_signal", ended.append)

    def callback(number: int, info: oes.StepInfo) -> None:
        assert not ended
        if (number, info.step) == (1, 2):
            raise_signal(signal.SIGTERM)

    fits = together(small, each, callback=callback, checkpoints=files, steps=5000)
    assert ended == [signal.SIGTERM]
    assert [checkpoint_step(file) for file in files] == [fit.steps for fit in fits]
    assert max(fit.steps for fit in fits) < 5000


def test_a_second_ctrl_c_raises(small, each):
    def callback(number: int, info: oes.StepInfo) -> None:
        if info.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        together(small, each, callback=callback, steps=10_000)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("oes_fast-run")]


def test_after_a_second_ctrl_c_no_run_is_begun(small, each, monkeypatch):
    begun = []
    make = AtOnce.make

    def noted(self: AtOnce, number: int, *args: Any, **kwargs: Any) -> Any:
        begun.append(number)
        return make(self, number, *args, **kwargs)

    def callback(number: int, info: oes.StepInfo) -> None:
        if info.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(AtOnce, "make", noted)
    with pytest.raises(KeyboardInterrupt):
        oes.train_many(
            each["nets"][0],
            small.mask,
            small.z,
            [small.noisy] * 30,
            at_once=2,
            callback=callback,
            steps=10_000,
        )
    assert sorted(begun) == [0, 1]


def test_a_checkpoint_that_is_refused_late_ends_the_others(small, each, tmp_path):
    """What backend made it is compared when the run is bound."""
    files = [tmp_path / f"{number}.ckpt" for number in range(3)]
    alone(small, each, 1, checkpoint=files[1], backend="torch", callback=lambda info: info.step == 1)
    with pytest.raises(
        oes.CheckpointError, match=r"^run 1: .*with backend = torch, this run has cpu"
    ) as caught:
        together(small, each, steps=5000, checkpoints=files, resume=True)
    assert caught.value.errors == [None, caught.value, None]
    first, second, third = caught.value.results
    assert second is None
    for number, fit in ((0, first), (2, third)):
        assert fit.interrupted
        assert fit.steps < 5000
        assert checkpoint_step(files[number]) == fit.steps


def test_no_network_is_verified_while_a_run_draws_random_numbers(small, each, monkeypatch):
    """To verify one sets the numbers that PyTorch draws, in all threads."""
    drawing = torch.nn.Sequential(small.net, torch.nn.Dropout(0.2))
    own = build_problem(need_sigmoid=False).net.float()
    under_way = threading.Event()
    overlaps = []
    made, run = functions.RewrittenFunction.__init__, train.TrainRun

    class Seen(run):
        def __init__(self, function: functions.RewrittenFunction, *args: Any, **options: Any) -> None:
            super().__init__(function, *args, **options)
            self.draws = not function.in_one_chain

        def begin(self, step: int, *, final: bool) -> None:
            super().begin(step, final=final)
            if self.draws and not final:
                under_way.set()
                time.sleep(0.05)
            elif self.draws:
                under_way.clear()

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        if args[0] is own:
            overlaps.append(under_way.is_set())
        made(self, *args, **kwargs)

    monkeypatch.setattr(train, "TrainRun", Seen)
    monkeypatch.setattr(functions.RewrittenFunction, "__init__", noted)
    bind = AtOnce.make

    def late(self: AtOnce, number: int, *args: Any, **kwargs: Any) -> Any:
        if number == 2:
            under_way.wait(5)
        return bind(self, number, *args, **kwargs)

    monkeypatch.setattr(AtOnce, "make", late)
    common = {"steps": 3, "verify": False}
    torch.manual_seed(3)
    fits = oes.train_many(
        [small.net, drawing, own], [small.mask, None, small.mask], small.z, small.noisy, at_once=3, **common
    )
    assert overlaps == [False]
    monkeypatch.undo()
    torch.manual_seed(3)
    (alone,) = oes.train_many([drawing], None, small.z, small.noisy, **common)
    assert torch.equal(fits[1].output, alone.output)


def test_warnings_name_the_run_and_a_line_of_the_callers(small, each):
    noisy = [each["noisy"][0], each["noisy"][1] * 0 + torch.tensor([0.0, 1.0] * 10), each["noisy"][2]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = together(small, each | {"noisy": noisy, "clean": None})
    collapsed = [number for number, fit in enumerate(fits) if fit.collapsed]
    found = [warning for warning in caught if issubclass(warning.category, oes.CollapsedRunWarning)]
    assert 1 in collapsed
    told = sorted(str(warning.message).partition(" the output")[0] for warning in found)
    assert told == [f"run {number}: train:" for number in collapsed]
    assert {warning.filename for warning in found} == {together.__code__.co_filename}


def test_a_warning_that_is_an_error_ends_all(small, each):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(oes.CollapsedRunWarning, match="run "):
            together(small, each | {"noisy": [z[:, :3] * 0 + z[:, :3] * 100 for z in each["z"]]})


def test_checkpoints_say_nothing_of_another_number_of_threads(small, each, tmp_path):
    """The bits do not depend on it."""
    files = [tmp_path / f"{number}.ckpt" for number in range(3)]
    together(small, each, steps=2, checkpoints=files)
    with warnings.catch_warnings():
        warnings.simplefilter("error", oes.CheckpointWarning)
        alone(small, each, 1, checkpoint=files[1], resume=True)
        together(small, each, steps=6, checkpoints=files, resume=True, at_once=2)


def test_progress_is_one_display_for_all(small, each, capsys):
    together(small, each, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("Training ") and "/15  loss" in line for line in lines)
    assert lines[-1].startswith("Training 15/15")
