"""Adam on a flat buffer of weights: checks and choice of backend.

Operators: ``masked_adam_BACKEND``, which updates the weights and both moments; all contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.backends import AUTO, resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library
from oes_fast.ops._clock import Clock


def masked_adam(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int | Clock,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1), in place; as torch.optim.Adam.

    Args:
        weights: float32 or float64, shape [n], updated.
        grad: gradient of the loss in ``weights``, shape [n].
        exp_avg: first moment, shape [n], updated; zeros before the first step.
        exp_avg_sq: second moment, shape [n], updated; zeros before the first step.
        step: number of steps taken before this one (0 for the first); or a clock of this ``lr`` and these
            ``betas``, for launches that are recorded, with "triton" and "cuda" alone.
        lr: learning rate, > 0.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root of the second moment.
        mask: bool, shape [n]; the gradient of what it does not keep is taken as zero. None keeps all.
        backend: "auto", "reference", "torch" (the same here), "cpu", "triton" (float32 only) or "cuda". The
            kernels update contiguous tensors only; "auto" takes the reference for others.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a number out of range, or a strided tensor to
            update where a backend with kernels was named.
        BackendError: the named backend cannot run here.

    Example:
        >>> weights, grad = torch.ones(2), torch.ones(2)
        >>> exp_avg, exp_avg_sq = torch.zeros(2), torch.zeros(2)
        >>> keep = torch.tensor([True, False])
        >>> oes.functional.masked_adam(weights, grad, exp_avg, exp_avg_sq, step=0, lr=0.1, mask=keep)
        >>> weights
        tensor([0.9000, 1.0000])
    """
    check_tensor("weights", weights, ndim=1)
    for name, value in {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}.items():
        check_tensor(name, value, shape=weights.shape, like=weights)
    if mask is not None:
        check_tensor("mask", mask, shape=weights.shape, dtypes=(torch.bool,), device=weights.device)
    if not isinstance(step, Clock):
        check_integer("step", step, minimum=0)
    check_number("lr", lr, above=0.0)
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise InputError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        check_number("betas", beta, minimum=0.0, below=1.0)
    check_number("eps", eps, minimum=0.0)
    chosen = resolve(backend, weights.device, _library.candidates(weights.dtype, cuda=True))
    updated = {"weights": weights, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    strided = [name for name, value in updated.items() if not value.is_contiguous()]
    if strided and chosen != "reference":
        if backend != AUTO:
            raise InputError(
                f"{strided[0]}: expected a contiguous tensor to update in place, got a strided view"
            )
        chosen = "reference"
    with torch.no_grad():
        if isinstance(step, Clock):
            step.check(chosen, weights)
            mask = None if mask is None else mask.contiguous()
            launch = _library.launcher(chosen, "masked_adam", "masked_adam")
            launch(
                weights,
                grad.contiguous(),
                exp_avg,
                exp_avg_sq,
                mask,
                0,
                lr,
                *betas,
                eps,
                ticks=step.ticks,
                corrections=step.corrections,
            )
            return
        if chosen == "reference":
            reference.masked_adam(
                weights, grad, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps, mask=mask
            )
            return
        mask = None if mask is None else mask.contiguous()
        _library.kernel("masked_adam", chosen)(
            weights, grad.contiguous(), exp_avg, exp_avg_sq, mask, step, lr, *betas, eps
        )


def _fake(*arguments: Any) -> None:
    return None


_library.define(
    "masked_adam",
    "(Tensor(a!) weights, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor? mask, SymInt step, "
    "float lr, float beta1, float beta2, float eps) -> ()",
    fake=_fake,
    module="masked_adam",
    backends=("cpu", "triton", "cuda"),
)
