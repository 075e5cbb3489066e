"""Running statistics of a batch norm: checks and choice of backend.

Operators: ``running_stats_BACKEND``, which updates its first two arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_number, check_tensor
from oes_fast.backends import resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library


def running_stats(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    channels: Tensor | None = None,
    offset: Tensor | None = None,
    momentum: float = 0.1,
    correction: float = 1.0,
    backend: str = "auto",
) -> None:
    """Move running statistics towards those of a batch, in place: r += momentum * (v - r).

    Args:
        running_mean: float32 or float64, shape [M], contiguous, updated; v = mean + offset.
        running_var: shape [M], contiguous, updated; v = var * correction.
        mean: of the batch, shape [C], see :func:`batch_norm_act`.
        var: of the batch, biased, shape [C].
        channels: which of the M channels the C are, int64, shape [C], each in [0, M) and none twice (not
            checked); None where C = M and they are the same.
        offset: added to ``mean``, shape [C], or None: what a convolution before it left out.
        momentum: weight of the new statistics, in [0, 1].
        correction: n / (n - 1), n the number of values a channel, for an unbiased running variance; > 0.
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only).

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a number out of range.
        BackendError: the named backend cannot run here.

    Example:
        >>> mean, var = torch.zeros(2), torch.ones(2)
        >>> oes.functional.running_stats(mean, var, torch.ones(2), torch.ones(2), momentum=0.1)
        >>> mean
        tensor([0.1000, 0.1000])
    """
    check_tensor("running_mean", running_mean, ndim=1)
    check_tensor("running_var", running_var, shape=running_mean.shape, like=running_mean)
    check_tensor("mean", mean, ndim=1, like=running_mean)
    if channels is None and mean.shape != running_mean.shape:
        raise InputError(f"mean: expected shape {tuple(running_mean.shape)}, got {tuple(mean.shape)}")
    check_tensor("var", var, shape=mean.shape, like=running_mean)
    if channels is not None:
        check_tensor("channels", channels, shape=mean.shape, dtypes=(torch.int64,), device=mean.device)
    if offset is not None:
        check_tensor("offset", offset, shape=mean.shape, like=mean)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if not running.is_contiguous():
            raise InputError(f"{name}: expected a contiguous tensor to update in place, got a strided view")
    check_number("momentum", momentum, minimum=0.0, maximum=1.0)
    check_number("correction", correction, above=0.0)
    chosen = resolve(backend, mean.device, _library.candidates(mean.dtype))
    with torch.no_grad():
        if chosen == "reference":
            reference.running_stats(
                running_mean,
                running_var,
                mean,
                var,
                channels=channels,
                offset=offset,
                momentum=momentum,
                correction=correction,
            )
            return
        channels, offset = (None if t is None else t.contiguous() for t in (channels, offset))
        _library.kernel("running_stats", chosen)(
            running_mean,
            running_var,
            mean.contiguous(),
            var.contiguous(),
            channels,
            offset,
            momentum,
            correction,
        )


class LayerStats(NamedTuple):
    """What :func:`running_stats` takes, of one layer, all contiguous."""

    running_mean: Tensor
    running_var: Tensor
    mean: Tensor
    var: Tensor
    channels: Tensor
    offset: Tensor | None
    momentum: float
    correction: float


def running_stats_of_layers(layers: Sequence[LayerStats]) -> None:
    """:func:`running_stats` of many layers in few launches on backend "triton", unchecked.

    A layer that comes twice is moved twice, in order.
    """
    with torch.no_grad():
        rest = list(layers)
        while rest:
            now: dict[int, LayerStats] = {}
            later = []
            for layer in rest:
                known = now.setdefault(layer.running_mean.data_ptr(), layer)
                if known is not layer:
                    later.append(layer)
            columns = zip(*now.values(), strict=True)
            _library.kernel("running_stats_of_layers", "triton")(*map(list, columns))
            rest = later


def _fake(*arguments: Any) -> None:
    return None


_library.define(
    "running_stats",
    "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, Tensor? channels, "
    "Tensor? offset, float momentum, float correction) -> ()",
    fake=_fake,
    module="running_stats",
)
_library.define(
    "running_stats_of_layers",
    "(Tensor(a!)[] running_means, Tensor(b!)[] running_vars, Tensor[] means, Tensor[] variances, "
    "Tensor[] channels, Tensor?[] offsets, float[] momenta, float[] corrections) -> ()",
    fake=_fake,
    module="running_stats",
)
