"""What a seed stands for: the same numbers in every dtype, device and thread, independent of one another."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from conftest import unchanged

import oes_fast as oes
from oes_fast.flat import flatten
from oes_fast.reference.philox import level_noise, logistic_noise

SIDE = 128


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return abs(float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1]))


def test_image_noise_is_no_function_of_the_input() -> None:
    """torch makes normal numbers by Box-Muller from uniform ones: with one plain seed, those of z."""
    uniform = oes.noise_input(32, (SIDE, SIDE), seed=0).flatten()[: 3 * SIDE**2].view(-1, 16) * 10
    noise = (oes.add_noise(torch.full((1, 3, SIDE, SIDE), 0.5), 0.05, 0) - 0.5) / 0.05
    radius = (-2 * torch.log(1 - uniform[:, :8])).sqrt()
    angle = 2 * math.pi * uniform[:, 8:]
    predicted = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    assert correlation(predicted, noise) < 0.02


def test_weights_are_no_function_of_the_input() -> None:
    weight = oes.models.skip(seed=5).get_parameter("1.1.1.weight").detach()
    z = oes.noise_input(32, (SIDE, SIDE), seed=5).flatten()[: weight.numel()]
    assert correlation(weight, z) < 0.05


def test_seeds_differ() -> None:
    for draw in (
        lambda seed: oes.noise_input(1, (8, 8), seed=seed),
        lambda seed: oes.add_noise(torch.full((1, 1, 8, 8), 0.5), 0.1, seed),
    ):
        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))
        assert not torch.equal(draw(0), draw(2**64 - 1))


def digest(*tensors: torch.Tensor) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        sha.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def small(seed: int = 5, **options: Any) -> torch.nn.Module:
    return oes.models.skip(
        2, 3, **({"seed": seed, "num_channels_down": (3, 4), "filter_size_down": 3} | options)
    )


# The digests are those of torch.manual_seed(seed) and PyTorch's own initialisation.
@pytest.mark.parametrize(
    ("seed", "expected"), [(0, "34683477dfb68671"), (7, "b45134aa90523e59"), (2**64 - 1, "cc8d0cdfffe43e03")]
)
def test_published_weights_are_those_of_the_seed(seed: int, expected: str) -> None:
    assert digest(*oes.models.skip(seed=seed).state_dict().values()) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_channels_skip": (2, 0)}, "97ee8889bb99a3f0"),
        ({"need1x1_up": True}, "e83abb5e78dca12c"),
        ({"need_bias": False}, "6901303cd158dd86"),
        ({"downsample_mode": "stride", "pad": "zero", "num_channels_skip": 1}, "bdf89201dbd570c4"),
        ({"num_channels_down": (2, 3, 4)}, "f3f4528062362c52"),
    ],
)
def test_weights_of_other_networks_are_those_of_the_seed(options: dict[str, Any], expected: str) -> None:
    assert digest(*small(**options).state_dict().values()) == expected


def test_other_draws_are_those_of_the_seed() -> None:
    assert digest(oes.noise_input(3, (5, 7), seed=3)) == "2fa0cd6c6d8a490b"
    assert digest(oes.add_noise(torch.full((1, 3, 20, 20), 0.5), 0.1, seed=3)) == "1df1b163b396cf81"
    net, z = oes.fresh_generator(torch.zeros(1, 1, 20, 24), seed=4)
    assert digest(*net.state_dict().values(), z) == "10c4c36291b3c378"
    net = small(seed=0)
    every_third = torch.arange(sum(p.numel() for p in net.parameters())) % 3 == 0
    shuffled = oes.Mask.from_flat(net, every_third).shuffled(net, seed=2)
    assert digest(shuffled.flat) == "be693658d9b8f753"


@contextmanager
def defaults(dtype: torch.dtype, device: str = "cpu") -> Iterator[None]:
    """The caller's default dtype and device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def everything(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(what is drawn under a seed for an image of this dtype, noise of the image)."""
    image = torch.full((1, 3, 20, 24), 0.5, dtype=dtype, device="cpu")
    net = small(dtype=dtype, device="cpu")
    fresh, z = oes.fresh_generator(image, seed=4)
    drawn = [*net.state_dict().values(), *fresh.state_dict().values(), z]
    noise = oes.add_noise(image, 0.1, seed=3)
    assert {t.dtype for t in (*drawn, noise) if t.is_floating_point()} == {dtype}
    logits = flatten(net)
    masks = [
        oes.Mask.from_logits(net, torch.zeros_like(logits), 0.1, seed=1),
        oes.Mask.drawn(net, logits, seed=1),
        oes.Mask.from_draws(net, logits, 0.1, seed=1, draws=2),
    ]
    kept = [mask.flat for mask in (*masks, masks[0].shuffled(net, seed=2))]
    return [*drawn, *kept], noise


