"""One step of the mask search on the logits: checks and choice of backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_logits, check_number, check_tensor, check_written
from oes_fast.backends import resolve
from oes_fast.ops import _library
from oes_fast.ops._clock import Clock


def mask_update(
    logits: Tensor,
    grad: Tensor,
    w0: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    seed: int,
    step: int | Clock,
    temperature: float = 0.2,
    kl: float = 1e-9,
    density: float = 0.05,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    kl_value: bool = False,
    backend: str = "auto",
) -> Tensor | None:
    """Chain rule through the sampled mask, KL gradient and Adam, in place on the logits and both moments.

    Minimises  loss(w0 * m) + kl * sum KL(Ber(sigmoid s) || Ber(density))  (Ghosh et al. 2024, equation 3):
    ds = grad * w0 * m (1 - m) / T + kl * dKL/ds, with m drawn again from (seed, step). The kernels do it in
    one pass over memory; their bits do not depend on the number of threads. Logits of shape [q - 1, n],
    of a mask of q > 2 levels, have a KL term each, as published.

    Args:
        logits: s, float32 or float64, shape [n] or [q - 1, n], contiguous, updated.
        grad: gradient of the loss in the masked weights of :func:`gumbel_mask`, shape [n].
        w0: initial weights, shape [n].
        exp_avg: Adam's first moment, shape of ``logits``, contiguous, updated; at first zeros.
        exp_avg_sq: Adam's second moment, shape of ``logits``, contiguous, updated; at first zeros.
        seed: key of the noise, in [0, 2^64).
        step: search step, from 0, in [0, 2^32), the same that drew the mask; or a clock of this ``lr`` and
            these ``betas``, for launches that are recorded, with "triton" and "cuda" alone.
        temperature: T > 0.
        kl: weight of the KL term, >= 0.
        density: p0 in (0, 1).
        lr: learning rate, > 0.
        betas: decay of Adam's moments, in [0, 1).
        eps: Adam's eps, >= 0.
        kl_value: return the KL sum of the logits as they were before the update.
        backend: "auto", "reference", "torch" (the same here), "cpu", "triton" (float32 only) or "cuda".

    Returns:
        Scalar tensor of the logits' dtype, or None without ``kl_value``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, a number out of range, or an updated tensor
            that is not contiguous or shares memory with another argument.
        BackendError: the named backend cannot run here, or has no more than two levels.

    Example:
        >>> w0, grad, logits = torch.ones(4), torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.zeros(4)
        >>> exp_avg, exp_avg_sq = torch.zeros(4), torch.zeros(4)
        >>> oes.functional.mask_update(logits, grad, w0, exp_avg, exp_avg_sq, seed=0, step=0, kl=0.0)
        >>> logits[:2].sign()  # what raises the loss becomes less likely
        tensor([-1.,  1.])
    """
    check_logits(logits)
    others = {"grad": grad, "w0": w0, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, value in others.items():
        shape = logits.shape[-1:] if name in ("grad", "w0") else logits.shape
        check_tensor(name, value, shape=shape, like=logits)
    check_written({"logits": logits, **others}, ("logits", "exp_avg", "exp_avg_sq"))
    check_integer("seed", seed, minimum=0, below=2**64)
    if not isinstance(step, Clock):
        check_integer("step", step, minimum=0, below=2**32)
    check_number("temperature", temperature, above=0.0)
    check_number("kl", kl, minimum=0.0)
    check_number("density", density, above=0.0, below=1.0)
    check_number("lr", lr, above=0.0)
    for beta in betas:
        check_number("betas", beta, minimum=0.0, below=1.0)
    check_number("eps", eps, minimum=0.0)
    candidates = _library.candidates(logits.dtype, cuda=True, levels=logits.ndim == 2)
    chosen = resolve(backend, logits.device, candidates)
    with torch.no_grad():
        if isinstance(step, Clock):
            step.check(chosen, logits)
            numbers = (seed, 0, temperature, kl, density, lr, *betas, eps, kl_value)
            launch = _library.launcher(chosen, "mask_update", "mask_update")
            value = launch(
                logits,
                grad.contiguous(),
                w0.contiguous(),
                exp_avg,
                exp_avg_sq,
                *numbers,
                ticks=step.ticks,
                corrections=step.corrections,
            )
            return value if kl_value else None
        if chosen == "reference":
            return reference.mask_update(
                logits,
                grad,
                w0,
                exp_avg,
                exp_avg_sq,
                seed=seed,
                step=step,
                temperature=temperature,
                kl=kl,
                density=density,
                lr=lr,
                betas=betas,
                eps=eps,
                kl_value=kl_value,
            )
        value = _library.kernel("mask_update", chosen)(
            logits,
            grad.contiguous(),
            w0.contiguous(),
            exp_avg,
            exp_avg_sq,
            _library.as_signed(seed),
            step,
            temperature,
            kl,
            density,
            lr,
            *betas,
            eps,
            kl_value,
        )
    return value if kl_value else None


def _fake(logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(())


_library.define(
    "mask_update",
    "(Tensor(a!) logits, Tensor grad, Tensor w0, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, SymInt seed, "
    "SymInt step, float temperature, float kl, float density, float lr, float beta1, float beta2, float eps, "
    "bool kl_value) -> Tensor",
    fake=_fake,
    module="mask_update",
    backends=("cpu", "triton", "cuda"),
)
