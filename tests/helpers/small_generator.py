"""A small network for the code of the pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor, nn

import oes_fast as oes


def small_generator(noisy: Tensor, *, seed: int, **model: object) -> tuple[nn.Module, Tensor]:
    """In the place of :func:`oes_fast.fresh_generator`: a network of few channels."""
    net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=seed)
    return net, oes.noise_input(4, noisy.shape[-2:], seed=seed)


@contextmanager
def small_generators() -> Iterator[None]:
    """Inside, fresh generators are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oes, "fresh_generator", small_generator)
        yield
