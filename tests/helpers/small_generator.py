"""A small network for the code of the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor, nn

import oes_fast as oes


def small_generator(
    noisy: Tensor,
    *,
    seed: int,
    shape: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    **model: object,
) -> tuple[nn.Module, Tensor]:
    """In the place of :func:`oes_fast.fresh_generator`: few channels, RGB without a shape."""
    channels, *size = (3, *noisy.shape[-2:]) if shape is None else shape
    small = {"num_channels_down": (8, 8), "filter_size_down": 3}
    net = oes.models.skip(4, channels, seed=seed, **small | dict(options or {}))
    return net, oes.noise_input(4, size, seed=seed)


@contextmanager
def small_generators() -> Iterator[None]:
    """Inside, fresh generators are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oes, "fresh_generator", small_generator)
        yield
