"""A pattern of taps in the orders and offsets the sparse kernels read, made once for a pattern and shape."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_INT32_ELEMENTS = 2**31  # of an image up to which 32-bit offsets do


@dataclass(frozen=True)
class TapIndex:
    """Taps in segments: those of one image plane of the result lie together.

    Attributes:
        starts: first tap of each segment, and the end, int32 [segments + 1].
        offsets: where each tap reads in one image of the source, in elements, int32 or int64 [nnz].
        order: place of each tap among the values, int32 [nnz].
        ordered: ``order`` is not simply 0, 1, 2 ...
        group_segments, group_starts: segment and first tap of each group of at most ``group`` taps of one
            segment, int32 [groups].
        group: see there.
        digest: names the pattern.
    """

    starts: Tensor
    offsets: Tensor
    order: Tensor
    ordered: bool
    group_segments: Tensor
    group_starts: Tensor
    group: int
    digest: int

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self.starts) - 1

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.group_starts)


_indices: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def tap_index(
    taps: Tensor,
    key: tuple[object, ...],
    *,
    segments: int,
    source_elements: int,
    make: Callable[[Tensor], tuple[Tensor, Tensor]],
    group: int = 8,
) -> TapIndex:
    """The index of a pattern for one use, made at the first call.

    Args:
        taps: (o, c, u, v), int32 [nnz, 4]; not to be changed afterwards.
        key: what ``make`` depends on beside the taps.
        segments: how many.
        source_elements: of one image of the source.
        make: from taps as int64 on the CPU to (segment of each tap, offset of each tap).
        group: taps of a group.
    """
    known = _indices.setdefault(taps, {})
    key = (*key, segments, group)
    if key not in known:
        cpu = taps.detach().cpu().long()
        segment, offsets = make(cpu)
        order = torch.sort(segment, stable=True).indices
        counts = torch.bincount(segment, minlength=segments)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        groups = (counts + group - 1) // group
        group_segments = torch.repeat_interleave(torch.arange(segments), groups)
        before = torch.repeat_interleave(groups.cumsum(0) - groups, groups)
        group_starts = starts[group_segments] + (torch.arange(len(group_segments)) - before) * group
        wide = torch.int64 if source_elements >= _INT32_ELEMENTS else torch.int32

        def placed(tensor: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
            return tensor.to(dtype).contiguous().to(taps.device)

        known[key] = TapIndex(
            placed(starts),
            placed(offsets[order], wide),
            placed(order),
            not torch.equal(order, torch.arange(len(order))),
            placed(group_segments),
            placed(group_starts),
            group,
            zlib.crc32(taps.detach().cpu().contiguous().numpy().tobytes()),
        )
    return known[key]
