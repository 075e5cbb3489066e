"""Magnitude pruning at initialisation: keep the weights that are largest as they are drawn."""

from __future__ import annotations

from torch import Tensor, nn

from oes_fast._checks import check_flag
from oes_fast.flat import check_network, flatten
from oes_fast.mask import Mask
from oes_fast.pipelines.divergence import check_finite_network
from oes_fast.pruning.published import prune_nonzero, published_mask, share_to_prune
from oes_fast.pruning.select import select


def magnitude_scores(net: nn.Module) -> Tensor:
    """|w| of every parameter.

    Args:
        net: any network with finite parameters.

    Returns:
        On the CPU, of the network's dtype, shape [number of parameters].

    Raises:
        InputError: a weight is NaN or infinite.

    Example:
        >>> float(oes.pruning.magnitude_scores(torch.nn.BatchNorm2d(4)).sum())  # scales of 1, shifts of 0
        4.0
    """
    check_finite_network(check_network(net))
    return flatten(net).abs().cpu()


def magnitude(
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
    """Keep the weights of the largest absolute value.

    Biases, scales and shifts of norms: all kept by default. With small="score" they compete by their absolute
    values: a scale, which starts at 1, is always kept, since weights are drawn smaller; a shift, which starts
    at 0, never, unless everything is (with scope "tensor" the shifts of a norm are all equal, and the seed
    chooses among them).

    Args:
        net: network with its initial weights; left alone.
        z: not used: every way to a mask takes it.
        noisy: not used.
        density: share of all parameters to keep, in (0, 1].
        scope: "global", "tensor" or "erdos_renyi_kernel", see :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the choice among equal magnitudes, in [0, 2^64).
        published: cut as the published code does, which has scope "global" alone: parameters that are 0 at
            the start, the shifts of batch norms, are dropped, and of the others the smallest
            ceil(count * (1 - density)). All of them compete, whatever ``small`` says.

    Returns:
        The mask. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: an argument does not fit, with its name.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> oes.pruning.magnitude(net, density=0.2).kept
        674
    """
    scores = magnitude_scores(net)
    if check_flag("published", published):
        share = share_to_prune(net, density, scope=scope, seed=seed, scopes=("global",))
        flat = prune_nonzero(net, scores, share, scope=scope, seed=seed)
        return published_mask(net, flat, density, scope=scope, seed=seed, method="magnitude")
    return select(net, scores, density, scope=scope, small=small, seed=seed, method="magnitude")
