"""The mean of several runs: its figures, and which runs it is of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import oes_fast as oes
from oes_fast.pipelines.runs_mean import mean_and_spread


def result(image: torch.Tensor, **fields: object) -> oes.TrainResult:
    """That of a run which gave this image."""
    net = oes.models.skip(2, 1, num_channels_down=(2,), num_channels_skip=2, filter_size_down=3, seed=0)
    mask = oes.Mask.from_dict(net, {name: torch.ones_like(p).bool() for name, p in net.named_parameters()})
    same = {"steps": 10, "interrupted": False, "collapsed": False, "diverged": False, "average": None}
    same |= {"history": oes.History(), "net": net, "mask": mask, "seconds": 0.0, "backend": "torch"}
    return oes.TrainResult(output=image, **{**same, **fields})


@pytest.fixture
def images() -> list[torch.Tensor]:
    return list(torch.rand(5, 1, 1, 4, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_spread_are_those_of_torch(images, dtype):
    runs = [result(image.to(dtype)) for image in images]
    found = oes.mean_of_runs(runs)
    stacked = torch.stack(images).double()
    assert found.mean.dtype == found.spread.dtype == dtype
    assert found.used == (0, 1, 2, 3, 4)
    torch.testing.assert_close(found.mean, stacked.mean(0).to(dtype))
    torch.testing.assert_close(found.spread, stacked.std(0).to(dtype))
    assert repr(found).startswith("RunsMean(runs 0, 1, 2, 3, 4, image [1, 1, 4, 6], spread 0.")


def test_the_mean_of_one_is_itself(images):
    found = oes.mean_of_runs([result(images[0])])
    assert torch.equal(found.mean, images[0])
    assert found.mean.data_ptr() != images[0].data_ptr()
    assert found.spread is None
    assert "spread" not in repr(found)


def test_averages_are_taken_where_there_are_some(images):
    found = oes.mean_of_runs([result(images[0], average=images[1]), result(images[2], average=images[1])])
    assert torch.equal(found.mean, images[1])
    assert not found.spread.any()


def test_small_differences_of_large_values_keep_their_digits():
    offset = 2.0**40
    mean, spread = mean_and_spread(torch.tensor([offset + k], dtype=torch.float64) for k in range(1, 1001))
    assert mean == offset + 500.5
    assert float(spread) == pytest.approx(float(torch.arange(1, 1001).double().std()), rel=1e-12)


def test_collapsed_diverged_and_failed_runs_are_left_out(images):
    runs = [result(image) for image in images]
    runs[1], runs[3], runs[4] = replace(runs[1], collapsed=True), replace(runs[3], diverged=True), None
    with pytest.warns(oes.DivergedRunWarning, match="left out of the mean: number 1, 3 of 4, from 0"):
        found = oes.mean_of_runs(runs)
    assert found.used == (0, 2)
    torch.testing.assert_close(found.mean, (images[0] + images[2]) / 2)
    with pytest.warns(oes.DivergedRunWarning, match="all runs collapsed or diverged"):
        assert oes.mean_of_runs([None, runs[1], runs[3]]).used == (1, 2)


@pytest.mark.filterwarnings("error")
def test_interrupted_runs_are_left_out_while_there_are_others(images):
    runs = [
        result(image, interrupted=True, steps=n) for image, n in zip(images, (9, 4, 5, 0, 10), strict=True)
    ]
    assert oes.mean_of_runs(runs).used == (0, 2, 4)
    runs[1] = result(images[1], steps=11)
    assert oes.mean_of_runs(runs).used == (1,)
    runs[1] = result(images[1])  # Ctrl-C came during the last step of run 4, and left nothing of it undone
    assert oes.mean_of_runs(runs).used == (1, 4)
    assert oes.mean_of_runs([replace(runs[0], steps=0), replace(runs[2], steps=0)]).used == (0, 1)


def test_refusals(images):
    for runs, says in (
        ([], "results: expected one run at least that has a result, got none"),
        ([None], "results: expected one run at least that has a result, got none"),
        ([result(images[0]), images[1]], "results: expected TrainResult, got Tensor as run 1"),
        (
            [None, result(images[0]), result(images[1][..., :3])],
            r"\(1, 1, 4, 3\) torch.float32 on cpu as run 2",
        ),
        ([result(images[0]), result(images[1].double())], "torch.float64 on cpu as run 1"),
    ):
        with pytest.raises(oes.InputError, match=says):
            oes.mean_of_runs(runs)
