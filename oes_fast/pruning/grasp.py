"""GraSP: pruning that preserves gradient flow (Wang, Zhang and Grosse, ICLR 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_flag
from oes_fast.copies import copy_network
from oes_fast.entry import Entry
from oes_fast.errors import BackendError
from oes_fast.flat import flatten
from oes_fast.mask import Mask
from oes_fast.pipelines.inputs import ordinary
from oes_fast.pipelines.objective import Forward, Loss, Objective
from oes_fast.precision import DEFAULT, in_precision
from oes_fast.pruning.gradients import checked_objective, differentiable, finite_scores
from oes_fast.pruning.published import drop_above, keep_above, published_mask, share_to_prune
from oes_fast.pruning.select import check_options, select

_EPS = 1e-10  # of the published code


@in_precision
def grasp_scores(
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
    """S = -w * (H g), with gradient g and Hessian H of mean((G(w, z) - noisy)^2) at the weights as they are.

    That is the paper's equation 8 with its sign. Removing weight i changes the gradient's squared norm
    ||g||^2 by 2 S_i to first order: S > 0 says that gradients would grow without the weight, S < 0 that they
    would shrink. Weights of the largest S are the ones to prune. H g is the Hessian times a vector, the
    gradient g held constant in it: nothing is differentiated that multiplies by g.

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
        backend: "auto" or "torch" for the rewritten network on PyTorch operations, "reference" for the
            network as it is; the kernels have no second derivative.
        verify: compare the rewritten network with ``net`` first, which takes ten times as long as the score.
        precision: as for :func:`oes_fast.train_sparse`.

    Returns:
        Of the network's dtype, on its device, shape [number of parameters].

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: the scores are not finite.
        BackendError: a backend without second derivatives.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> scores = oes.pruning.grasp_scores(net, z, noisy)
        >>> mask = oes.pruning.select(net, -scores, 0.2)  # the largest are pruned
    """
    options = {"forward": forward, "loss": loss, "weight": weight, "tv": tv}
    objective = checked_objective(net, z, noisy, options)
    weights, _, product = _hessian_product(net, z, objective, entry, backend, verify, by_weights=False)
    return -weights * product


@in_precision
def grasp(
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
    """Prune the weights of the largest -w * (H g), whose removal reduces the gradient's norm least.

    :func:`grasp_scores` has the score and its sign.

    Biases, scales and shifts of norms: all kept by default, as the paper prunes weights of convolutions and
    linear layers alone. With small="score" they compete by the same score: that of a shift at 0 is 0, which
    lies between the weights to keep and those to prune, so that it is kept at densities over about a half.

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
        published: the published code's mask when it is told to prune 1 - density; all parameters compete,
            whatever ``small`` says. With scope "global" it drops what lies above the
            int(n * (1 - density))-th highest of g + H w. With "tensor" it scores by |g| / |g + H w| and keeps
            the share it should prune, above the int(size * (1 - density))-th highest of each tensor.
        backend: "auto" or "torch" for the rewritten network on PyTorch operations, "reference" for the
            network as it is; the kernels have no second derivative.
        verify: compare the rewritten network with ``net`` first, which takes ten times as long as the score.
        precision: as for :func:`oes_fast.train_sparse`.

    Returns:
        The mask. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: an argument does not fit, with its name.
        OESError: the scores are not finite.
        BackendError: a backend without second derivatives.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> oes.pruning.grasp(net, z, noisy, density=0.2).kept
        674
    """
    options: dict[str, Any] = {"forward": forward, "loss": loss, "weight": weight, "tv": tv}
    if check_flag("published", published):
        share = share_to_prune(net, density, scope=scope, seed=seed)
        objective = checked_objective(net, z, noisy, options)
        _, gradient, product = _hessian_product(net, z, objective, entry, backend, verify, by_weights=True)
        score = gradient + product
        if scope == "global":
            flat = drop_above(score, share)
        else:
            flat = keep_above(net, gradient.abs() / (score.abs() + _EPS), share, scope=scope)
        return published_mask(net, flat, density, scope=scope, seed=seed, method="grasp")
    check_options(net, density, scope=scope, small=small, seed=seed)
    scores = grasp_scores(
        net, z, noisy, **options, entry=entry, backend=backend, verify=verify, precision=precision
    )
    return select(net, -scores, density, scope=scope, small=small, seed=seed, method="grasp")


def _hessian_product(
    net: nn.Module,
    z: Tensor,
    objective: Objective,
    entry: Entry | None,
    backend: str,
    verify: bool,
    *,
    by_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights w, gradient g, H w if ``by_weights`` else H g), each of shape [n]."""
    check_flag("verify", verify)
    if backend not in ("auto", "torch", "reference"):
        raise BackendError(
            f'backend: expected "auto", "torch" or "reference" for a second derivative, got {backend!r}'
        )
    net = copy_network(net).train()
    z = ordinary(z)
    function = differentiable(net, z, backend, entry=entry, verify=verify, twice=True)
    weights = flatten(net).requires_grad_()
    with torch.enable_grad():
        loss = objective.loss(objective.check(function(weights, z)))
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        vector = (weights if by_weights else gradient).detach()
        (product,) = torch.autograd.grad(gradient, weights, vector)
    return weights.detach(), gradient.detach(), finite_scores("product of Hessian and gradient", product)
