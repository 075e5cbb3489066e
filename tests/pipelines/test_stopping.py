"""Rules that stop a run: on sequences of images with a known best one, and in trainings."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Problem, build_problem, skip_unless_available
from test_checkpoint import assert_same, start, stop_at
from torch import Tensor

import oes_fast as oes
from oes_fast.pipelines import checkpoint as checkpoints
from oes_fast.pipelines.run_stop import RunStop
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.pipelines.stopping import rule_of

pytestmark = [
    pytest.mark.usefixtures("unverified"),
    pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning"),
]

BEST = 300
SHAPE = (1, 3, 12, 16)


def clean_image() -> Tensor:
    return torch.linspace(0, 1, 12 * 16 * 3).reshape(SHAPE)


def noise(seed: int, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def fitted(noisy: Tensor, step: int) -> Tensor:
    """Nearest to the clean image at :data:`BEST`: grey before, the noisy image in the end."""
    clean, grey = clean_image(), torch.full(SHAPE, 0.5)
    if step <= BEST:
        return grey + (clean - grey) * (step / BEST)
    return clean + (noisy - clean) * min(1.0, (step - BEST) / 1000)


def jittered(step: int) -> Tensor:
    """The clean image with a jitter that is least at :data:`BEST`."""
    return clean_image() + noise(step, 1e-3 + 1e-4 * abs(step - BEST))


def shown(rule: StopRule, image: Callable[[int], Tensor], most: int = 2000, first: int = 0) -> int:
    """Show a rule one image after another, until it says to stop: the last step."""
    for step in range(first, most):
        if rule.update(step, image(step)):
            return step
    return most


def test_variance_finds_where_the_outputs_change_least():
    rule = oes.VarianceStop(window=20, patience=100, every=2)
    last = shown(rule, jittered)
    assert rule.stopped
    assert abs(rule.step - 10 - BEST) <= 6  # the middle of the window
    assert last == rule.step + 100
    assert torch.equal(rule.image, jittered(rule.step))
    assert rule.curve[0][0] == 18  # the first full window: looks at 0, 2, ..., 18
    assert min(value for _, value in rule.curve) == dict(rule.curve)[rule.step]
    assert rule.update(last + 1, jittered(0)) is True  # and so it stays


def test_the_variance_is_that_of_the_window():
    rule = oes.VarianceStop(window=12, patience=1000, every=4)
    images = [noise(seed) for seed in range(40)]
    shown(rule, images.__getitem__, most=40)
    for step, value in rule.curve:
        seen = np.stack([images[s].numpy() for s in range(step - 8, step + 1, 4)]).astype(np.float64)
        assert value == pytest.approx(seen.var(axis=0).mean(), rel=1e-5)


@pytest.mark.parametrize(("shape", "kept"), [((1, 1, 256, 256), 256 * 256), ((1, 1, 300, 500), 150 * 250)])
def test_of_large_images_a_part_of_the_rows_and_columns_is_kept(shape, kept):
    rule = oes.VarianceStop(window=4, patience=10, every=2)
    for step in range(3):
        rule.update(step, torch.full(shape, float(step)))
    assert rule.state_dict()["window"].shape[0] == 2
    assert rule.state_dict()["window"][0].numel() == kept
    assert rule.curve == [(2, 1.0)]


@pytest.mark.parametrize("average", [False, True])
def test_holdout_finds_where_the_error_is_least(average):
    noisy = clean_image() + noise(0)
    rule = oes.HoldoutStop(share=0.2, smooth=10, patience=100, every=2, seed=3)
    weight = rule.hold_out(noisy)
    assert set(weight.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(weight, weight[:, :1].expand(SHAPE))  # all channels of a pixel
    assert int((weight[0, 0] == 0).sum()) == round(0.2 * 12 * 16)

    def image(step: int) -> Tensor:  # what is left out stays clean as long as its neighbours are
        return torch.where(weight > 0, fitted(noisy, step), fitted(clean_image() + noise(1), step))

    for step in range(2000):
        shows = (torch.zeros(SHAPE), image(step)) if average else (image(step), None)
        if rule.update(step, *shows):
            break
    assert abs(rule.step - BEST) <= 20
    assert step == rule.step + 100
    assert torch.equal(rule.average if average else rule.image, image(rule.step))


def test_a_second_copy_leaves_nothing_out():
    first, second = (clean_image() + noise(seed) for seed in (0, 1))
    rule = oes.HoldoutStop(second=second, smooth=1, patience=50, every=1)
    shown(rule, functools.partial(fitted, first))
    assert abs(rule.step - BEST) <= 60
    assert rule.hold_out(first).eq(1).all()
    error = ((fitted(first, rule.step) - second) ** 2).double().mean()
    assert dict(rule.curve)[rule.step] == pytest.approx(float(error), rel=1e-6)


def test_discrepancy_stops_where_the_fit_is_as_close_as_the_noise():
    noisy = clean_image() + noise(0)
    distance = float((noisy - clean_image()).square().mean().sqrt())
    rule = oes.DiscrepancyStop(sigma=distance, smooth=1, every=1)
    rule.bind(noisy)
    assert shown(rule, functools.partial(fitted, noisy)) == rule.step
    assert abs(rule.step - BEST) <= 1


def test_pixels_are_left_out_of_those_that_are_known():
    weight = torch.zeros(SHAPE)
    weight[..., 5:9, 3:8] = 2.0
    rule = oes.HoldoutStop(share=0.25, seed=1)
    left = rule.hold_out(clean_image(), weight)
    assert int((left[0, 0] > 0).sum()) == 15  # 5 of 20 are left out
    assert left.max() == 2.0
    assert torch.equal(left, oes.HoldoutStop(share=0.25, seed=1).hold_out(clean_image(), weight))
    assert not torch.equal(left, oes.HoldoutStop(share=0.25, seed=2).hold_out(clean_image(), weight))


def rules(noisy: Tensor) -> dict[str, StopRule]:
    """One of each, that look often."""
    found: dict[str, StopRule] = {
        "variance": oes.VarianceStop(window=6, patience=8, every=2),
        "holdout": oes.HoldoutStop(share=0.2, smooth=3, patience=8, every=2),
        "second": oes.HoldoutStop(second=noisy + 0.01, smooth=3, patience=8, every=2),
        "discrepancy": oes.DiscrepancyStop(sigma=0.2, smooth=4, every=2),
    }
    return found


KINDS = pytest.mark.parametrize("kind", ["variance", "holdout", "second", "discrepancy"])


@KINDS
def test_a_rule_goes_on_from_its_state(kind):
    noisy = clean_image() + noise(0)
    whole, first, second = (rules(noisy)[kind] for _ in range(3))
    for rule in (whole, first, second):
        rule.bind(noisy, None, None)
    images = functools.partial(fitted, noisy)
    shown(whole, images, most=60)
    shown(first, images, most=25)
    second.load_state_dict(first.state_dict())
    shown(second, images, most=60, first=25)
    found, expected = second.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert second.fresh().curve == []
    with pytest.raises(oes.InputError, match="VarianceStop"):
        oes.VarianceStop().load_state_dict({"numbers": torch.zeros(3)})


def trained(problem: Problem, kind: str, **changes: Any) -> oes.TrainResult:
    options = {"steps": 60, "record_every": 1, "stop": rules(problem.noisy)[kind]} | changes
    return start("train", problem, options.pop("path", None), **options)


@KINDS
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_is_that_of_the_step_found(kind, backend, dtype):
    skip_unless_available(backend)
    problem = build_problem(dtype=dtype)
    images: dict[int, Tensor] = {}

    def seen(info: oes.StepInfo) -> None:
        images[info.step] = info.output.clone()

    fit = trained(problem, kind, backend=backend, callback=seen)
    stop = fit.stop
    assert not fit.interrupted
    assert (fit.steps < 60) == stop.stopped
    assert torch.equal(fit.output, images[stop.step])
    assert fit.output.dtype == dtype
    at = fit.history.step.index(stop.step)
    assert fit.history.psnr[at] == pytest.approx(float(oes.psnr(fit.output, problem.clean)), abs=1e-4)
    assert fit.history.psnr_average[at] == pytest.approx(oes.psnr(fit.average, problem.clean), abs=1e-4)
    again = fit.net.train()(problem.z)  # its weights are those of that step
    torch.testing.assert_close(again.detach(), fit.output, rtol=1e-4, atol=1e-5)
    assert str(stop.step) in repr(stop)
    assert stop.curve[-1][0] <= fit.steps


@KINDS
def test_a_run_with_a_rule_resumes_bit_for_bit(kind, tmp_path, recwarn):
    problem = build_problem(dtype=torch.float32)
    path = tmp_path / "checkpoint"
    whole = trained(problem, kind)
    for step in (0, 5, 12):
        stopped = trained(problem, kind, path=path, callback=stop_at(step), resume=True)
        assert stopped.interrupted
        assert "interrupted" in stopped.stop.reason
    resumed = trained(problem, kind, path=path, resume=True)
    assert_same("train", resumed, whole)
    assert resumed.stop.curve == whole.stop.curve
    assert (resumed.stop.step, resumed.stop.reason) == (whole.stop.step, whole.stop.reason)
    assert checkpoints.finished(path)
    assert_same("train", trained(problem, kind, path=path, resume=True), whole)  # nothing left to do
    assert not [w for w in recwarn if issubclass(w.category, oes.CheckpointWarning)]


def test_a_run_that_its_rule_ended_is_finished(tmp_path, recwarn):
    problem = build_problem(dtype=torch.float32)
    path = tmp_path / "checkpoint"
    assert trained(problem, "variance", path=path).stop.stopped
    trained(problem, "variance", path=path)  # it is overwritten, not set aside
    assert not [w for w in recwarn if issubclass(w.category, oes.CheckpointWarning)]
    assert list(tmp_path.glob("*.old*")) == []


def test_a_checkpoint_of_another_rule_is_refused(tmp_path):
    problem = build_problem(dtype=torch.float32)
    path = tmp_path / "checkpoint"
    trained(problem, "variance", path=path, callback=stop_at(3))
    with pytest.raises(oes.CheckpointError, match="stop = variance, window 6"):
        trained(problem, "variance", path=path, resume=True, stop=oes.VarianceStop())
    with pytest.raises(oes.CheckpointError, match="stop"):
        trained(problem, "variance", path=path, resume=True, stop=None)


def test_a_run_that_ends_first_says_so():
    problem = build_problem(dtype=torch.float32)
    late = oes.VarianceStop(window=40, patience=600, every=10)
    fit = trained(problem, "variance", stop=late, steps=20)
    assert (fit.stop.step, fit.stop.stopped, fit.stop.curve) == (20, False, ())
    assert "before there was a first variance of the outputs" in fit.stop.reason
    plain = trained(problem, "variance", stop=None, steps=20)
    assert_same("train", fit, plain)
    fit = trained(problem, "variance", stop=late, steps=45)
    assert fit.stop.step in (30, 40)
    assert "ended at step 45" in fit.stop.reason
    assert late.curve == []  # the caller's own is left alone


def test_a_holdout_trains_without_the_pixels_left_out():
    problem = build_problem(dtype=torch.float32)
    rule = oes.HoldoutStop(share=0.2, patience=1000, seed=4)
    weight = rule.fresh().hold_out(problem.noisy)
    fit = trained(problem, "holdout", stop=rule, steps=12)
    plain = trained(problem, "holdout", stop=None, weight=weight, steps=12)
    assert torch.equal(fit.history.rows, plain.history.rows)


def test_a_holdout_of_what_was_measured():
    """With an operator, numbers of the measurement are left out."""
    problem = build_problem(dtype=torch.float32)
    smaller = functools.partial(torch.nn.functional.avg_pool2d, kernel_size=2)
    fit = trained(problem, "holdout", noisy=smaller(problem.noisy), forward=smaller, steps=30)
    assert fit.output.shape == problem.clean.shape
    assert fit.stop.rule == "holdout"
    rule = rules(problem.noisy)["holdout"].fresh()
    counts = 1 - rule.hold_out(smaller(problem.noisy))
    step, value = fit.stop.curve[0]
    assert step == 0
    again = trained(problem, "holdout", noisy=smaller(problem.noisy), forward=smaller, stop=None, steps=0)
    error = (counts * (smaller(again.output) - smaller(problem.noisy)) ** 2).sum() / counts.sum()
    assert value == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("kind", ["variance", "holdout"])
def test_each_of_many_runs_stops_by_itself(kind):
    skip_unless_available("cpu")
    problems = [build_problem(size=(16, 20), dtype=torch.float32, seed=seed) for seed in range(3)]
    rule = rules(problems[0].noisy)[kind]
    options: dict[str, Any] = {"steps": 90, "lr": 0.1, "average": 0.5, "stop": rule, "backend": "cpu"}
    mask = problems[0].mask
    fits = oes.train_many(
        [p.net for p in problems], mask, [p.z for p in problems], [p.noisy for p in problems], **options
    )
    for problem, fit in zip(problems, fits, strict=True):
        alone = oes.train_sparse(problem.net, mask, problem.z, problem.noisy, **options)
        assert_same("train", fit, alone)
        assert fit.stop.curve == alone.stop.curve
        assert fit.stop.step == alone.stop.step
    assert len({fit.stop.curve for fit in fits}) == 3
    assert any(fit.stop.stopped for fit in fits)


def test_dense_dip_stops_as_well():
    problem = build_problem(dtype=torch.float32)
    rule = rules(problem.noisy)["variance"]
    fit = oes.baselines.dense_dip(problem.net, problem.z, problem.noisy, steps=40, lr=0.05, stop=rule)
    assert fit.stop.rule == "variance"
    assert fit.stop.step <= fit.steps


@pytest.mark.parametrize("record_every", [1, 7, 1000])
def test_what_a_rule_has_found_outlives_a_loss_that_is_no_longer_finite(record_every):
    problem = build_problem(dtype=torch.float32)
    rule = oes.VarianceStop(window=6, patience=1000, every=2)
    options = {"lr": 0.1, "average": 0.5, "stop": rule, "backend": "cpu"}
    arguments = problem.mask, problem.z, problem.noisy
    sound = oes.train_sparse(problem.net, *arguments, steps=41, **options)
    options |= {"schedule": lambda step: 1.0 if step < 40 else 1e30, "record_every": record_every}
    with pytest.warns(oes.DivergedRunWarning, match=f"the result is that of step {sound.stop.step}$"):
        fit = oes.train_sparse(problem.net, *arguments, steps=60, **options)
    assert fit.diverged
    assert not fit.interrupted
    assert fit.stop.step == sound.stop.step
    assert torch.equal(fit.output, sound.output)
    assert torch.equal(fit.average, sound.average)
    for ours, theirs in zip(fit.net.parameters(), sound.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.warns(oes.DivergedRunWarning):
        pair = oes.train_many([problem.net] * 2, *arguments, steps=60, **options)
    assert all(torch.equal(each.output, sound.output) for each in pair)


def test_a_run_that_is_no_longer_finite_says_what_it_says_without_a_rule():
    problem = build_problem(dtype=torch.float32)
    with pytest.raises(oes.OESError, match="the loss is nan at step"):
        trained(problem, "variance", lr=1e30, schedule=lambda step: 1.0, steps=30, average=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oes.VarianceStop(window=10), "window: expected an integer >= 20, got 10"),
        (lambda: oes.VarianceStop(every=0), "every: expected an integer >= 1, got 0"),
        (lambda: oes.VarianceStop(patience=1.5), "patience: expected an integer, got float"),
        (lambda: oes.HoldoutStop(share=0.0), "share: expected a finite number > 0.0 and < 1.0, got 0.0"),
        (lambda: oes.HoldoutStop(share=float("nan")), "share: expected a finite number"),
        (lambda: oes.HoldoutStop(seed=-1), "seed: expected an integer >= 0"),
        (lambda: oes.HoldoutStop(smooth=0), "smooth: expected an integer >= 1"),
        (lambda: oes.HoldoutStop(second=3), "second: expected a torch.Tensor, got int"),
        (lambda: oes.HoldoutStop(second=torch.full(SHAPE, torch.nan)), "second: expected finite values"),
        (lambda: oes.DiscrepancyStop(sigma=0.0), "sigma: expected a finite number > 0.0, got 0.0"),
        (lambda: oes.HoldoutStop().hold_out(torch.zeros(3)), r"noisy: expected an image, shape \(N, C"),
        (lambda: oes.HoldoutStop().hold_out(torch.zeros(1, 1, 1, 1)), "share: expected one that leaves some"),
    ],
)
def test_odd_settings_are_refused(make, message):
    with pytest.raises(oes.InputError, match=message):
        make()


def test_odd_outputs_are_refused():
    rule = oes.VarianceStop(window=4, every=1)
    rule.update(3, torch.zeros(SHAPE))
    for step, output, message in (
        (3, torch.zeros(SHAPE), "step: expected one after 3, got 3"),
        (-1, torch.zeros(SHAPE), "step: expected an integer >= 0"),
        (4, torch.zeros(SHAPE, dtype=torch.int32), "output: expected dtype float32 or float64"),
        (4, torch.zeros(5), r"output: expected an image, shape \(N, C, ...\), got \(5,\)"),
        (4, torch.full(SHAPE, torch.inf), "output: expected finite values, got NaN or infinity at step 4"),
    ):
        with pytest.raises(oes.InputError, match=message):
            rule.update(step, output)
    with pytest.raises(oes.InputError, match=r"hold_out\(noisy\) to be called"):
        oes.HoldoutStop().update(0, torch.zeros(SHAPE))
    with pytest.raises(oes.InputError, match=r"bind\(noisy\) to be called"):
        oes.DiscrepancyStop().update(0, torch.zeros(SHAPE))
    second = oes.HoldoutStop(second=torch.zeros(1, 3, 4, 4))
    with pytest.raises(oes.InputError, match="output: expected the shape of noisy"):
        second.update(0, torch.zeros(SHAPE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": "variance"}, "stop: expected an oes_fast.VarianceStop, HoldoutStop"),
        ({"stop": oes.HoldoutStop(), "loss": torch.nn.L1Loss()}, "got a loss of its own; VarianceStop takes"),
        ({"stop": oes.HoldoutStop(second=torch.zeros(1, 3, 4, 4))}, "stop: second: expected"),
        (
            {"stop": oes.DiscrepancyStop(), "weight": torch.ones(1, 1, 32, 32)},
            "sigma: expected the noise",
        ),
        ({"stop": oes.HoldoutStop(), "forward": torch.fft.fft2}, "got complex measurements; VarianceStop"),
    ],
    ids=["text", "loss", "second", "sigma", "complex"],
)
def test_rules_that_do_not_fit_are_refused(changes, message):
    problem = build_problem(dtype=torch.float32)
    if "forward" in changes:
        changes = {**changes, "noisy": torch.fft.fft2(problem.noisy), "clean": None}
    with pytest.raises(oes.InputError, match=message):
        trained(problem, "variance", **changes)


def test_rules_by_name():
    assert [getattr(rule_of(name, seed=3), "name", None) for name in ("variance", "holdout", "discrepancy")]
    assert rule_of("holdout", seed=3).seed == 3
    assert rule_of("none", seed=0) is None


@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_the_noise_is_estimated(sigma):
    pytest.importorskip("pywt")
    smooth = torch.linspace(0.3, 0.7, 64).expand(1, 3, 64, 64).clone()
    noisy = oes.add_noise(smooth, sigma, seed=0)
    assert oes.estimate_sigma(noisy) == pytest.approx(sigma, rel=0.1)
    channels = oes.estimate_sigma(noisy.double(), per_channel=True)
    assert len(channels) == 3
    assert sum(channels) / 3 == pytest.approx(oes.estimate_sigma(noisy), rel=1e-4)


def test_an_image_without_noise_has_no_discrepancy():
    pytest.importorskip("pywt")
    assert oes.estimate_sigma(torch.zeros(SHAPE)) == 0.0
    with pytest.raises(oes.InputError, match="sigma: expected an image with noise"):
        oes.DiscrepancyStop().bind(torch.zeros(SHAPE))


def test_what_the_noise_cannot_be_estimated_of(monkeypatch):
    for image, message in (
        (torch.zeros(3, 8, 8), "image: expected 4 dimensions"),
        (torch.zeros(2, 3, 8, 8), r"image: expected one, shape \(1, C, H, W\)"),
        (torch.zeros(1, 3, 8, 3), r"image: expected one, shape \(1, C, H, W\)"),
        (torch.full((1, 1, 8, 8), torch.nan), "image: expected finite values"),
    ):
        with pytest.raises(oes.InputError, match=message):
            oes.estimate_sigma(image)
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(oes.OESError, match="expected PyWavelets to be installed"):
        oes.estimate_sigma(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    "other",
    [oes.HoldoutStop(every=10), oes.VarianceStop(window=20), oes.VarianceStop(patience=5)],
    ids=["rule", "window", "patience"],
)
def test_a_state_of_other_settings_is_refused_and_changes_nothing(other):
    rule = oes.VarianceStop(window=40, every=10)
    for step in range(0, 60, 10):
        rule.update(step, torch.full((1, 1, 4, 4), float(step)))
    before = rule.state_dict()
    with pytest.raises(oes.InputError, match="another rule"):
        rule.load_state_dict(other.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in rule.state_dict().items())


def test_what_a_checkpoint_holds_goes_to_the_device_of_the_run():
    first, second = (oes.VarianceStop(window=2, patience=1, every=1) for _ in range(2))
    for step in range(6):
        first.update(step, torch.full((1, 1, 4, 4), float(step**2)), torch.ones(1, 1, 4, 4))
    second.load_state_dict(first.state_dict(), device="meta")
    assert {second.image.device.type, second.average.device.type} == {"meta"}
    run = RunStop(oes.VarianceStop(window=2, patience=1, every=1))
    run.load_state(
        {f"stop.{name}": tensor for name, tensor in first.state_dict().items()}
        | {"stop.kept.weights": torch.ones(3)},
        torch.device("meta"),
    )
    assert run.rule.image.device.type == "meta"
    assert run.found()["weights"].device.type == "meta"


def test_the_reason_counts_to_the_last_look():
    rule = oes.HoldoutStop(every=10, patience=11, smooth=10, second=torch.zeros(1, 1, 4, 4))
    for step, value in ((0, 1.0), (10, 2.0)):
        rule.update(step, torch.full((1, 1, 4, 4), value))
    assert "10 steps of 11 after the least" in rule.report(20).reason
