"""Adam on a flat buffer of weights: checks and choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.errors import InputError


def masked_adam(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    mask: Tensor | None = None,
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1), in place; as torch.optim.Adam.

    Args:
        weights: float32 or float64, shape [n], updated.
        grad: gradient of the loss in ``weights``, shape [n].
        exp_avg: first moment, shape [n], updated; zeros before the first step.
        exp_avg_sq: second moment, shape [n], updated; zeros before the first step.
        step: number of steps taken before this one (0 for the first).
        lr: learning rate, > 0.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment.
        mask: bool, shape [n]; the gradient of what it does not keep is taken as zero. None keeps all.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a number out of range.
    """
    check_tensor("weights", weights, ndim=1)
    for name, value in {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}.items():
        check_tensor(name, value, shape=weights.shape, like=weights)
    if mask is not None:
        check_tensor("mask", mask, shape=weights.shape, dtypes=(torch.bool,), device=weights.device)
    check_integer("step", step, minimum=0)
    check_number("lr", lr, above=0.0)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise InputError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        check_number("betas", beta, minimum=0.0, below=1.0)
    check_number("eps", eps, minimum=0.0)
    with torch.no_grad():
        reference.masked_adam(
            weights, grad, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps, mask=mask
        )
