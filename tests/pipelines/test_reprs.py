"""What results print: a line or two, whatever the size of what they hold."""

from __future__ import annotations

import pytest
import torch

import oes_fast as oes


@pytest.fixture(scope="module")
def results(make_problem):
    problem = make_problem(size=(16, 16))
    infos = []
    options = {"steps": 20, "clean": problem.clean, "callback": lambda info: infos.append(info)}
    with pytest.warns(oes.CollapsedRunWarning):
        found = oes.search_mask(problem.net, problem.z, problem.noisy, density=0.5, **options)
    fit = oes.train_sparse(problem.net, problem.mask, problem.z, problem.noisy, average=0.9, **options)
    return found, fit, infos


def test_results_are_two_lines(results):
    for result in results[:2]:
        text = repr(result)
        assert text.count("\n") == 1
        assert max(map(len, text.splitlines())) < 140
        assert f"{type(result).__name__}(20 steps in " in text
        ended = ", collapsed" if result.collapsed else ""
        assert f" s on {result.backend}{ended}, output [1, 3, 16, 16], " in text
        assert f"{100 * result.mask.density:.3g} % of the weights kept,\n    {result.history!r})" in text
        assert text == str(result)
        assert "tensor" not in text


def test_what_went_wrong_is_told(problem):
    fit = oes.train_sparse(
        problem.net, problem.mask, problem.z, problem.noisy, steps=20, callback=lambda info: info.step == 3
    )
    assert f" on {fit.backend}, interrupted, output" in repr(fit)


def test_history(results):
    history = results[1].history
    (loss, *_, last_loss), (psnr, *_, last_psnr), best = history.loss, history.psnr, history.best()
    assert repr(history) == (
        f"History(3 records, step 0 to 20, loss {loss:.4g} to {last_loss:.4g}, "
        f"PSNR {psnr:.2f} to {last_psnr:.2f} dB, best {best.psnr:.2f} dB at step {best.step})"
    )
    made = type(history)()
    assert repr(made) == "History(no records)"
    made.add(0, torch.tensor(0.5), float("nan"), float("nan"))
    assert repr(made) == "History(1 record, step 0, loss 0.5)"


def test_step_info_and_mask_and_module(results, problem):
    assert repr(results[2][-1]) == "StepInfo(train, step 20 of 20, output [1, 3, 16, 16])"
    for value in (problem.mask, oes.sparsify(problem.net, problem.mask)):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 100
