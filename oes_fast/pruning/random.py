"""Random pruning: the baseline that every other way to a mask has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oes_fast._checks import check_flag, check_integer
from oes_fast.flat import FlatLayout, check_network
from oes_fast.mask import Mask
from oes_fast.pruning.published import prune_nonzero, published_mask, share_to_prune
from oes_fast.pruning.select import select
from oes_fast.reference.philox import RANDOM_SCORES, random_bits


def random_scores(net: nn.Module, *, seed: int = 0) -> Tensor:
    """Independent, uniformly distributed scores, from the Philox stream ``RANDOM_SCORES`` of the seed.

    Args:
        net: any network with parameters.
        seed: in [0, 2^64).

    Returns:
        float64 on the CPU, shape [number of parameters]: whole numbers in [0, 2^32).

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> scores = oes.pruning.random_scores(net, seed=1)
        >>> scores.shape, bool((scores >= 0).all())
        (torch.Size([3371]), True)
    """
    numel = FlatLayout.of(check_network(net)).numel
    check_integer("seed", seed, minimum=0, below=2**64)
    return random_bits(seed, 0, numel, stream=RANDOM_SCORES, device="cpu").to(torch.float64)


def random(
    net: nn.Module,
    z: Tensor | None = None,
    noisy: Tensor | None = None,
    *,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    published: bool = False,
) -> Mask:
    """Keep weights drawn at random; under one seed, the mask of a lower density is part of a higher one's.

    Biases, scales and shifts of norms: all kept by default; with small="score" each is kept with the
    probability of any weight, as one expects of a random mask, and next to no channel has its scale left.

    Args:
        net: the network the mask is for; left alone.
        z: not used: every way to a mask takes it.
        noisy: not used.
        density: share of all parameters to keep, in (0, 1].
        scope: "global" draws over all tensors together; "tensor" keeps the same share of each;
            "erdos_renyi_kernel" more of small convolutions (Evci et al. 2020). See
            :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the draw, in [0, 2^64).
        published: cut as the published code does: parameters that are 0 at the start, the shifts of batch
            norms, are dropped, and of the others ceil(count * (1 - density)), in all or in each tensor. All
            of them compete, whatever ``small`` says. Its random order, which nothing seeds, is not repeated.

    Returns:
        The mask. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: an argument does not fit, with its name.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> oes.pruning.random(net, density=0.2, scope="tensor").kept
        674
    """
    scores = random_scores(net, seed=seed)
    if check_flag("published", published):
        share = share_to_prune(net, density, scope=scope, seed=seed)
        flat = prune_nonzero(net, scores, share, scope=scope, seed=seed)
        return published_mask(net, flat, density, scope=scope, seed=seed, method="random")
    return select(net, scores, density, scope=scope, small=small, seed=seed, method="random")
