"""The sparsity term of the mask search: checks and choice of backend."""

from __future__ import annotations

from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_logits, check_number


def mask_kl(logits: Tensor, *, density: float) -> Tensor:
    """Sum over all elements of KL(Ber(sigmoid s) || Ber(density)) (Ghosh et al. 2024, equation 3).

    Args:
        logits: s, float32 or float64, shape [n]; shape [q - 1, n] for a mask of q > 2 levels, whose logits
            have a term each, as published.
        density: p0 in (0, 1), the wanted share of kept weights.

    Returns:
        Scalar tensor; differentiable in ``logits``.

    Raises:
        InputError: a shape, dtype or density that does not fit.

    Example:
        >>> logits = torch.zeros(10)  # every probability is 0.5
        >>> bool(oes.functional.mask_kl(logits, density=0.5) < oes.functional.mask_kl(logits, density=0.1))
        True
    """
    check_logits(logits)
    check_number("density", density, above=0.0, below=1.0)
    return reference.mask_kl(logits, density=density)
