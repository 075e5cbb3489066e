"""Taps of a convolution in the lists that the kernels walk, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from oes_fast.kernels.chain.conv_taps import Taps

ROW = 256  # of a tap's place: row * ROW + column


@dataclass(frozen=True)
class TapLists:
    """Outputs in groups: a tap of a group has a weight for each output of it, where that output has the tap.

    List ``group * phases + phase`` has the taps of a group and a phase.

    Attributes:
        group: outputs of one.
        groups: how many.
        phases: how many.
        begins: of each list, and the end, int32 [groups * phases + 1].
        taps: (channel, row * ROW + column) of each, int32 [count, 2].
        longest: taps of the longest list.
        index: flat weights that the tap's weight for an output is the sum of, -1 for none, int64
            [count, group, m].
    """

    group: int
    groups: int
    phases: int
    begins: Tensor
    taps: Tensor
    longest: int
    index: np.ndarray

    @property
    def count(self) -> int:
        """Taps of all lists."""
        return len(self.index)


def _grouped(taps: Taps, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(distinct taps of the groups: list's group, phase, channel, place; which of them each tap is)."""
    place = taps.row * ROW + taps.column
    keys = np.stack([taps.output // group, taps.phase, taps.channel, place], axis=1).reshape(-1, 4)
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    return distinct, which.reshape(-1)


def count_grouped_taps(taps: Taps, group: int) -> int:
    """Taps of all groups of that size together."""
    return len(_grouped(taps, group)[0])


def tap_lists(
    taps: Taps, outputs: int, phases: int, group: int, multiple: int, device: torch.device | str
) -> TapLists:
    """The lists of a convolution.

    Args:
        taps: of it.
        outputs: how many.
        phases: how many.
        group: outputs of a group.
        multiple: each list has a multiple of so many taps, the last of them its first one without weights.
        device: of begins and taps.
    """
    distinct, which = _grouped(taps, group)
    groups = -(-outputs // group)
    lists = distinct[:, 0] * phases + distinct[:, 1]
    counts = np.bincount(lists, minlength=groups * phases)
    padded = -(-counts // multiple) * multiple
    begins = np.concatenate([[0], np.cumsum(padded)])
    # A tap's number in its list, behind the lists before it.
    places = begins[lists] + np.arange(len(lists)) - (np.cumsum(counts) - counts)[lists]
    begun = counts > 0
    firsts = (np.cumsum(counts) - counts)[begun]
    words = np.repeat(distinct[firsts, 2:], padded[begun], axis=0).astype(np.int32)
    words[places] = distinct[:, 2:]
    index = np.full((begins[-1], group, taps.weights.shape[1]), -1, np.int64)
    index[places[which], taps.output % group] = taps.weights
    return TapLists(
        group,
        groups,
        phases,
        torch.from_numpy(begins.astype(np.int32)).to(device),
        torch.from_numpy(words).to(device),
        int(padded.max(initial=0)),
        index,
    )
