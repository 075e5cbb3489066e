"""Adam on a flat buffer of weights, of which a mask keeps some (Kingma and Ba 2015, algorithm 1)."""

from __future__ import annotations

from torch import Tensor


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
    """One step of Adam, in place on ``weights``, ``exp_avg`` and ``exp_avg_sq``.

    Args:
        weights: shape [n].
        grad: gradient of the loss in ``weights``, shape [n].
        exp_avg: first moment, shape [n], zeros before the first step.
        exp_avg_sq: second moment, shape [n], zeros before the first step.
        step: number of steps taken before this one (0 for the first).
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        mask: bool of shape [n]; the gradient of what it does not keep is taken as zero. None keeps all.
    """
    if mask is not None:
        grad = grad.masked_fill(~mask, 0)  # not grad * mask: NaN there is to count as zero too
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    step_size = lr / (1 - beta1 ** (step + 1))
    denominator = (exp_avg_sq.sqrt() / (1 - beta2 ** (step + 1)) ** 0.5).add_(eps)
    weights.addcdiv_(exp_avg, denominator, value=-step_size)
