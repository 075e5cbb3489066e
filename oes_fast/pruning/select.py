"""From a score of every weight to a mask of exactly the density asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_integer, check_number, check_tensor
from oes_fast.errors import EmptyLayerWarning, InputError, warn_caller
from oes_fast.flat import FlatLayout, check_network
from oes_fast.mask import Mask, made_for
from oes_fast.reference.philox import TIE_BREAK, random_bits

SCOPES = ("global", "tensor", "erdos_renyi_kernel")
SMALL = ("keep", "score")

_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_SHOWN = 5  # names in a message


def small_parameters(net: nn.Module) -> Tensor:
    """Which elements of the flat vector belong to small parameters: biases, and scales and shifts of norms.

    Every parameter is small that is not the weight of a convolution or linear layer. In layers of another
    kind, which torch does not name, a parameter is a weight if two of its dimensions or more are longer
    than 1.

    Args:
        net: any network with parameters.

    Returns:
        bool on the CPU, shape [number of parameters], in parameters() order.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
        >>> int(oes.pruning.small_parameters(net).sum())  # of 63: bias, scale and shift
        9
    """
    sizes = torch.tensor(FlatLayout.of(net).sizes, device="cpu")
    return torch.tensor([not is_weight for is_weight in _weights(net)], device="cpu").repeat_interleave(sizes)


def select(
    net: nn.Module,
    scores: Tensor,
    density: float,
    *,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    among: Tensor | None = None,
    **settings: Any,
) -> Mask:
    """Keep the round(density * n) weights of the highest scores, n of all parameters together.

    Equal scores at a threshold are chosen among by the Philox stream ``TIE_BREAK`` of the seed, as
    :meth:`oes_fast.Mask.from_logits` does, alike on every platform.

    Args:
        net: the network the mask is for.
        scores: shape [n], in parameters() order, without NaN; -inf marks what is kept last, +inf first.
        density: share of all parameters to keep, in (0, 1], small parameters counted.
        scope: "global" for the highest scores wherever they are; "tensor" for the same share of every
            parameter tensor, by the largest remainder, so that the total is exact; "erdos_renyi_kernel" for a
            share of a convolution's weights in proportion to
            (n_in + n_out + kh + kw) / (n_in * n_out * kh * kw), at most all of them (Evci et al. 2020).
        small: what becomes of small parameters (:func:`small_parameters`): with "keep" they are all kept and
            counted, and weights of convolutions and linear layers compete for the rest; with "score" they
            compete by their own scores.
        seed: of the tie-break, in [0, 2^64).
        among: what may be kept, such as the mask of a round before: bool, shape [n]; None for everything.
            With scopes other than "global", shares of a tensor are of all its elements.
        **settings: kept with the mask, beside density, scope, small and seed.

    Returns:
        The mask, with exactly round(density * n) weights kept. Warns with :class:`EmptyLayerWarning` of
        layers that lose all their weights.

    Raises:
        InputError: scores of another length or with NaN, a density that keeps nothing or, with "keep", less
            than the small parameters are; no such scope or ``small``.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
        >>> oes.pruning.select(net, torch.arange(63.0), 0.5).kept
        32
    """
    flat = choose(net, scores, density, scope=scope, small=small, seed=seed, among=among)
    warn_of_empty_layers(net, flat)
    made_with = {"density": float(density), "scope": scope, "small": small, "seed": int(seed)}
    return made_for(net, flat, {**made_with, **settings})


def choose(
    net: nn.Module,
    scores: Tensor,
    density: float,
    *,
    scope: str,
    small: str,
    seed: int,
    among: Tensor | None = None,
) -> Tensor:
    """The flat mask of :func:`select`, bool on the CPU, without a warning."""
    check_options(net, density, scope=scope, small=small, seed=seed)
    layout = FlatLayout.of(net)
    check_tensor("scores", scores, shape=(layout.numel,))
    scores = scores.detach().cpu()
    if bool(scores.isnan().any()):
        raise InputError(
            f"scores: expected numbers, got {int(scores.isnan().sum())} NaN of {layout.numel}: weights, "
            "input or image may be too large for the network's dtype"
        )
    keep = kept_of(layout.numel, density)
    flat = torch.zeros(layout.numel, dtype=torch.bool, device="cpu")
    competing = torch.ones(layout.numel, dtype=torch.bool, device="cpu")
    if among is not None:
        competing = check_tensor("among", among, shape=(layout.numel,), dtypes=(torch.bool,)).cpu()
        if int(competing.sum()) < keep:
            raise InputError(f"among: expected {keep} weights at least, got {int(competing.sum())}")
    if small == "keep":
        flat = small_parameters(net)
        if not bool(competing[flat].all()):
            raise InputError('among: expected all small parameters, which small="keep" keeps, got some')
        competing = competing & ~flat
        keep -= int(flat.sum())
    if scope == "global":
        places = competing.nonzero().flatten()
        flat[places[highest(scores, places, keep, seed)]] = True
        return flat
    pieces, sizes, weights = [], [], []
    for begin, size, shape in zip(_begins(layout.sizes), layout.sizes, layout.shapes, strict=True):
        places = begin + competing[begin : begin + size].nonzero().flatten()
        if places.numel():
            pieces.append(places)
            sizes.append(size)
            weights.append(sum(shape) / size if scope == "erdos_renyi_kernel" else 1.0)
    room = [places.numel() for places in pieces]
    for places, quota in zip(pieces, quotas(sizes, weights, keep, room), strict=True):
        flat[places[highest(scores, places, quota, seed)]] = True
    return flat


def check_options(net: nn.Module, density: float, *, scope: str, small: str, seed: int) -> None:
    """Raise :class:`InputError` unless :func:`select` takes these, before scores take their time."""
    numel = FlatLayout.of(check_network(net)).numel
    check_number("density", density, above=0.0, maximum=1.0)
    check_choice("scope", scope, SCOPES)
    check_choice("small", small, SMALL)
    check_integer("seed", seed, minimum=0, below=2**64)
    keep = kept_of(numel, density)
    if keep == 0:
        raise InputError(f"density: expected to keep one weight of {numel} at least, got {density}")
    if small == "keep" and keep < (count := int(small_parameters(net).sum())):
        raise InputError(
            f"density: expected {count / numel:.4g} at least, the share of the {count} small parameters "
            f'(biases, scales and shifts of norms) of {numel}, which small="keep" keeps, got {density}; '
            'or small="score"'
        )


def kept_of(numel: int, density: float) -> int:
    """Weights that a density keeps: round(density * numel)."""
    return round(density * numel)


def quotas(
    sizes: Sequence[int], weights: Sequence[float], keep: int, room: Sequence[int] | None = None
) -> list[int]:
    """How many elements of each tensor to keep, ``keep`` together.

    Tensor i keeps the share min(1, c * weights[i]) with the c that makes the total ``keep``; what whole
    numbers leave over goes to the largest remainders, the first of equal ones.

    Args:
        sizes: elements of each.
        weights: positive.
        keep: at most the sum of ``room``.
        room: at most how many of each, where that is less than their sizes.
    """
    room = sizes if room is None else room
    full = [False] * len(sizes)
    while True:
        left = keep - sum(size for size, whole in zip(sizes, full, strict=True) if whole)
        total = sum(s * w for s, w, whole in zip(sizes, weights, full, strict=True) if not whole)
        scale = left / total if total else 0.0
        over = [not whole and scale * w >= 1 for w, whole in zip(weights, full, strict=True)]
        if not any(over):
            break
        full = [whole or more for whole, more in zip(full, over, strict=True)]
    exact = [
        float(size) if whole else scale * w * size
        for size, w, whole in zip(sizes, weights, full, strict=True)
    ]
    found = [min(most, int(share)) for most, share in zip(room, exact, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: found[i] - exact[i])
    while sum(found) < keep:  # more than once around where the room is less than the share
        for index in by_remainder:
            if sum(found) < keep and found[index] < room[index]:
                found[index] += 1
    return found


def empty_layers(net: nn.Module, flat: Tensor) -> list[str]:
    """Names of weights and of scales of norms of which a mask keeps nothing: nothing passes their layer.

    Args:
        net: the network.
        flat: bool on the CPU, shape [number of parameters].
    """
    views = FlatLayout.of(net).views(flat)
    scales = {
        id(module.weight)
        for module in net.modules()
        if isinstance(module, _NORMS) and module.weight is not None
    }
    return [
        name
        for (name, parameter), is_weight in zip(net.named_parameters(), _weights(net), strict=True)
        if (is_weight or id(parameter) in scales) and views[name].numel() and not bool(views[name].any())
    ]


def warn_of_empty_layers(net: nn.Module, flat: Tensor) -> None:
    """Warn once with :class:`EmptyLayerWarning` if a layer loses everything, naming all such layers."""
    names = empty_layers(net, flat)
    if names:
        shown = ", ".join(names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        warn_caller(
            f"mask: nothing is kept of {len(names)} layer{'s' if len(names) > 1 else ''}, {shown}{more}: "
            "no signal passes there; a higher density or another scope may help",
            EmptyLayerWarning,
        )


def _weights(net: nn.Module) -> list[bool]:
    """Whether each parameter, in parameters() order, is the weight of a convolution or linear layer."""
    found: dict[int, bool] = {}
    for module in net.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _LINEAR) and key in ("weight", "weight_orig"):  # as pruned by torch
                is_weight = True
            else:
                is_weight = not isinstance(module, _NORMS) and sum(side > 1 for side in parameter.shape) >= 2
            found[id(parameter)] = found.get(id(parameter), False) or is_weight
    return [found[id(parameter)] for parameter in net.parameters()]


def highest(scores: Tensor, places: Tensor, keep: int, seed: int) -> Tensor:
    """Which of ``places`` have the ``keep`` highest scores, as indices into ``places``.

    Args:
        scores: shape [n], on the CPU.
        places: int64, indices of the scores that compete.
        keep: how many, from 0 to all.
        seed: equal scores at the threshold are chosen among by the stream ``TIE_BREAK`` over all n.
    """
    if keep == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    competing = scores[places]
    threshold = torch.kthvalue(competing, competing.numel() - keep + 1).values
    above = (competing > threshold).nonzero().flatten()
    ties = (competing == threshold).nonzero().flatten()
    left = keep - above.numel()
    if ties.numel() > left:
        ties = ties[torch.argsort(_tie_break(seed, scores.numel())[places[ties]], stable=True)[:left]]
    return torch.cat([above, ties])


@functools.lru_cache(maxsize=1)
def _tie_break(seed: int, numel: int) -> Tensor:
    # Asked for once for every tensor.
    return random_bits(seed, 0, numel, stream=TIE_BREAK, device="cpu")


def _begins(sizes: Sequence[int]) -> list[int]:
    return list(itertools.accumulate(sizes, initial=0))[:-1]
