"""How far two masks keep the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from oes_fast._checks import described
from oes_fast.analysis.layers import row_names
from oes_fast.errors import InputError, MaskMismatchError
from oes_fast.flat import FlatLayout
from oes_fast.mask import Mask


@dataclass(frozen=True)
class LayerOverlap:
    """What two masks have in common in one layer, or in one kind of small parameter.

    Attributes:
        name: of the layer, as :attr:`Layer.name`.
        count: weights there are.
        kept: weights that the first and the second mask keep.
        shared: weights that both keep.
        expected: weights that two masks chosen at random, with so many kept in this layer, would share.
    """

    name: str
    count: int
    kept: tuple[int, int]
    shared: int
    expected: float


@dataclass(frozen=True)
class Overlap:
    """What two masks have in common.

    Attributes:
        count: weights there are.
        kept: weights that the first and the second mask keep.
        shared: weights that both keep.
        jaccard: shared weights as a share of those that one of the two keeps; 1 for equal masks, 0 where they
            share nothing (and where both keep nothing).
        expected: weights that two masks chosen at random among all weights would share: the mean
            kept[0] kept[1] / count of the hypergeometric distribution.
        deviation: standard deviation of that number.
        layers: the same in every layer; empty without a network.
    """

    count: int
    kept: tuple[int, int]
    shared: int
    jaccard: float
    expected: float
    deviation: float
    layers: tuple[LayerOverlap, ...] = ()

    @property
    def share(self) -> tuple[float, float]:
        """Shared weights as a share of those that the first and the second mask keep."""
        return _share(self.shared, self.kept[0]), _share(self.shared, self.kept[1])

    @property
    def expected_by_layer(self) -> float | None:
        """Weights that random masks with the densities of these two in every layer would share.

        Masks may agree in nothing but how much they keep of each layer; then they share about as many. None
        without a network.
        """
        return sum(layer.expected for layer in self.layers) if self.layers else None


def overlap(mask_a: Mask, mask_b: Mask, net: nn.Module | None = None) -> Overlap:
    """What two masks of one network have in common, beside what chance would give.

    Args:
        mask_a: the first.
        mask_b: the second.
        net: the network they are for (weights do not count): adds the figures of every layer.

    Returns:
        :class:`Overlap`.

    Raises:
        MaskMismatchError: the masks belong to two networks, or to another than ``net``.

    Example:
        >>> net = torch.nn.Conv2d(2, 3, 3)  # 57 parameters
        >>> a, b = (oes.Mask.from_flat(net, torch.arange(57) < n) for n in (10, 20))
        >>> both = oes.analysis.overlap(a, b)
        >>> both.shared, both.share, both.jaccard, round(both.expected, 2)
        (10, (1.0, 0.5), 0.5, 3.51)
    """
    for name, mask in (("mask_a", mask_a), ("mask_b", mask_b)):
        if not isinstance(mask, Mask):
            raise InputError(f"{name}: expected an oes_fast.Mask, got {described(mask)}")
    if mask_a.fingerprint != mask_b.fingerprint:
        raise MaskMismatchError(
            f"mask_b: expected a mask of the network {mask_a.fingerprint} as mask_a, got one of "
            f"{mask_b.fingerprint}"
        )
    a, b = mask_a.flat, mask_b.flat
    count, kept_a, kept_b = a.numel(), mask_a.kept, mask_b.kept
    shared = int((a & b).sum())
    variance = kept_a * kept_b * (count - kept_a) * (count - kept_b) / (count**2 * max(count - 1, 1))
    return Overlap(
        count,
        (kept_a, kept_b),
        shared,
        _share(shared, kept_a + kept_b - shared),
        kept_a * kept_b / count,
        math.sqrt(variance),
        () if net is None else _layers(mask_a, mask_b, net),
    )


def _layers(mask_a: Mask, mask_b: Mask, net: nn.Module) -> tuple[LayerOverlap, ...]:
    mask_a.check(net)
    layout = FlatLayout.of(net)
    views_a, views_b = layout.views(mask_a.flat), layout.views(mask_b.flat)
    rows: dict[str, list[int]] = {}
    for parameter, name in row_names(net).items():
        a, b = views_a[parameter], views_b[parameter]
        row = rows.setdefault(name, [0, 0, 0, 0])
        for i, number in enumerate((a.numel(), int(a.sum()), int(b.sum()), int((a & b).sum()))):
            row[i] += number
    return tuple(
        LayerOverlap(name, count, (kept_a, kept_b), shared, kept_a * kept_b / count if count else 0.0)
        for name, (count, kept_a, kept_b, shared) in rows.items()
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
