"""OES as a way to a mask among the others: the logits of a search (Ghosh et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from oes_fast.errors import InputError
from oes_fast.mask import Mask
from oes_fast.pipelines.search import search_mask
from oes_fast.pruning.select import check_options, select
from oes_fast.reference.level_mask import expected_level


def oes(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    density: float,
    scope: str = "global",
    small: str = "score",
    seed: int = 0,
    **search: Any,
) -> Mask:
    """Keep the weights of the largest logits that :func:`oes_fast.search_mask` learns.

    Biases, scales and shifts of norms compete by their logits, as published: what training would do without
    is dropped. A shift that starts at 0 has no gradient to its logit, which the KL term alone then moves, and
    is dropped all but always. With small="keep" all of them are kept, whatever the search found.

    The cut is that of ``search_mask(...).mask``, of round(density * n) weights as every method here keeps,
    where that keeps int(density * n).

    Args:
        net: generator with its initial weights; left alone.
        z: fixed input, shape [1, C, H, W].
        noisy: image to fit, shape [1, C', H, W].
        density: share of all parameters to keep, in (0, 1); p0 of the search.
        scope: "global", "tensor" or "erdos_renyi_kernel", see :func:`oes_fast.pruning.select`.
        small: "score" or "keep", see :func:`oes_fast.pruning.select`.
        seed: of the search and the choice among equal logits, in [0, 2^64).
        **search: further arguments of :func:`oes_fast.search_mask`: steps, lr, kl, entry, checkpoint and
            others, but for mask_option.

    Returns:
        The mask, with the settings of the search. Warns with :class:`oes_fast.EmptyLayerWarning` of layers
        that lose everything.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: as :func:`oes_fast.search_mask`.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> oes.pruning.oes(net, z, noisy, density=0.2, steps=5).kept
        674
    """
    check_options(net, density, scope=scope, small=small, seed=seed)
    if "mask_option" in search:
        raise InputError(
            "mask_option: expected none, since the mask keeps the largest logits, got "
            f"{search['mask_option']!r}; call oes.search_mask"
        )
    found = search_mask(net, z, noisy, density=density, seed=seed, **search)
    logits = found.logits if found.logits.ndim == 1 else expected_level(found.logits)
    settings = {
        "method": "oes",
        **{k: v for k, v in found.mask.settings.items() if k not in ("density", "seed")},
    }
    return select(net, logits, density, scope=scope, small=small, seed=seed, **settings)
