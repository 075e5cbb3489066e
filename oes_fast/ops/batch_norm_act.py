"""Batch normalisation followed by an activation: checks and choice of backend."""

from __future__ import annotations

from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_choice, check_number, check_tensor
from oes_fast.errors import InputError


def batch_norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "leaky_relu",
    slope: float = 0.2,
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias), channel by channel (Ioffe and Szegedy 2015).

    Args:
        x: float32 or float64, shape [N, C, H, W].
        weight: gamma, shape [C], or None for ones.
        bias: beta, shape [C], or None for zeros.
        running_mean: shape [C]; updated in training, used otherwise.
        running_var: shape [C]; updated in training with the unbiased variance, used otherwise.
        training: take the statistics of ``x`` (biased variance), not the running ones.
        momentum: weight of the new statistics in the running ones, in [0, 1].
        eps: added to the variance.
        activation: "none", "leaky_relu", "elu" or "silu".
        slope: of leaky_relu below zero; alpha of elu.

    Returns:
        Tensor of the shape of ``x``; differentiable in ``x``, ``weight`` and ``bias``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; one value a channel in training; no running
            statistics outside it.
    """
    check_tensor("x", x, ndim=4)
    channels = (x.shape[1],)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, vector in vectors.items():
        if vector is not None:
            check_tensor(name, vector, shape=channels, like=x)
    check_choice("activation", activation, reference.ACTIVATIONS)
    check_number("momentum", momentum, minimum=0.0, maximum=1.0)
    check_number("eps", eps, minimum=0.0)
    check_number("slope", slope)
    if training and x.numel() <= x.shape[1]:
        raise InputError(f"x: expected more than one value a channel in training, got shape {tuple(x.shape)}")
    if (running_mean is None) != (running_var is None):
        raise InputError("running_mean, running_var: expected both or none, got one")
    if not training and running_mean is None:
        raise InputError("running_mean, running_var: expected both where training is False, got None")
    return reference.batch_norm_act(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        activation=activation,
        slope=slope,
    )
