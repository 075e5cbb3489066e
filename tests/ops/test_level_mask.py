"""Masks of more than two levels: the published formulas, gradients, noise, distribution, a whole search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_backends import require
from scipy import stats

import oes_fast as oes
from oes_fast import BackendError, InputError, reference
from oes_fast.functional import gumbel_mask, mask_kl, mask_update
from oes_fast.reference.philox import DRAW_LEVEL, LEVEL_NOISE, NOISE_BITS

LEVELS = [3, 4, 9]


def make(levels, numel=200, scale=2.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    w0, grad = torch.randn(2, numel, generator=generator, dtype=torch.float64).to(dtype)
    logits = scale * torch.randn(levels - 1, numel, generator=generator, dtype=torch.float64) - 1
    return w0, logits.to(dtype), grad


def published(logits, noise, temperature):
    """The published steps one by one: probabilities as columns, the rest to the last one, softmax, levels."""
    p = torch.sigmoid(logits.t())
    p = torch.cat([p, 1 - p.sum(1, keepdim=True).clamp(1e-20, 1 - 1e-20)], dim=1)
    y = (p.clamp(1e-20, 1 - 1e-20).log() + noise.t()) / temperature
    q = p.shape[1]
    values = torch.tensor([1 - i / (q - 1) for i in range(q - 1)] + [0.0], dtype=p.dtype)
    return (F.softmax(y, dim=-1) * values).sum(-1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_what_the_published_code_computes(levels, dtype):
    w0, logits, grad = make(levels, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    noise = reference.level_noise(5, 7, 200, levels, dtype=dtype)
    expected = w0 * published(leaf, noise, 0.2)
    masked = gumbel_mask(w0, logits, seed=5, step=7)
    assert masked.dtype == dtype
    tolerance = {"rtol": 0, "atol": 1e-13 if dtype == torch.float64 else 1e-4}
    torch.testing.assert_close(masked, expected.detach(), **tolerance)
    (slope,) = torch.autograd.grad(expected, leaf, grad)
    _, found = reference.gumbel_mask_backward(grad, w0, logits, seed=5, step=7)
    torch.testing.assert_close(found, slope, **tolerance)
    assert found.abs().max() > 0.1
    assert (torch.sigmoid(logits).sum(0) > 1).any()  # some have lost their last level


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients(levels):
    # Away from where the last level goes, which has a kink.
    w0, logits, grad = make(levels, numel=12, scale=0.5)
    w0, logits = w0.requires_grad_(), (logits - math.log(levels)).requires_grad_()

    def masked(w0, logits):
        return gumbel_mask(w0, logits, seed=3, step=4, temperature=0.7)

    assert torch.autograd.gradcheck(masked, (w0, logits))
    assert torch.autograd.gradgradcheck(masked, (w0, logits))
    expected = torch.autograd.grad(masked(w0, logits), (w0, logits), grad)
    found = reference.gumbel_mask_backward(
        grad, w0.detach(), logits.detach(), seed=3, step=4, temperature=0.7
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(dtype):
    values = [1e4, -1e4, 90.0, -90.0, 0.0, math.inf, -math.inf]
    logits = torch.tensor(list(itertools.product(values, repeat=2)), dtype=dtype).t().contiguous()
    ones = torch.ones(logits.shape[1], dtype=dtype)
    masked = gumbel_mask(ones, logits, seed=0, step=0)
    assert torch.isfinite(masked).all()
    assert ((masked >= 0) & (masked <= 1)).all()
    _, slope = reference.gumbel_mask_backward(ones, ones, logits, seed=0, step=0)
    assert torch.isfinite(slope).all()
    surely = {(1e4, -1e4): 1.0, (-1e4, 1e4): 0.5, (-1e4, -1e4): 0.0}
    for (first, second), level in surely.items():
        column = (logits[0] == first) & (logits[1] == second)
        assert masked[column].tolist() == pytest.approx([level], abs=1e-6)
        assert slope[:, column].abs().max() < 1e-6


def test_levels_and_initial_logits():
    assert reference.level_values(5, like=torch.zeros(0)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert reference.level_values(2, like=torch.zeros(0)).tolist() == [1, 0]
    assert reference.initial_logit(2) == 0
    logits = torch.full((4, 1), reference.initial_logit(5), dtype=torch.float64)
    torch.testing.assert_close(reference.level_probabilities(logits), torch.full((5, 1), 0.2).double())
    assert float(reference.expected_level(logits)) == pytest.approx(0.5)
    logits = torch.tensor([[0.0, -3.0, 1.0], [-1.0, 2.0, 1.0]])
    assert reference.likeliest_level(logits).tolist() == [1, 0.5, 1]
    s = torch.linspace(-4, 4, 9)[None]
    torch.testing.assert_close(
        reference.expected_level(s), torch.sigmoid(s[0])
    )  # two levels, written as one row


# noise


def test_noise_of_every_word_is_finite():
    noise = reference.gumbel_from_bits(torch.arange(2**NOISE_BITS) << (32 - NOISE_BITS), torch.float64)
    assert torch.isfinite(noise).all()
    assert (noise.diff() > 0).all()
    assert float(noise[0]) == pytest.approx(-2.8115, abs=1e-4)
    assert float(noise[-1]) == pytest.approx(math.log(2**24), abs=1e-6)


def test_noise_is_gumbel_and_independent():
    """At fixed seeds; of levels, elements, steps and drawn masks."""
    numel = 200_000
    noise = reference.level_noise(3, 10, numel, 3, dtype=torch.float64).numpy()
    for row in noise:
        assert stats.kstest(row, "gumbel_r").pvalue > 1e-3
        assert row.mean() == pytest.approx(np.euler_gamma, abs=4.5 * row.std() / math.sqrt(numel))
    others = {"level + 1": noise[1], "level + 2": noise[2], "element + 1": np.roll(noise[0], 1)}
    others["step + 1"] = reference.level_noise(3, 11, numel, 1, dtype=torch.float64)[0].numpy()
    others["drawn"] = reference.level_noise(3, 10, numel, 1, stream=DRAW_LEVEL, dtype=torch.float64)[
        0
    ].numpy()
    for name, other in others.items():
        assert abs(np.corrcoef(noise[0], other)[0, 1]) < 4.5 / math.sqrt(numel), name


def test_noise_of_a_level_depends_on_nothing_but_its_counter():
    noise = reference.level_noise(2**64 - 1, 2**32 - 1, 50, 4)
    assert torch.equal(reference.level_noise(2**64 - 1, 2**32 - 1, 1000, 6)[:4, :50], noise)
    for level in range(4):
        bits = reference.random_bits(2**64 - 1, 2**32 - 1, 50, stream=LEVEL_NOISE + 256 * level)
        assert torch.equal(reference.gumbel_from_bits(bits), noise[level])
    noise.zero_()
    assert (reference.level_noise(2**64 - 1, 2**32 - 1, 50, 4) != 0).all()  # a copy was given away


# The distribution of m: an expectation over the noise of three levels is an integral over a unit cube.
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_moments_of_the_mask(temperature):
    s = np.array([-1.0, 0.3])
    middles = (np.arange(150) + 0.5) / 150
    gumbel = -np.log(-np.log(middles))
    p = 1 / (1 + np.exp(-s))
    grids = np.meshgrid(*[gumbel + np.log(q) for q in (*p, 1 - p.sum())], indexing="ij", sparse=True)
    shares = [np.exp(y / temperature) for y in grids]
    m = (shares[0] + 0.5 * shares[1]) / sum(shares)
    mean, variance = m.mean(), m.var()
    elements, steps = 2000, 50
    logits = torch.tensor(s)[:, None].expand(2, elements)
    ones = torch.ones(elements, dtype=torch.float64)
    draws = np.stack(
        [gumbel_mask(ones, logits, seed=11, step=t, temperature=temperature).numpy() for t in range(steps)]
    )
    assert draws.mean() == pytest.approx(mean, abs=4.5 * math.sqrt(variance / draws.size))
    kurtosis = ((draws - mean) ** 4).mean() - variance**2
    assert draws.var() == pytest.approx(variance, abs=4.5 * math.sqrt(kurtosis / draws.size))
    for first, second in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4.5 / math.sqrt(first.size)


@pytest.mark.parametrize("levels", LEVELS)
def test_drawn_levels_have_their_probabilities(levels):
    numel = 40_000
    _, logits, _ = make(levels, numel=1)
    drawn = reference.drawn_mask(logits.expand(levels - 1, numel), seed=8, draw=3)
    p = reference.level_probabilities(logits)[:, 0]
    values = reference.level_values(levels, like=logits)
    counts = [int((drawn == value).sum()) for value in values]
    assert sum(counts) == numel
    assert stats.chisquare(counts, (numel * p / p.sum()).numpy()).pvalue > 1e-3
    assert float(drawn.mean()) == pytest.approx(float(reference.expected_level(logits)[0]), abs=0.01)


# updates


@pytest.mark.parametrize("levels", LEVELS)
def test_update_is_adam_on_the_published_objective(levels):
    w0, start, _ = make(levels, numel=50, scale=0.5)
    target = torch.linspace(-1, 1, 50, dtype=torch.float64)
    leaf = start.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=1e-2)
    logits, exp_avg, exp_avg_sq = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(20):
        adam.zero_grad()
        noise = reference.level_noise(6, step, 50, levels, dtype=torch.float64)
        p = torch.sigmoid(leaf)
        divergence = p * ((p + 1e-6) / 0.05).log() + (1 - p) * ((1 - p + 1e-6) / 0.95).log()
        ((w0 * published(leaf, noise, 0.2) - target).square().sum() + 0.1 * divergence.sum()).backward()
        value = float(divergence.detach().sum())
        adam.step()
        masked = gumbel_mask(w0, logits, seed=6, step=step)
        assert float(mask_kl(logits, density=0.05)) == pytest.approx(value, rel=1e-12)
        found = mask_update(
            logits, 2 * (masked - target), w0, exp_avg, exp_avg_sq, seed=6, step=step, kl=0.1, kl_value=True
        )
        assert float(found) == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits, leaf.detach(), rtol=1e-9, atol=1e-9)
    assert (logits - start).abs().max() > 0.1


def test_bad_arguments_are_refused():
    w0, logits, grad = make(3, numel=6)
    moments = torch.zeros_like(logits), torch.zeros_like(logits)
    noise = {"seed": 0, "step": 0}
    with pytest.raises(InputError, match=r"logits: expected shape \(any, 6\), got \(2, 5\)"):
        gumbel_mask(w0, logits[:, :5], **noise)
    with pytest.raises(InputError, match=r"logits: expected shape \(6\), got \(1, 6\)"):
        gumbel_mask(w0, logits[:1], **noise)
    with pytest.raises(InputError, match=r"exp_avg: expected shape \(2, 6\), got \(6,\)"):
        mask_update(logits, grad, w0, moments[0][0], moments[1], **noise)
    with pytest.raises(InputError, match=r"w0: expected shape \(6\), got \(2, 6\)"):
        mask_update(logits, grad, logits.clone(), *moments, **noise)
    require("cpu")
    for call in (
        lambda: gumbel_mask(w0, logits, backend="cpu", **noise),
        lambda: mask_update(logits, grad, w0, *moments, backend="cpu", **noise),
    ):
        with pytest.raises(BackendError, match="'cpu' does not have the operation"):
            call()


# a whole search


@pytest.mark.filterwarnings("ignore::oes_fast.CollapsedRunWarning")
@pytest.mark.parametrize("levels", [3, 5])
def test_search(make_problem, levels, tmp_path):
    p = make_problem(num_channels_down=(8, 12))
    numel = p.mask.flat.numel()
    settings = {"density": 0.6, "steps": 40, "lr": 0.1, "levels": levels, "record_every": 1}
    found = oes.search_mask(p.net, p.z, p.noisy, backend="reference", **settings)
    assert found.logits.shape == (levels - 1, numel)
    assert found.mask.kept == int(0.6 * numel)
    assert found.mask.settings["levels"] == levels
    score = reference.expected_level(found.logits)
    assert score[found.mask.flat].min() >= score[~found.mask.flat].max()
    assert torch.equal(found.level > 0, found.mask.flat)
    assert set((found.level * (levels - 1)).tolist()) <= set(range(levels))
    assert np.mean(found.history.loss[-10:]) < 0.95 * np.mean(found.history.loss[:10])
    fast = oes.search_mask(p.net, p.z, p.noisy, **settings)
    np.testing.assert_allclose(fast.history.loss, found.history.loss, rtol=1e-6)
    # Stopped and gone on with.
    files = {"checkpoint": tmp_path / "a.ckpt", "checkpoint_seconds": 0.0, "backend": "reference"}
    oes.search_mask(p.net, p.z, p.noisy, **settings, **files, callback=lambda info: info.step == 9)
    resumed = oes.search_mask(p.net, p.z, p.noisy, **settings, **files, resume=True)
    assert torch.equal(resumed.logits, found.logits)
    with pytest.raises(oes.CheckpointError, match=f"levels = {levels}, this run has 2"):
        oes.search_mask(p.net, p.z, p.noisy, **{**settings, "levels": 2}, **files, resume=True)


def test_a_search_on_a_backend_without_levels_is_refused(problem):
    require("cpu")
    with pytest.raises(BackendError, match="'cpu' does not have the operation"):
        oes.search_mask(problem.net, problem.z, problem.noisy, steps=1, levels=3, backend="cpu")
    for levels in (1, 0, 2.5, True):
        with pytest.raises(InputError, match=r"^levels: "):
            oes.search_mask(problem.net, problem.z, problem.noisy, steps=1, levels=levels)
