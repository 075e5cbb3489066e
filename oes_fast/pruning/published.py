"""How the published code of OES cuts its masks: what ``published=True`` asks for.

Its option ``sparse`` is called the share to prune, here 1 - density. Three of its cuts keep what they name:
random, magnitude and the global GraSP. SNIP, SynFlow and the local GraSP keep that share instead. All its
parameters compete; those that are 0 at the start, the shifts of the batch norms, are taken for pruned already
by random and magnitude.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_integer, check_number
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, check_network, flatten
from oes_fast.mask import Mask, made_for
from oes_fast.pruning.select import highest, warn_of_empty_layers

_SCOPES = ("global", "tensor")


def published_mask(
    net: nn.Module, flat: Tensor, density: float, *, scope: str, seed: int, **settings: Any
) -> Mask:
    """The mask ``flat`` with the settings that :func:`oes_fast.pruning.select` gives one, and "published"."""
    warn_of_empty_layers(net, flat)
    made_with = {"density": float(density), "scope": scope, "small": "score", "seed": int(seed)}
    return made_for(net, flat, {**made_with, **settings, "published": True})


def share_to_prune(
    net: nn.Module, density: float, *, scope: str, seed: int, scopes: tuple[str, ...] = _SCOPES
) -> float:
    """1 - density, the published code's ``sparse``.

    Raises:
        InputError: the published code has no such scope, or numbers out of range.
    """
    check_network(net)
    check_number("density", density, above=0.0, maximum=1.0)
    if scope not in scopes:
        wanted = " or ".join(map(repr, scopes))
        raise InputError(f"scope: expected {wanted}, as the published code has them, got {scope!r}")
    check_integer("seed", seed, minimum=0, below=2**64)
    return 1.0 - density


def prune_nonzero(net: nn.Module, scores: Tensor, share: float, *, scope: str, seed: int) -> Tensor:
    """Drop parameters that are 0, and the lowest ceil(share * count) scores of the others.

    Args:
        net: the network with its initial weights.
        scores: shape [n].
        share: to prune.
        scope: "global" over all, or "tensor" within each tensor.
        seed: of the tie-break.

    Returns:
        bool on the CPU, shape [n].
    """
    nonzero = (flatten(net) != 0).cpu()
    kept = torch.zeros_like(nonzero)
    for places in _pieces(net, scope):
        alive = places[nonzero[places]]
        keep = alive.numel() - math.ceil(alive.numel() * share)
        kept[alive[highest(scores.cpu(), alive, keep, seed)]] = True
    return kept


def keep_above(net: nn.Module, scores: Tensor, share: float, *, scope: str) -> Tensor:
    """Keep the scores above the int(share * count)-th highest, over all or within each tensor.

    Raises:
        InputError: a tensor so small that the share is none of it: the published code fails there.
    """
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device="cpu")
    for places in _pieces(net, scope):
        kept[places] = scores.cpu()[places] > _threshold(scores.cpu()[places], share)
    return kept


def drop_above(scores: Tensor, share: float) -> Tensor:
    """Keep the scores up to the int(share * n)-th highest."""
    return (scores <= _threshold(scores, share)).cpu()


def _pieces(net: nn.Module, scope: str) -> list[Tensor]:
    layout = FlatLayout.of(net)
    everything = torch.arange(layout.numel, device="cpu")
    return [everything] if scope == "global" else list(everything.split(layout.sizes))


def _threshold(scores: Tensor, share: float) -> Tensor:
    count = int(scores.numel() * share)
    if count == 0:
        raise InputError(
            f"density: expected a share to prune, 1 - density, of one of {scores.numel()} weights at least, "
            f"as the published code needs of each tensor it cuts, got density={1 - share:g}"
        )
    return torch.topk(scores, count).values[-1]
