"""Batch normalisation followed by an activation: checks, autograd and choice of backend.

Operators: ``batch_norm_act_BACKEND`` returns the result with the mean and the biased variance of each channel
that it used (in evaluation copies of those given), ``batch_norm_act_backward_BACKEND`` the gradients of x,
weight and bias; one that is not needed has no elements. ``activation`` is the index in
``reference.ACTIVATIONS``; both statistics are given in evaluation and None in training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_choice, check_integer, check_number, check_tensor
from oes_fast.backends import resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library
from oes_fast.ops.running_stats import running_stats


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
    pad: int = 0,
    backend: str = "auto",
) -> Tensor:
    """act((x - mean) / sqrt(var + eps) * weight + bias), channel by channel (Ioffe and Szegedy 2015), padded.

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
        pad: reflected pixels added on every side, in [0, min(H, W)).
        backend: "auto", "reference", "torch" (the same here), "cpu" or "triton" (float32 only).

    Returns:
        Tensor of shape [N, C, H + 2 pad, W + 2 pad]; differentiable in ``x``, ``weight`` and ``bias``, twice
        with backend "reference".

    Raises:
        InputError: shapes, dtypes or devices that do not fit; one value a channel in training; no running
            statistics outside it.
        BackendError: the named backend cannot run here.

    Example:
        >>> oes.functional.batch_norm_act(torch.rand(1, 4, 8, 8), activation="elu", slope=1.0, pad=2).shape
        torch.Size([1, 4, 12, 12])
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
    check_integer("pad", pad, minimum=0, below=max(1, min(x.shape[2:])))
    if training and x.numel() <= x.shape[1]:
        raise InputError(f"x: expected more than one value a channel in training, got shape {tuple(x.shape)}")
    if (running_mean is None) != (running_var is None):
        raise InputError("running_mean, running_var: expected both or none, got one")
    if not training and running_mean is None:
        raise InputError("running_mean, running_var: expected both where training is False, got None")
    chosen = resolve(backend, x.device, _library.candidates(x.dtype))
    if chosen == "reference":
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
            pad=pad,
        )
    statistics = (None, None) if training else (running_mean, running_var)
    y, mean, var = batch_norm_act_with_statistics(
        x, weight, bias, *statistics, eps=eps, activation=activation, slope=slope, pad=pad, backend=chosen
    )
    if training and running_mean is not None and running_var is not None:
        values = x.numel() // x.shape[1]
        correction = values / (values - 1)
        # The kernels of running statistics want them contiguous, which a view of a larger buffer need not be.
        to_update = chosen if running_mean.is_contiguous() and running_var.is_contiguous() else "reference"
        update = running_stats if to_update == chosen else _update_strided
        update(
            running_mean, running_var, mean, var, momentum=momentum, correction=correction, backend=to_update
        )
    return y


def batch_norm_act_with_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    *,
    eps: float,
    activation: str,
    slope: float,
    pad: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`batch_norm_act` on a backend with kernels, unchecked: (result, mean, biased variance).

    Without ``mean`` and ``var`` it takes those of ``x``. No running statistics are touched.
    """
    mean, var, weight, bias = (None if t is None else t.contiguous() for t in (mean, var, weight, bias))
    code = reference.ACTIVATIONS.index(activation)
    operator = _library.kernel("batch_norm_act", backend)
    return operator(x.contiguous(), weight, bias, mean, var, eps, code, slope, pad)


def _update_strided(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, **options: Any
) -> None:
    del options["backend"]
    with torch.no_grad():
        reference.running_stats(running_mean, running_var, mean, var, **options)


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    activation: int,
    slope: float,
    pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, rows, columns = x.shape
    return x.new_empty(n, c, rows + 2 * pad, columns + 2 * pad), x.new_empty(c), x.new_empty(c)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    activation: int,
    slope: float,
    pad: int,
    of_batch: bool,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    c = x.shape[1]
    return grad_x, x.new_empty(c if needs_weight else 0), x.new_empty(c if needs_bias else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, given, _, *ctx.numbers = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)  # nobody has gradients of mean and variance: no zeros are made for them
    ctx.of_batch = given is None
    ctx.save_for_backward(x, weight, bias, mean, var)


def _backward(ctx: Any, backend: str, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    needs = ctx.needs_input_grad[:3]
    operator = _library.kernel("batch_norm_act_backward", backend)
    found = operator(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers, ctx.of_batch, *needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 6)


_library.define(
    "batch_norm_act",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, SymInt activation, "
    "float slope, SymInt pad) -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    module="batch_norm_act",
)
_library.define(
    "batch_norm_act_backward",
    "(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps, "
    "SymInt activation, float slope, SymInt pad, bool of_batch, bool needs_x, bool needs_weight, "
    "bool needs_bias) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    module="batch_norm_act",
)
_library.define_backward("batch_norm_act", _backward, _setup_context)
_library.define_once_differentiable("batch_norm_act")
