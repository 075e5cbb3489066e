"""The gradient of an image continued over its border: what lies there goes to the pixels it is a copy of."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from oes_fast.kernels.chain.kinds import PAD_REFLECT


class Fold(NamedTuple):
    """A border that a gradient has: its rows and columns, and PAD_REFLECT or PAD_REPLICATE."""

    top: int
    left: int
    bottom: int
    right: int
    padding: int

    def copies(self, rows: int, columns: int) -> int:
        """Of a line of an image of that size, on the border, at most: what ``folded`` looks for."""
        if self.padding != PAD_REFLECT.value:
            return max(self.top, self.left, self.bottom, self.right)
        return 2 if columns <= self.left + self.right + 1 or rows <= self.top + self.bottom + 1 else 1


@triton.jit
def _copies(index, before, after, size, k: tl.constexpr, PAD: tl.constexpr):
    """(whether lines of an image have copy ``k`` on its border, where in the continued image it is).

    Args:
        index: of rows or columns.
        before, after: width of the border on either side.
        size: lines of the image.
        k: of PAD_REPLICATE below the width of the border; of PAD_REFLECT 0, and 1 for the copy behind of
            lines that have one ahead as well.
    """
    last = size - 1
    if PAD == PAD_REFLECT:
        behind = (index < last) & (index >= last - after)
        place = before + 2 * last - index
        if k == 1:
            return behind & (index <= before), place
        ahead = (index > 0) & (index <= before)
        return ahead | (behind & (index > before)), tl.where(ahead, before - index, place)
    ahead = index < tl.minimum(before - k, 1)  # the first line, if the border is wider than k
    behind = index > last - tl.minimum(after - k, 1)
    return ahead | behind, tl.where(ahead, 0, before + size) + k


@triton.jit
def _across(line, there, column, left, right, columns, PAD: tl.constexpr, COPIES: tl.constexpr):
    """Pixels of rows of a continued image, and what lies on the border beside them that is a copy of them.

    Args:
        line: where the row of each pixel begins.
        there: which pixels are wanted.
        column: of each, in the image.
        COPIES: that a line has at most.
    """
    total = tl.load(line + (left + column), mask=there, other=0.0)
    for k in tl.static_range(COPIES):
        copied, place = _copies(column, left, right, columns, k, PAD)
        total += tl.load(line + place, mask=there & copied, other=0.0)
    return total


@triton.jit
def folded(
    grad, there, row, column, near, top, left, bottom, right, rows, columns, PAD: tl.constexpr,
    COPIES: tl.constexpr,
):  # fmt: skip
    """Pixels of the gradient ``grad`` of a continued image, with what its border adds to them.

    Args:
        grad: of this channel.
        there: which of them are of the image.
        row, column: in the image.
        near: whether any of the rows has a copy on the border.
    """
    width = left + columns + right
    total = _across(grad + (top + row) * width, there, column, left, right, columns, PAD, COPIES)
    if near:
        for k in tl.static_range(COPIES):
            copied, place = _copies(row, top, bottom, rows, k, PAD)
            line = grad + place * width
            total += _across(line, there & copied, column, left, right, columns, PAD, COPIES)
    return total
