"""One step of the mask search from the gradient of the masked weights to new logits."""

from __future__ import annotations

from torch import Tensor

from oes_fast.reference.gumbel_mask import gumbel_mask_backward
from oes_fast.reference.mask_kl import mask_kl, mask_kl_backward
from oes_fast.reference.masked_adam import masked_adam


def mask_update(
    logits: Tensor,
    grad: Tensor,
    w0: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    seed: int,
    step: int,
    temperature: float = 0.2,
    kl: float = 1e-9,
    density: float = 0.05,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    kl_value: bool = False,
) -> Tensor | None:
    """Chain rule through the sampled mask, KL gradient and Adam, in place on the logits and both moments.

    Minimises  loss(w0 * m) + kl * sum KL(Ber(sigmoid s) || Ber(density))  (Ghosh et al. 2024, equation 3):
    ds = grad * w0 * m (1 - m) / T + kl * dKL/ds, with m drawn again from (seed, step).

    Args:
        logits: s, shape [n], or [q - 1, n] for q > 2 levels, updated.
        grad: gradient of the loss in the masked weights w0 * m, shape [n].
        w0: initial weights, shape [n].
        exp_avg: Adam's first moment, shape of ``logits``, updated.
        exp_avg_sq: Adam's second moment, shape of ``logits``, updated.
        seed: key of the noise.
        step: search step, from 0; the same that drew the mask.
        temperature: T > 0.
        kl: weight of the KL term.
        density: p0 in (0, 1).
        lr: learning rate.
        betas: decay of Adam's moments.
        eps: Adam's eps.
        kl_value: return the KL sum of the logits as they were before the update.

    Returns:
        Scalar tensor, or None without ``kl_value``.
    """
    value = mask_kl(logits, density=density) if kl_value else None
    _, grad_logits = gumbel_mask_backward(grad, w0, logits, seed=seed, step=step, temperature=temperature)
    grad_logits.add_(mask_kl_backward(logits, density=density), alpha=kl)
    masked_adam(logits, grad_logits, exp_avg, exp_avg_sq, step=step, lr=lr, betas=betas, eps=eps)
    return value
