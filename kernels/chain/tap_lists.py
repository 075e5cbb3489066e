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
        taps: (channel, row * ROW + column) of each, int32 [count, 2]; a run of some has one place.
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
    """(distinct taps of the groups: list's group, phase, place, channel; which of them each tap is)."""
    # Numbered without gaps, so that a table of all places there may be is small: sorting would take minutes
    # for the dense network.
    sizes = [int(column.max(initial=0)) + 1 for column in (taps.phase, taps.row, taps.column, taps.channel)]
    key = taps.output // group
    for size, column in zip(sizes, (taps.phase, taps.row, taps.column, taps.channel), strict=True):
        key = key * size + column
    there = np.zeros(int(key.max(initial=-1)) + 1, bool)
    there[key] = True
    which = (np.cumsum(there) - 1)[key]
    distinct, parts = np.flatnonzero(there), []
    for size in reversed(sizes):
        distinct, part = np.divmod(distinct, size)
        parts.append(part)
    channel, column, row, phase = parts
    return np.stack([distinct, phase, row * ROW + column, channel], axis=1), which


def _blocks(distinct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first of the taps of each list and place, how many)."""
    begins = np.flatnonzero(np.any(distinct[1:, :3] != distinct[:-1, :3], axis=1)) + 1
    begins = np.concatenate([[0], begins]) if len(distinct) else begins
    return begins, np.diff(np.append(begins, len(distinct)))


def count_grouped_taps(taps: Taps, group: int, multiple: int) -> int:
    """Taps of all lists together."""
    _, counts = _blocks(_grouped(taps, group)[0])
    return int((-(-counts // multiple) * multiple).sum())


def tap_lists(
    taps: Taps, outputs: int, phases: int, group: int, multiple: int, device: torch.device | str
) -> TapLists:
    """The lists of a convolution.

    Args:
        taps: of it.
        outputs: how many.
        phases: how many.
        group: outputs of a group.
        multiple: a list has runs of so many taps that read at one place; the last of them repeat one without
            weights where there are not so many.
        device: of begins and taps.
    """
    distinct, which = _grouped(taps, group)
    groups = -(-outputs // group)
    firsts, counts = _blocks(distinct)
    padded = -(-counts // multiple) * multiple
    behind = np.cumsum(padded)
    # A tap's number in its run, behind the runs before it.
    places = np.arange(len(distinct)) + np.repeat(behind - padded - firsts, counts)
    words = np.repeat(distinct[firsts][:, [3, 2]], padded, axis=0).astype(np.int32)
    words[places, 0] = distinct[:, 3]
    index = np.full((len(words), group, taps.weights.shape[1]), -1, np.int64)
    index[places[which], taps.output % group] = taps.weights
    lists = distinct[firsts, 0] * phases + distinct[firsts, 1]
    lengths = np.bincount(lists, weights=padded, minlength=groups * phases).astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    return TapLists(
        group,
        groups,
        phases,
        torch.from_numpy(begins.astype(np.int32)).to(device),
        torch.from_numpy(words).to(device),
        int(lengths.max(initial=0)),
        index,
    )
