"""Where a mask search starts: the logits of its first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_number, check_tensor
from oes_fast.errors import InputError
from oes_fast.mask import Mask
from oes_fast.pipelines.checkpoint import digest
from oes_fast.reference.level_mask import initial_logit

Start = float | Mask | Tensor  # what a caller may give

MASK_PROBABILITY = 0.5  # of the weights that a mask keeps, to be kept in the first step
"""Where the relaxation moves most, so that a search may drop them as easily as it keeps them."""


def start_logits(
    start: Start | None, net: nn.Module, *, shape: Sequence[int], like: Tensor, density: float
) -> Tensor:
    """Logits to start from.

    Args:
        start: as :func:`oes_fast.search_mask` takes it.
        net: that the mask is for.
        shape: of the logits, [n] or [q - 1, n]. A probability is shared by the q - 1 levels above 0.
        like: tensor of the dtype and device wanted.
        density: the wanted one, which is the probability of what a mask drops.

    Returns:
        Tensor of shape [], or of ``shape``, in memory of its own.

    Raises:
        InputError: ``start`` is none of these, out of range, or of another shape, dtype or device.
        MaskMismatchError: the mask is of another network.
    """
    levels = 2 if len(shape) == 1 else shape[0] + 1
    if start is None:
        return like.new_tensor(initial_logit(levels))
    if isinstance(start, Tensor):
        return check_tensor("start", start, shape=tuple(shape), like=like, finite=True).detach().clone()
    if isinstance(start, Mask):
        start.check(net)
        high, low = (_logit(share, levels) for share in (MASK_PROBABILITY, density))
        flat = start.flat.to(like.device)
        return torch.where(flat, like.new_tensor(high), like.new_tensor(low)).expand(*shape).contiguous()
    if isinstance(start, str | bytes) or not isinstance(start, int | float):
        raise InputError(
            f"start: expected a probability, a mask or a tensor of logits, got {type(start).__name__}"
        )
    return like.new_tensor(_logit(check_number("start", start, above=0.0, below=1.0), levels))


def start_settings(start: Start | None) -> dict[str, Any]:
    """What a result depends on, as JSON values: a mask or logits by their digest."""
    if start is None:
        return {}
    if isinstance(start, Mask):
        return {"start": f"mask {digest(start.flat)}"}
    if isinstance(start, Tensor):
        return {"start": f"logits {digest(start)}"}
    return {"start": float(start)}


def _logit(probability: float, levels: int) -> float:
    each = probability / (levels - 1)
    return math.log(each) - math.log1p(-each)
