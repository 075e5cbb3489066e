"""From the logits of a search to its mask: the options of the published code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.mask import Mask
from oes_fast.reference.level_mask import drawn_mask, likeliest_level

# The published names are det, single and multiple.
MASK_OPTIONS = ("topk", "drawn", "mean")


@torch.no_grad()
def extract_mask(
    net: nn.Module,
    w0: Tensor,
    logits: Tensor,
    run: Callable[[Tensor], Tensor],
    *,
    option: str,
    density: float,
    seed: int,
    draws: int,
    settings: dict[str, Any],
) -> tuple[Mask, Tensor, Tensor]:
    """The mask, the level of every weight under it, and the image of the initial weights.

    The published code takes the mean of the outputs as well, but multiplies each drawn mask onto the weights
    that the ones before it have left, so that its tenth draw has next to no weights: not repeated here.

    Args:
        net: network the mask is for.
        w0: its initial weights, shape [n].
        logits: s, shape [n] or [q - 1, n].
        run: image [1, C, H, W] of weights [n].
        option: one of ``MASK_OPTIONS``, see :func:`oes_fast.search_mask`.
        density: share to keep.
        seed: of tie-break and draws.
        draws: masks that "mean" takes.
        settings: kept with the mask.

    Returns:
        (mask, levels [n] in [0, 1], image).
    """

    def drawn(draw: int) -> Tensor:
        return drawn_mask(logits.cpu(), seed=seed, draw=draw).to(w0.device)

    if option == "drawn":
        mask = Mask.drawn(net, logits, seed=seed, density=density, **settings)
        level = drawn(0)
        return mask, level, run(w0 * level)
    if option == "mean":
        mask = Mask.from_draws(net, logits, density, seed=seed, draws=draws, **settings)
    else:
        mask = Mask.from_logits(net, logits, density, seed=seed, **settings)
    level = mask.flat.to(w0)
    if logits.ndim == 2:
        level = level * likeliest_level(logits)
    if option == "mean":
        return mask, level, torch.stack([run(w0 * drawn(draw)) for draw in range(draws)]).mean(0)
    return mask, level, run(w0 * level)
