"""How a mask spreads its weights over the layers, beside another mask of the same network."""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy.stats import spearmanr
from torch import nn

import oes_fast as oes
from benchmarks.table_text import Result, table
from oes_fast.analysis.layers import row_names

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DIGITS = 6


def compared(found: oes.Mask, published: oes.Mask, net: nn.Module) -> Result:
    """What two masks of ``net`` have in common, in all and layer by layer, with numbers of JSON alone.

    Returns:
        "layers": of each row of :func:`oes_fast.analysis.layer_densities` its name, its "weights", those
        "kept" by either mask and kept by both ("shared"), those that chance would have both keep
        ("expected"), and of convolutions the "dead" output channels under either.
        "overlap coefficient": of the two profiles, a profile being the share of a mask's weights that lies in
        each layer: the sum of the smaller shares, 1 for equal profiles.
        "rank correlation", "correlation": Spearman's and Pearson's, of the layers' densities; None where a
        mask has one density in all.
        "masked scales": batch norm scales that either mask drops, each of which ends a channel, of "scales".
        "dead channels": what the rewriting leaves out under either, of "channels".
        "kept", "shared", "expected", "expected by layer": see :class:`oes_fast.analysis.Overlap`.

    Raises:
        MaskMismatchError: a mask belongs to another network.
    """
    both = oes.analysis.overlap(found, published, net)
    profiles = np.array([layer.kept for layer in both.layers], float)
    profiles /= np.maximum(profiles.sum(0), 1)
    densities = np.array([np.divide(layer.kept, max(layer.count, 1)) for layer in both.layers])
    masks = (found, published)
    channels = [{row.name: row for row in oes.analysis.dead_channels(net, mask)} for mask in masks]
    dead = {name: [of[name].dead for of in channels] for name in channels[0]}
    scales = [masked_scales(net, mask) for mask in masks]
    return {
        "kept": list(both.kept),
        "weights": both.count,
        "shared": both.shared,
        "expected": round(both.expected, 1),
        "expected by layer": round(both.expected_by_layer or 0.0, 1),
        "overlap coefficient": round(float(profiles.min(1).sum()), DIGITS),
        "rank correlation": correlation(densities, ranks=True),
        "correlation": correlation(densities, ranks=False),
        "masked scales": [dropped for dropped, _ in scales],
        "scales": scales[0][1],
        "dead channels": [sum(row.dead for row in of.values()) for of in channels],
        "channels": sum(row.channels for row in channels[0].values()),
        "layers": [
            {
                "name": layer.name,
                "weights": layer.count,
                "kept": list(layer.kept),
                "shared": layer.shared,
                "expected": round(layer.expected, 1),
                "dead": dead.get(layer.name),
            }
            for layer in both.layers
        ],
    }


def correlation(densities: np.ndarray, *, ranks: bool) -> float | None:
    """Of the two columns [layers, 2]: Spearman's of the ranks or Pearson's; None where one is constant."""
    first, second = densities.T
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of constant columns, which give NaN
        found = spearmanr(first, second)[0] if ranks else np.corrcoef(first, second)[0, 1]
    return None if math.isnan(found) else round(float(found), DIGITS)


def masked_scales(net: nn.Module, mask: oes.Mask) -> tuple[int, int]:
    """(scales of batch norms that the mask drops, scales there are)."""
    kept = mask.to_dict(net)
    scales = [
        kept[name]
        for name in row_names(net)
        if name.endswith("weight") and isinstance(net.get_submodule(name.rpartition(".")[0]), NORMS)
    ]
    return sum(int((~each).sum()) for each in scales), sum(each.numel() for each in scales)


def tables(profile: Result, others: str = "published") -> str:
    """The two masks layer by layer, and what they have in common in words."""
    lines = []
    for layer in profile["layers"]:
        kept = [f"{100 * kept / layer['weights']:.1f} %" for kept in layer["kept"]]
        dead = ["", ""] if layer["dead"] is None else layer["dead"]
        chance = f"{layer['expected']:,.0f}"
        lines.append([layer["name"], f"{layer['weights']:,}", *kept, f"{layer['shared']:,}", chance, *dead])
    header = ["layer", "weights", "kept", f"kept, {others}", "kept by both", "by chance"]
    text = table([*header, "dead channels", f"dead channels, {others}"], lines)
    kept = profile["kept"][0]
    shared, chance, by_layer = (
        f"{100 * profile[name] / kept:.1f} %" for name in ("shared", "expected", "expected by layer")
    )
    scales, dead = (
        " and ".join(f"{n:,}" for n in profile[name]) for name in ("masked scales", "dead channels")
    )
    rank, linear = (
        "undefined" if profile[name] is None else f"{profile[name]:.3f}"
        for name in ("rank correlation", "correlation")
    )
    coefficient = f"{100 * profile['overlap coefficient']:.1f} %"
    return (
        f"{text}\nThe shares of the layers in the two masks overlap by {coefficient}; the layers' densities "
        f"have a rank correlation of {rank} and a linear one of {linear}. Of {profile['scales']:,} batch "
        f"norm scales {scales} are dropped, of {profile['channels']:,} channels {dead} are dead (this mask "
        f"and the {others} one). {shared} of the kept weights are the same; masks drawn at random would "
        f"share {chance}, and with the densities of these in every layer {by_layer}.\n"
    )
