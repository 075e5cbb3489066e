"""The random numbers: known answers, the same from every backend, the noise of all words, its statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_backends import MASK_KERNELS, device_of, dtypes_of, require
from scipy import stats

from oes_fast import InputError, reference
from oes_fast.ops.philox import add_normal_noise, logistic_from_bits, random_bits
from oes_fast.reference.philox import (
    MASK_NOISE,
    NOISE_BITS,
    STEP_INPUT_NOISE,
    STEP_WEIGHT_NOISE,
    TIE_BREAK,
)

pytestmark = [pytest.mark.cpu_kernel, pytest.mark.device]

SIZES = (0, 1, 3, 4, 5, 511, 512, 513, 2053)
SEEDS = (0, 1, 2**63 + 5, 2**64 - 1, 0x299F31D0A4093822)


# Random123 1.14, tests/kat_vectors, philox4x32 10.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter, key, words):
    counter = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    key = tuple(int(word, 16) for word in key.split())
    found = reference.philox4x32(counter, key)
    assert [f"{int(word):08x}" for word in found] == words.split()


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_known_answer_reaches_the_elements(backend):
    require(backend)
    words = random_bits(0, 0, 4, device=device_of(backend), backend=backend)
    assert [f"{int(word):08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("backend", MASK_KERNELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_words_match_the_reference(backend, seed):
    require(backend)
    for step, stream in ((0, MASK_NOISE), (2**32 - 1, TIE_BREAK), (12345, 2**32 - 1)):
        for numel in SIZES:
            expected = reference.random_bits(seed, step, numel, stream=stream)
            words = random_bits(seed, step, numel, stream=stream, device=device_of(backend), backend=backend)
            assert torch.equal(words.cpu(), expected), (step, stream, numel)


@pytest.mark.parametrize("backend", MASK_KERNELS)
def test_noise_of_every_word(backend):
    """All 2^23 values, of slow kernels a seventh: the lower 9 bits of a word do not enter."""
    require(backend)
    words = torch.arange(0, 2 ** (NOISE_BITS - 1), 1 if backend == "cpu" else 7)
    bits = torch.cat([words, 2**NOISE_BITS - 1 - words.flip(0)]) << (32 - NOISE_BITS)
    for dtype in dtypes_of(backend):
        expected = reference.logistic_from_bits(bits, dtype)
        noise = logistic_from_bits(bits.to(device_of(backend)), dtype, backend=backend).cpu()
        assert torch.isfinite(noise).all()
        integer = torch.int32 if dtype == torch.float32 else torch.int64
        ulps = (noise.view(integer) - expected.view(integer)).abs()
        assert int(ulps.max()) <= 2
        assert torch.equal(noise, -noise.flip(0))


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_lower_bits_do_not_enter(backend):
    require(backend)
    bits = torch.tensor([0, 511, 2**32 - 512, 2**32 - 1], device=device_of(backend))
    noise = logistic_from_bits(bits, backend=backend)
    assert noise[0] == noise[1] == -noise[2] == -noise[3]
    assert 16.6 < float(noise[3]) < 16.65


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_noise_is_logistic(seed):
    noise = reference.logistic_noise(seed, 5, 200_000, dtype=torch.float64).numpy()
    assert stats.kstest(noise, "logistic").pvalue > 1e-3
    assert abs(noise.mean()) < 4 * np.pi / np.sqrt(3 * noise.size)
    assert noise.var() == pytest.approx(np.pi**2 / 3, rel=0.02)


def test_words_are_independent():
    """Of neighbours, of steps, of seeds and of streams."""
    numel = 200_000
    base = reference.logistic_noise(3, 10, numel + 8, dtype=torch.float64).numpy()
    others = {f"element + {lag}": base[lag : lag + numel] for lag in range(1, 9)}
    others["step + 1"] = reference.logistic_noise(3, 11, numel, dtype=torch.float64).numpy()
    others["seed + 1"] = reference.logistic_noise(4, 10, numel, dtype=torch.float64).numpy()
    others["seed + 2^32"] = reference.logistic_noise(3 + 2**32, 10, numel, dtype=torch.float64).numpy()
    bits = reference.random_bits(3, 10, numel, stream=TIE_BREAK)
    others["other stream"] = reference.logistic_from_bits(bits, torch.float64).numpy()
    for name, other in others.items():
        for first, second in ((base[:numel], other), (np.abs(base[:numel]), np.abs(other))):
            assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(numel), name


def test_normal_noise_of_every_word():
    bits = torch.arange(2**NOISE_BITS) << (32 - NOISE_BITS)
    noise = reference.normal_from_bits(bits, torch.float64)
    assert torch.equal(noise, -noise.flip(0))
    assert 5.29 < float(noise.max()) < 5.30
    uniform = (np.arange(2**NOISE_BITS) + 0.5) / 2**NOISE_BITS
    np.testing.assert_allclose(noise.numpy()[::997], stats.norm.ppf(uniform[::997]), rtol=1e-9)
    assert float(noise.square().mean()) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(reference.normal_from_bits(bits[::991]), noise[::991].float())


@pytest.mark.parametrize("backend", ["reference", *MASK_KERNELS])
def test_normal_noise_is_the_same_from_every_backend(backend):
    require(backend)
    device = device_of(backend)
    for dtype in dtypes_of(backend):
        base = torch.linspace(0, 1, 2053, dtype=dtype)
        bits = reference.random_bits(2**63 + 5, 12, 2053, stream=STEP_INPUT_NOISE)
        expected = base + 0.25 * reference.normal_from_bits(bits, dtype)
        out = torch.empty_like(base, device=device)
        options = {"seed": 2**63 + 5, "step": 12, "stream": STEP_INPUT_NOISE, "backend": backend}
        assert add_normal_noise(out, base.to(device), 0.25, **options) is out
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(out.cpu(), expected, rtol=tolerance, atol=tolerance)
        before = out.clone()
        std = torch.where(torch.arange(2053) % 3 > 0, 0.25, 0.0).to(device, dtype)
        add_normal_noise(out, out, std, **options | {"stream": STEP_WEIGHT_NOISE})
        assert torch.equal(out[::3], before[::3])
        bits = reference.random_bits(2**63 + 5, 12, 2053, stream=STEP_WEIGHT_NOISE)
        expected = before.cpu() + std.cpu() * reference.normal_from_bits(bits, dtype)
        torch.testing.assert_close(out.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("numel", SIZES)
def test_normal_noise_of_the_kernel(numel):
    require("cpu")
    out = torch.empty(numel)
    add_normal_noise(out, torch.zeros(numel), 1.0, seed=3, step=5, stream=STEP_INPUT_NOISE, backend="cpu")
    bits = reference.random_bits(3, 5, numel, stream=STEP_INPUT_NOISE)
    ulps = (out.view(torch.int32) - reference.normal_from_bits(bits).view(torch.int32)).abs()
    assert int(ulps.max() if numel else 0) <= 4


def test_normal_noise_of_the_kernel_far_out():
    """Two million elements reach beyond five standard deviations."""
    require("cpu")
    numel = 2**21
    out = torch.empty(numel)
    add_normal_noise(out, torch.zeros(numel), 1.0, seed=1, step=0, stream=STEP_INPUT_NOISE, backend="cpu")
    bits = random_bits(1, 0, numel, stream=STEP_INPUT_NOISE)
    expected = reference.normal_from_bits(bits)
    assert float(expected.abs().max()) > 5
    assert int((out.view(torch.int32) - expected.view(torch.int32)).abs().max()) <= 4
    assert float(out.mean()) == pytest.approx(0.0, abs=4 / numel**0.5)
    assert float(out.std()) == pytest.approx(1.0, abs=4 / (2 * numel) ** 0.5)


def test_normal_noise_of_steps_and_streams_is_another():
    def noise(**options):
        out = torch.zeros(100_000, dtype=torch.float64)
        return add_normal_noise(
            out, out, 1.0, **({"seed": 1, "step": 2, "stream": STEP_INPUT_NOISE} | options)
        ).numpy()

    first = noise()
    assert stats.kstest(first, "norm").pvalue > 1e-3
    for options in ({"seed": 2}, {"step": 3}, {"stream": STEP_WEIGHT_NOISE}):
        assert abs(np.corrcoef(first, noise(**options))[0, 1]) < 4.5 / np.sqrt(first.size), options


def test_bad_arguments_are_refused():
    good = {"seed": 0, "step": 0, "stream": 0}
    with pytest.raises(InputError, match="std"):
        add_normal_noise(torch.zeros(3), torch.zeros(3), -1.0, **good)
    with pytest.raises(InputError, match="std"):
        add_normal_noise(torch.zeros(3), torch.zeros(3), torch.zeros(2), **good)
    with pytest.raises(InputError, match="base"):
        add_normal_noise(torch.zeros(3), torch.zeros(4), 1.0, **good)
    with pytest.raises(InputError, match="step"):
        add_normal_noise(torch.zeros(3), torch.zeros(3), 1.0, seed=0, step=2**32, stream=0)
    with pytest.raises(InputError, match="out: expected a contiguous"):
        add_normal_noise(torch.zeros(6)[::2], torch.zeros(3), 1.0, **good)
    with pytest.raises(InputError, match="seed"):
        random_bits(2**64, 0, 4)
    with pytest.raises(InputError, match="step"):
        random_bits(0, 2**32, 4)
    with pytest.raises(InputError, match="numel"):
        random_bits(0, 0, -1)
    with pytest.raises(InputError, match="bits: expected dtype int64"):
        logistic_from_bits(torch.zeros(3))
