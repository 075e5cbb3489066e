"""SNIP: single-shot pruning by connection sensitivity (Lee, Ajanthan and Torr, ICLR 2019)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from oes_fast._checks import check_flag
from oes_fast.entry import Entry
from oes_fast.mask import Mask
from oes_fast.pipelines.objective import Forward, Loss
from oes_fast.precision import DEFAULT, in_precision
from oes_fast.pruning.gradients import checked_objective, loss_gradient
from oes_fast.pruning.published import keep_above, published_mask, share_to_prune
from oes_fast.pruning.select import check_options, select


@in_precision
def snip_scores(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    weight: Tensor | None = None,
    entry: Entry | None = None,
    tv: float = 0.0,
    backend: str = "auto",
    verify: bool = False,
    precision: str = DEFAULT,
) -> Tensor:
    """|g * w| with the gradient g of mean((G(w, z) - noisy)^2) at the weights as they are.

    The paper divides by the sum of all scores, which changes no order and is left out.

    Args:
        net: generator with its initial weights; left alone. It runs in training mode.
        z: fixed input, shape [1, C, H, W].
        noisy: image, shape [1, C', H', W'], or with ``forward`` a measurement.
        forward: as for :func:`oes_fast.train_sparse`, and so are ``loss``, ``weight`` and ``tv``: what they
            make of the image takes the place of the mean squared error.
        loss: of (measured, noisy).
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        backend: as for :func:`oes_fast.train_sparse`.
        verify: compare the rewritten network with ``net`` first, which takes ten times as long as the score.
        precision: as for :func:`oes_fast.train_sparse`.

    Returns:
        Of the network's dtype, on its device, shape [number of parameters].

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: the gradient is not finite.
        BackendError: the backend cannot run here.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> oes.pruning.snip_scores(net, z, noisy).shape
        torch.Size([3371])
    """
    options = {"forward": forward, "loss": loss, "weight": weight, "tv": tv}
    objective = checked_objective(net, z, noisy, options)
    weights, gradient = loss_gradient(net, z, objective, entry=entry, backend=backend, verify=verify)
    return (weights * gradient).abs()


@in_precision
def snip(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    weight: Tensor | None = None,
    entry: Entry | None = None,
    tv: float = 0.0,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    published: bool = False,
    backend: str = "auto",
    verify: bool = False,
    precision: str = DEFAULT,
) -> Mask:
    """Keep the weights whose removal changes the loss most, to first order: |g * w|, see :func:`snip_scores`.

    Biases, scales and shifts of norms: all kept by default, as the paper prunes connections alone. With
    small="score" they compete by the same score. A shift that starts at 0 has score 0 and is never kept by
    it; a convolution's bias before a batch norm has no effect on the loss, and gradient 0.

    Args:
        net: generator with its initial weights; left alone. It runs in training mode.
        z: fixed input, shape [1, C, H, W].
        noisy: image, shape [1, C', H', W'], or with ``forward`` a measurement.
        forward: as for :func:`oes_fast.train_sparse`, and so are ``loss``, ``weight`` and ``tv``: what they
            make of the image takes the place of the mean squared error.
        loss: of (measured, noisy).
        weight: of each squared error.
        entry: which of several results of the network is the image.
        tv: weight of the image's total variation.
        density: share of all parameters to keep, in (0, 1].
        scope: "global", "tensor" or "erdos_renyi_kernel", see :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the choice among equal scores, in [0, 2^64).
        published: the published code's mask when it is told to prune 1 - density: it scores by |g|, all
            parameters compete, whatever ``small`` says, and it keeps the share it should prune, those above
            the int(n * (1 - density))-th highest, of all or of each tensor. So density=0.95 keeps 5 %.
        backend: as for :func:`oes_fast.train_sparse`: the gradient is taken on the rewritten network.
        verify: compare the rewritten network with ``net`` first, which takes ten times as long as the score.
        precision: as for :func:`oes_fast.train_sparse`.

    Returns:
        The mask. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: the gradient is not finite.
        BackendError: the backend cannot run here.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> oes.pruning.snip(net, z, noisy, density=0.2).kept
        674
    """
    options: dict[str, Any] = {"forward": forward, "loss": loss, "weight": weight, "tv": tv}
    if check_flag("published", published):
        share = share_to_prune(net, density, scope=scope, seed=seed)
        objective = checked_objective(net, z, noisy, options)
        _, gradient = loss_gradient(net, z, objective, entry=entry, backend=backend, verify=verify)
        flat = keep_above(net, gradient.abs(), share, scope=scope)
        return published_mask(net, flat, density, scope=scope, seed=seed, method="snip")
    check_options(net, density, scope=scope, small=small, seed=seed)
    scores = snip_scores(
        net, z, noisy, **options, entry=entry, backend=backend, verify=verify, precision=precision
    )
    return select(net, scores, density, scope=scope, small=small, seed=seed, method="snip")
