"""Iterative magnitude pruning with rewinding: against a loop of torch.optim.Adam, and resumed anywhere."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import transcription
from conftest import assert_close, unchanged
from torch import Tensor, nn

import oes_fast as oes
from oes_fast.pipelines.checkpoint import Checkpoint
from oes_fast.pruning.imp import published_schedule, schedule

pytestmark = pytest.mark.filterwarnings("ignore::oes_fast.OESWarning")
DENSITIES = [0.6, 0.4, 0.3]


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def trained(net: nn.Module, mask: Tensor, z: Tensor, noisy: Tensor, steps: int) -> list[nn.Module]:
    """The network before each update and after the last."""
    return [each for _, _, each in transcription.train(net, mask, z, noisy, steps=steps, lr=1e-2)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("rewind_step", "small"), [(0, "keep"), (4, "keep"), (4, "score")])
def test_rounds(problem, rewind_step, small, backend):
    net, _, z, noisy, clean = problem
    steps = 10
    with unchanged(net, z, noisy):
        found = oes.pruning.imp_rounds(
            net, z, noisy, densities=DENSITIES, steps=steps, rewind_step=rewind_step, small=small,
            clean=clean, backend=backend, verify=False, record_every=5,
        )  # fmt: skip
    few = oes.pruning.small_parameters(net)
    mask = torch.ones_like(few)
    runs = trained(net, mask, z, noisy, steps)
    rewound = runs[rewind_step]
    for each, density in zip(found.rounds, DENSITIES, strict=True):
        scores = flat(runs[-1]).abs()
        scores[few] = torch.inf if small == "keep" else scores[few]
        scores[~mask] = -1
        mask = torch.zeros_like(mask)
        mask[scores.argsort(descending=True)[: round(density * mask.numel())]] = True
        assert torch.equal(each.mask.flat, mask)
        assert (each.density, each.mask.kept) == (density, round(density * mask.numel()))
        assert torch.equal(found.at(density).flat, mask)
        runs = trained(rewound, mask, z, noisy, steps - rewind_step)
    assert [each.history.step for each in found.rounds] == [
        [0, 5, 10],
        *[[0, 5, 10] if rewind_step == 0 else [0, 5, 6]] * 2,
    ]
    assert all(math.isfinite(psnr) for each in found.rounds for psnr in each.history.psnr)
    assert_close(flat(found.net), flat(rewound), 1e-7)
    assert found.mask is found.rounds[-1].mask
    assert not found.interrupted
    assert found.backend == (backend if backend == "reference" else found.backend)
    assert {k: found.mask.settings[k] for k in ("method", "round", "steps", "rewind_step")} == {
        "method": "imp", "round": 3, "steps": steps, "rewind_step": rewind_step,
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["tensor", "erdos_renyi_kernel"])
@pytest.mark.parametrize("small", ["keep", "score"])
def test_rounds_drop_and_never_add(problem, scope, small):
    found = oes.pruning.imp_rounds(
        problem.net, problem.z, problem.noisy, density=0.25, steps=2, scope=scope, small=small, verify=False
    )
    assert [each.density for each in found.rounds] == pytest.approx([*(0.8**k for k in range(1, 7)), 0.25])
    for before, after in zip(found.rounds, found.rounds[1:], strict=False):
        assert not bool((after.mask.flat & ~before.mask.flat).any())
        assert after.mask.kept == round(after.density * after.mask.flat.numel())


def test_published(problem):
    net, _, z, noisy, _ = problem
    found = oes.pruning.imp_rounds(
        net, z, noisy, density=0.3, share=0.4, published=True, steps=6, verify=False
    )
    alive = flat(net) != 0
    mask, last = alive.clone(), trained(net, alive, z, noisy, 6)[-1]
    for each in found.rounds:
        count = int(mask.sum())
        order = flat(last).abs().masked_fill(~mask, -1).argsort(descending=True)
        mask = torch.zeros_like(mask)
        mask[order[: count - math.ceil(count * 0.4)]] = True
        assert torch.equal(each.mask.flat, mask)
        last = trained(net, mask, z, noisy, 6)[-1]
    assert len(found.rounds) == 3
    assert found.mask.density <= 0.3 < found.rounds[-2].mask.density
    assert found.mask.settings["published"] is True
    assert not bool((found.mask.flat & ~alive).any())


def test_the_published_schedule_ends_at_5_5_percent():
    net = oes.models.skip(seed=0)
    counts = published_schedule(net, 0.055, None, 0.2, scope="global", seed=0)
    assert len(counts) == 13
    assert counts[-1] == pytest.approx(0.8**13, rel=2e-3)
    assert published_schedule(net, None, 13, 0.2, scope="global", seed=0) == counts


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([0.5, 0.1], None, None, None), [0.5, 0.1]),
        ((None, 0.25, 2, None), [0.5, 0.25]),
        ((None, 0.3, 1, None), [0.3]),
        ((None, 0.3, None, 0.5), [0.5, 0.3]),
        ((None, 0.125, None, 0.5), [0.5, 0.25, 0.125]),
        ((None, 0.8**13, None, 0.2), [0.8**k for k in range(1, 14)]),
        ((None, 0.95, None, None), [0.95]),
        ((None, 1.0, None, 0.2), [1.0]),
    ],
)
def test_schedules(arguments, expected):
    assert schedule(*arguments) == pytest.approx(tuple(expected))


class KilledError(Exception):
    """The process, at some step."""


def run(problem, folder=None, *, stop=None, kill=False, **options):
    """Three rounds of 8, 5 and 5 steps; ``stop`` is (round, step)."""

    def callback(info):
        assert info.phase.endswith("of 3")
        assert info.phase.startswith("imp round ")
        seen.append((int(info.phase.split()[2]), info.step))
        if seen[-1] == stop:
            if kill:
                raise KilledError
            return True
        return False

    seen = []
    settings = {
        "densities": DENSITIES, "steps": 8, "rewind_step": 3, "verify": False, "record_every": 2,
        "clean": problem.clean, "checkpoint": folder, "checkpoint_seconds": 0.0, "callback": callback,
    } | options  # fmt: skip
    try:
        return oes.pruning.imp_rounds(problem.net, problem.z, problem.noisy, **settings), seen
    except KilledError:
        return None, seen


@pytest.fixture(scope="module")
def whole(problem):
    """A run without a break."""
    return run(problem)[0]


def assert_same(found, whole):
    assert [each.density for each in found.rounds] == DENSITIES
    for one, other in zip(found.rounds, whole.rounds, strict=True):
        assert torch.equal(one.mask.flat, other.mask.flat)
        assert one.mask.settings == other.mask.settings
        assert torch.equal(one.history.rows.nan_to_num(-1), other.history.rows.nan_to_num(-1))
    for (name, one), other in zip(
        found.net.state_dict().items(), whole.net.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("stop", "kill"),
    [
        *((stop, kill) for stop in ((1, 1), (3, 5)) for kill in (True, False)),
        *(((1, 3), False), ((1, 6), True), ((2, 0), False), ((2, 3), True)),
    ],
)
def test_a_run_goes_on_in_the_middle_of_a_round(problem, whole, tmp_path, stop, kill):
    folder = tmp_path / "new" / "imp"
    found, _ = run(problem, folder, stop=stop, kill=kill)
    if not kill:
        done = stop == (3, 5)  # the last step of all
        assert found.interrupted != done
        assert len(found.rounds) == (3 if done else stop[0] - 1)
        assert found.mask.density == (
            1.0 if stop[0] == 1 else pytest.approx(found.rounds[-1].density, abs=1e-3)
        )
    found, seen = run(problem, folder, resume=True)
    assert_same(found, whole)
    # It does not begin again: the last step saved is the one before, or that where it stopped.
    assert seen == [] or seen[0] >= (stop[0], max(0, stop[1] - 1))
    found, seen = run(problem, folder, resume=True)  # there is nothing left to do
    assert_same(found, whole)
    assert (seen, found.backend, found.interrupted) == ([], None, False)
    assert sorted(path.name for path in folder.iterdir()) == ["rounds.safetensors"]


def test_a_run_starts_anew_without_resume(problem, whole, tmp_path):
    run(problem, tmp_path, stop=(2, 3))
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.warns(oes.CheckpointWarning, match=r"of an unfinished run, set aside as .*rounds\.old.round"):
        found, seen = run(problem, tmp_path)
    assert_same(found, whole)
    assert seen[0] == (1, 0)
    old = tmp_path / "rounds.old"
    assert {path.name: path.read_bytes() for path in old.iterdir()} == kept
    assert_same(run(problem, old, resume=True)[0], whole)
    run(problem, tmp_path)  # one that is finished is overwritten
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rounds.old", "rounds.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": 0.02}, "made with lr = 0.01, this run has 0.02"),
        ({"densities": [0.5, 0.4, 0.3]}, r"made with densities = \[0.6, 0.4, 0.3\], this run has \[0.5,"),
        ({"scope": "tensor"}, "made with scope = global, this run has tensor"),
        ({"rewind_step": 0}, "made with rewind_step = 3, this run has 0"),
        ({"clean": None}, "made with a clean image, this run has none"),
    ],
)  # fmt: skip
def test_another_run_is_refused(problem, tmp_path, change, said):
    run(problem, tmp_path, stop=(2, 3))
    with pytest.raises(oes.CheckpointError, match=said):
        run(problem, tmp_path, resume=True, **change)


def test_another_network_is_refused(problem, make_problem, tmp_path):
    run(problem, tmp_path, stop=(2, 3))
    other = make_problem(seed=1)
    with pytest.raises(oes.CheckpointError, match="for other initial weights"):
        run(other, tmp_path, resume=True)


def test_weights_that_are_missing(problem, tmp_path):
    """The first save failed, and the process was killed before the next."""
    run(problem, tmp_path, stop=(1, 6), kill=True)
    (tmp_path / "rounds.safetensors").unlink()
    with pytest.raises(oes.CheckpointError, match="expected the weights of step 3"):
        run(problem, tmp_path, resume=True)


def test_a_full_disk_stops_nothing(problem, whole, tmp_path, monkeypatch):
    def fails(self, step, state):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoint, "save", fails)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, _ = run(problem, tmp_path)
    assert_same(found, whole)
    assert any("no space left" in str(w.message) for w in caught)


def test_a_stopped_run_has_no_mask(problem):
    with pytest.raises(oes.OESError, match="imp: stopped after 0 rounds"):
        oes.pruning.imp(
            problem.net, problem.z, problem.noisy, density=0.5, rounds=1, steps=9, callback=lambda info: True
        )
    found = oes.pruning.imp_rounds(
        problem.net, problem.z, problem.noisy, density=0.5, rounds=1, steps=9, callback=lambda info: True
    )
    with pytest.raises(oes.InputError, match=r"density: expected that of a round that was finished \(none\)"):
        found.at(0.5)
    assert repr(found).startswith("ImpResult(rounds to 0 % in ")
    assert repr(found).endswith(f"interrupted, {found.mask!r})")
    assert len(repr(found)) < 150


def test_the_ticket_trains(problem):
    net, _, z, noisy, _ = problem
    found = oes.pruning.imp_rounds(net, z, noisy, density=0.4, rounds=1, steps=6, rewind_step=2, verify=False)
    fit = oes.train_sparse(found.net, found.mask, z, noisy, steps=4, verify=False)
    assert fit.history.loss[-1] < fit.history.loss[0]
    copied = copy.deepcopy(found.net)
    assert oes.fingerprint(copied) == found.mask.fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "density: expected a number, or densities, got None"),
        ({"density": 0.5, "densities": [0.5]}, "densities: expected them without density and rounds"),
        ({"densities": []}, r"densities: expected one number or more, got \[\]"),
        ({"densities": [0.3, 0.5]}, r"densities: expected each to be less than the one before, got \("),
        ({"densities": [0.3, float("nan")]}, "densities: expected a finite number"),
        ({"densities": [0.5, 0.01]}, r"density: expected .* at least, the share of the"),
        ({"density": 0.5, "rounds": 0}, "rounds: expected an integer >= 1, got 0"),
        ({"density": 0.5, "share": 1.0}, "share: expected a finite number > 0.0 and < 1.0, got 1.0"),
        ({"density": 0.5, "rounds": 2, "share": 0.3}, "share: expected it without rounds"),
        ({"densities": [0.5], "share": 0.3}, "densities: expected them .* and without share, got both"),
        ({"density": 0.5, "rounds": 10**9}, "rounds: expected an integer < 65536, got 1000000000"),
        ({"density": 0.5, "share": 1e-12}, "share: expected one that comes to the density 0.5 in fewer than"),
        ({"density": 1e-9}, "density: expected .* at least, got 1e-09"),
        ({"density": 0.5, "steps": 2**32}, "steps: expected an integer < 4294967296"),
        ({"density": 0.5, "steps": 0}, "steps: expected an integer >= 1, got 0"),
        ({"density": 0.5, "steps": 5, "rewind_step": 5}, "rewind_step: expected an integer >= 0 and < 5"),
        ({"density": 0.5, "callback": 1}, "callback: expected a function, got int"),
        ({"density": 0.5, "resume": True}, "resume: expected a checkpoint to go on from"),
        ({"density": 0.5, "checkpoint": 7}, "checkpoint: expected the name of a folder or None, got int"),
        ({"density": 0.5, "lr": -1.0}, "lr: expected a finite number > 0.0, got -1.0"),
        ({"densities": [0.5], "published": True}, "densities: expected density and share with pub"),
        ({"published": True}, "density: expected it or rounds with published=True, got both or neither"),
        ({"density": 0.5, "scope": "tensor", "published": True}, "scope: expected 'global'"),
        ({"rounds": 99, "share": 0.9, "published": True}, "density: expected a weight to be left"),
    ],
)  # fmt: skip
def test_refusals(problem, change, said):
    with pytest.raises(oes.InputError, match=said):
        oes.pruning.imp_rounds(problem.net, problem.z, problem.noisy, **({"steps": 2} | change))


def test_a_file_in_the_place_of_the_folder(problem, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(oes.OutputError, match="cannot make the folder"):
        run(problem, tmp_path / "file")
