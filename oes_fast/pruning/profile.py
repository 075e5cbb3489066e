"""Masks drawn at random with the layer-wise densities of a mask that OES found."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from oes_fast._checks import check_integer, check_number
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout, check_network
from oes_fast.mask import Mask, made_for
from oes_fast.named_masks import parameter_names
from oes_fast.pruning.random import random_scores
from oes_fast.pruning.select import highest, kept_of, quotas, warn_of_empty_layers

_FILE = "layer_profile.json"


def layer_profile() -> Mapping[str, float]:
    """The layer profile that the package brings: densities of the published mask of the image "pepper".

    It keeps 5 % of the weights of ``oes.models.skip()``, and was found by the authors of OES; docs/pruning.md
    says by which command its profile was made.

    Returns:
        By name of each parameter of ``oes.models.skip()``, the share of its elements that the mask keeps, in
        [0, 1]. It cannot be changed.

    Example:
        >>> profile = oes.pruning.layer_profile()
        >>> profile["3.1.weight"], profile["1.7.1.7.1.4.1.weight"]  # a late and an early convolution
        (0.258247, 0.011963)
    """
    layers: Mapping[str, float] = _bundled()["layers"]
    return layers


def profile(net: nn.Module, *, density: float | None = None, seed: int = 0) -> Mask:
    """Draw a mask at random whose layers are as dense as those of a mask that OES found.

    Neither an image nor a search is needed. Which weights of a tensor are kept is drawn from the Philox
    stream ``RANDOM_SCORES`` of the seed; how many, :func:`layer_profile` says. At another density than its
    own, every tensor keeps a share in proportion to that of the profile, at most all of it.

    Args:
        net: the network the mask is for, whose parameters all have names of ``oes.models.skip()``: that
            network with any numbers of channels, for images of any. Left alone.
        density: share of all parameters to keep, in (0, 1]; None for what the profile comes to in ``net``,
            0.05 for the published network.
        seed: of the draw, in [0, 2^64).

    Returns:
        The mask, with exactly round(density * n) weights kept. Warns with
        :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: a parameter of the network has no density in the profile, or an argument does not fit.

    Example:
        >>> oes.pruning.profile(oes.models.skip(), density=0.05, seed=1)
        Mask(150443 of 3008867 kept, 5 %, 3008867-0433f142478c)
    """
    layout, names, layers = FlatLayout.of(check_network(net)), parameter_names(net), layer_profile()
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise InputError(
            "net: expected a network whose parameters have the names of oes.models.skip(), which the layer "
            f"profile is of, got {len(unknown)} of other names, such as {unknown[0]}"
        )
    check_integer("seed", seed, minimum=0, below=2**64)
    shares = [layers[name] for name in names]
    if density is None:
        density = sum(share * size for share, size in zip(shares, layout.sizes, strict=True)) / layout.numel
    check_number("density", density, above=0.0, maximum=1.0)
    keep = kept_of(layout.numel, density)
    if keep == 0:
        raise InputError(f"density: expected to keep one weight of {layout.numel} at least, got {density}")
    scores = random_scores(net, seed=seed)
    flat = torch.zeros(layout.numel, dtype=torch.bool, device="cpu")
    begin = 0
    for size, quota in zip(layout.sizes, quotas(layout.sizes, shares, keep), strict=True):
        places = torch.arange(begin, begin + size, device="cpu")
        flat[places[highest(scores, places, quota, seed)]] = True
        begin += size
    warn_of_empty_layers(net, flat)
    settings = {"method": "profile", "density": float(density), "seed": int(seed)}
    return made_for(net, flat, {**settings, "profile": _bundled()["source"]})


@functools.cache
def _bundled() -> Mapping[str, Any]:
    found = json.loads(files("oes_fast.pruning").joinpath(_FILE).read_text("utf-8"))
    return {**found, "layers": MappingProxyType(found["layers"])}
