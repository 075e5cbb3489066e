"""What the tests of forward operators and losses share: a problem, operators, a script."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import build_problem

import oes_fast as oes


def half(image):
    return F.avg_pool2d(image, 2)


def fourier(image):
    return torch.fft.fft2(image, norm="ortho")[..., ::2]


def drawn(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WEIGHT = (drawn(1, 1, 16, 20) > 0.4) * drawn(1, 3, 16, 20, seed=1)


@pytest.fixture(scope="module")
def small():
    return build_problem(size=(16, 20), density=0.7)


def script(small, path, *, resume=False, stop=None, noisy=None, **options):
    """What a script does that is run twice: its functions are made anew each time."""
    return oes.train_sparse(
        small.net,
        small.mask,
        small.z,
        half(small.noisy) if noisy is None else noisy,
        **options,
        steps=6,
        record_every=2,
        backend="torch",
        verify=False,
        callback=None if stop is None else lambda info: info.step >= stop,
        checkpoint=path,
        checkpoint_seconds=0.0,
        resume=resume,
    )