@pytest.fixture(scope="module")
def drawn_in_float32() -> tuple[list[torch.Tensor], torch.Tensor]:
    return everything(torch.float32)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_gives_the_same_in_every_dtype_whatever_the_defaults(
    drawn_in_float32: tuple[list[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
    default: torch.dtype,
    device: str,
) -> None:
    with defaults(default, device):
        drawn, noise = everything(dtype)
    expected, expected_noise = drawn_in_float32
    for got, wanted in zip(drawn, expected, strict=True):
        assert torch.equal(got.float() if got.is_floating_point() else got, wanted)
    torch.testing.assert_close(noise.float(), expected_noise, rtol=0, atol=1e-7)


def test_a_network_without_dtype_has_the_default_one_and_the_weights_of_its_seed() -> None:
    with defaults(torch.float64):
        net = small()
    assert {t.dtype for t in net.parameters()} == {torch.float64}
    for got, expected in zip(net.parameters(), small().parameters(), strict=True):
        assert torch.equal(got, expected.double())
    with torch.device("meta"):
        assert all(t.is_meta for t in small().state_dict().values())


def test_a_whole_run_whatever_the_defaults() -> None:
    def run() -> list[torch.Tensor]:
        image = torch.linspace(0, 1, 3 * 16 * 16, dtype=torch.float32, device="cpu").view(1, 3, 16, 16)
        net, z = small(dtype=torch.float32, device="cpu"), oes.noise_input(2, (16, 16), seed=1)
        tensors: list[torch.Tensor] = []
        for backend in ("auto", "torch", "reference"):
            how = {"steps": 2, "backend": backend, "verify": backend == "auto"}  # once is enough
            found = oes.search_mask(net, z, image, density=0.9, **how)
            fit = oes.train_sparse(net, found.mask, z, image, clean=image, average=0.9, **how)
            assert fit.average is not None
            tensors += [
                found.logits,
                found.mask.flat,
                fit.output,
                fit.average,
                *fit.net.state_dict().values(),
            ]
        levels = oes.search_mask(net, z, image, density=0.5, steps=2, levels=3)
        return [*tensors, levels.logits, levels.level]

    expected = run()
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "meta")):
        with defaults(dtype, device):
            found = run()
        for got, wanted in zip(found, expected, strict=True):
            assert torch.equal(got, wanted)


def test_noise_kept_for_one_default_device_is_not_given_for_another() -> None:
    with torch.device("meta"):
        assert logistic_noise(3, 1, 8).is_meta
        assert level_noise(3, 1, 8, 3).is_meta
    assert not logistic_noise(3, 1, 8).is_meta
    assert not level_noise(3, 1, 8, 3).is_meta


def test_no_global_generator_is_read_or_changed() -> None:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with unchanged():
        before, _ = everything(torch.float32)
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True))  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        after, _ = everything(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_without_a_seed_the_global_generator_draws() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = small(seed=None)
    assert digest(*net.state_dict().values()) == digest(*small().state_dict().values())


def test_threads_that_build_networks_at_the_same_time_get_the_weights_of_their_seeds() -> None:
    seeds = range(8)
    expected = {seed: digest(*small(seed).state_dict().values()) for seed in seeds}
    wrong: list[int] = []
    started = threading.Barrier(len(seeds))

    def build(seed: int) -> None:
        started.wait()
        for _ in range(10):
            torch.rand(3)  # what others do with the global generator is no matter either
            if digest(*small(seed).state_dict().values()) != expected[seed]:
                wrong.append(seed)

    threads = [threading.Thread(target=build, args=(seed,)) for seed in seeds]
    with torch.random.fork_rng(devices=[]):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
