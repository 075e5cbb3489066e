"""The weights a plan reads, cut from one flat vector: all of them, or the ones a mask keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast.flat import FlatLayout


@dataclass(frozen=True)
class _Request:
    """A block that was asked for.

    Attributes:
        name: of the parameter.
        channels: indices into its leading dimensions.
        size: of the block.
        transposed: see :meth:`CompactWeights.request`.
    """

    name: str
    channels: tuple[Tensor, ...]
    size: tuple[int, ...]
    transposed: int


class CompactWeights:
    """Blocks of parameters that stages ask for, made from the flat vector of the kept weights.

    Without a mask every block is a view of the vector. With one, all blocks lie in one buffer, into
    which the kept weights are scattered; its gradient is gathered in the same way.

    Args:
        layout: of the dense network's parameters.
        mask: flat bool [layout.numel], or None.
    """

    def __init__(self, layout: FlatLayout, mask: Tensor | None) -> None:
        self._layout = layout
        self._mask = None if mask is None else mask.cpu()
        self._masks = None if self._mask is None else layout.views(self._mask)
        self._requests: list[_Request] = []
        self._values: set[int] = set()
        self._shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._source = self._target = torch.empty(0, dtype=torch.int64, device="cpu")
        self._back: Tensor | None = None
        self._numel = 0
        self._cuts: list[list[tuple[int, int, int] | tuple[int, Tensor]]] = []
        self._split = _Pieces(layout.shapes)
        self._index: dict[str, Tensor] | None = None

    @property
    def kept_numel(self) -> int:
        """Length of the flat vector of the kept weights."""
        return self._layout.numel if self._mask is None else int(self._mask.sum())

    def request(self, name: str, *channels: Tensor, transposed: int = 0) -> int:
        """Ask for a block: the given channels of the leading dimensions of a parameter, all of the others.

        Args:
            name: of the parameter.
            channels: indices, int64.
            transposed: stride of a transposed convolution whose weight is to be seen as that of a
                convolution, see :func:`phases`; taps that it has not are zero.

        Returns:
            Its number in the list that :meth:`blocks` gives.
        """
        shape = self.shape(name, transposed)
        size = (*(len(c) for c in channels), *shape[len(channels) :])
        self._requests.append(_Request(name, channels, size, transposed))
        return len(self._requests) - 1

    def request_values(self, name: str, *channels: Tensor) -> int:
        """Ask for the kept weights alone of such a block, in order, as a vector; there must be a mask."""
        kept = self.kept(name, *channels)
        assert kept is not None
        self._requests.append(_Request(name, channels, (int(kept.sum()),), 0))
        self._values.add(len(self._requests) - 1)
        return len(self._requests) - 1

    def kept(self, name: str, *channels: Tensor, transposed: int = 0) -> Tensor | None:
        """The mask of such a block, bool; None where there is no mask."""
        if self._masks is None:
            return None
        return _cut(phases(self._masks[name], transposed, absent=False), channels)

    def nonzeros(self, name: str, *channels: Tensor, transposed: int = 0) -> int:
        """How many weights of such a block the mask keeps."""
        if transposed:
            return int((self.index(name, *channels, transposed=transposed) >= 0).sum())
        if self._masks is None:
            return torch.Size([*(len(c) for c in channels), *self._shapes[name][len(channels) :]]).numel()
        return int(_cut(self._masks[name], channels).sum())

    def index(self, name: str, *channels: Tensor, transposed: int = 0) -> Tensor:
        """Index of the weights of such a block into the flat vector, int64.

        -1 for those the mask drops, and for taps that a transposed convolution has not.
        """
        if self._index is None:
            mask = (
                torch.ones(self._layout.numel, dtype=torch.bool, device="cpu")
                if self._mask is None
                else self._mask
            )
            self._index = self._layout.views(torch.where(mask, torch.cumsum(mask, 0) - 1, -1))
        return _cut(phases(self._index[name], transposed, absent=-1), channels)

    def shape(self, name: str, transposed: int = 0) -> torch.Size:
        """Of a whole parameter."""
        shape = self._shapes[name]
        return phases(torch.empty(shape, device="meta"), transposed).shape if transposed else shape

    def finish(self, device: torch.device) -> None:
        """Fix the blocks asked for; to be called once, before :meth:`blocks`."""
        if self._mask is None:
            self._cuts = [_cuts(self.shape(r.name, r.transposed), r.channels) for r in self._requests]
            return
        offsets = dict(zip(self._layout.names, _offsets(self._layout.sizes), strict=True))
        pieces = []
        for number, request in enumerate(self._requests):
            shape = self._shapes[request.name]
            numbers = torch.arange(shape.numel(), device="cpu").view(shape) + offsets[request.name]
            piece = _cut(phases(numbers, request.transposed, absent=-1), request.channels)
            if number in self._values:
                kept_here = self.kept(request.name, *request.channels)
                assert kept_here is not None
                piece = piece[kept_here]
            pieces.append(piece.flatten())
        dense = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device="cpu")
        rank = torch.cumsum(self._mask, 0) - 1
        kept = self._mask[dense] & (dense >= 0)
        target, source = torch.nonzero(kept).flatten(), rank[dense[kept]]
        self._target, self._source = target.to(device), source.to(device)
        self._numel = dense.numel() + 1  # the last is nobody's: what a weight that no block holds reads back
        if len(source.unique()) == len(source):
            back = torch.full((int(self._mask.sum()),), dense.numel(), device="cpu")
            self._back = back.index_copy(0, source, target).to(device)
        self._split = _Pieces([*(torch.Size(request.size) for request in self._requests), torch.Size([1])])

    def blocks(self, weights: Tensor) -> list[Tensor]:
        """The blocks in the order they were asked for, differentiable in ``weights``."""
        if not self._requests:  # as where chains run everything
            return []
        if self._mask is None:
            views = dict(zip(self._layout.names, self._split(weights), strict=True))
            cuts = zip(self._requests, self._cuts, strict=True)
            return [_taken(phases(views[r.name], r.transposed), of_block) for r, of_block in cuts]
        compact = _Scatter.apply(weights, self._source, self._target, self._back, self._numel)
        return list(self._split(compact)[:-1])


def phases(weight: Tensor, stride: int, *, absent: float = 0.0) -> Tensor:
    """The weight of a transposed convolution as that of the convolution that gives its pixels by phases.

    Pixel q s + i of the transposed convolution of x is the sum over t of x[q - t] w[s t + i]: for each phase
    i, a convolution of x, kernel from the last t to the first.

    Args:
        weight: [I, O, kH, kW]; or anything of that shape that belongs to it, such as a mask or indices.
        stride: s of the transposed convolution; 0 for a weight that is left as it is.
        absent: value of the taps of the last t that ``weight`` has not.

    Returns:
        [s s O, I, ceil(kH / s), ceil(kW / s)], phase (i, j) of output o at o s s + i s + j.
    """
    if not stride:
        return weight
    inputs, outputs, *kernel = weight.shape
    rows, columns = (-(-k // stride) for k in kernel)
    weight = F.pad(weight, (0, columns * stride - kernel[1], 0, rows * stride - kernel[0]), value=absent)
    weight = weight.view(inputs, outputs, rows, stride, columns, stride).permute(1, 3, 5, 0, 2, 4)
    return weight.flip(4, 5).reshape(outputs * stride**2, inputs, rows, columns)


class _Pieces:
    """A vector as tensors of given shapes, one after the other.

    The gradient of a piece that nothing reads is taken from zeros that are made once, not in every step.
    """

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self.shapes = tuple(shapes)
        self.sizes = [shape.numel() for shape in shapes]
        self._zeros = torch.empty(0, device="cpu")

    def __call__(self, vector: Tensor) -> tuple[Tensor, ...]:
        return _Split.apply(vector, self)

    def zeros(self, count: int, like: Tensor) -> Tensor:
        """[count], not to be written to."""
        known = self._zeros
        if len(known) < count or known.dtype != like.dtype or known.device != like.device:
            known = self._zeros = torch.zeros(max(self.sizes), dtype=like.dtype, device=like.device)
        return known[:count]


class _Split(torch.autograd.Function):
    """Views of a vector; see :class:`_Pieces`."""

    @staticmethod
    def forward(vector: Tensor, pieces: _Pieces) -> tuple[Tensor, ...]:
        parts = zip(vector.split(pieces.sizes), pieces.shapes, strict=True)
        return tuple(part.view(shape) for part, shape in parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.pieces = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        like = next((grad for grad in grads if grad is not None), None)
        if like is None:
            return None, None
        parts = zip(grads, ctx.pieces.sizes, strict=True)
        flat = [ctx.pieces.zeros(n, like) if grad is None else grad.reshape(-1) for grad, n in parts]
        return torch.cat(flat), None


class _Scatter(torch.autograd.Function):
    """out[target] = weights[source], zero elsewhere.

    A weight may go to several places. Where none does, ``back`` tells the one place of each, or the last.
    """

    @staticmethod
    def forward(weights: Tensor, source: Tensor, target: Tensor, back: Tensor | None, numel: int) -> Tensor:
        return weights.new_zeros(numel).index_copy_(0, target, weights.index_select(0, source))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, source, target, back, _ = inputs
        ctx.save_for_backward(source, target, back)
        ctx.kept = weights.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        source, target, back = ctx.saved_tensors
        if back is not None:
            return grad.index_select(0, back), None, None, None, None
        summed = grad.new_zeros(ctx.kept).index_add_(0, source, grad.index_select(0, target))
        return summed, None, None, None, None


def _cuts(shape: torch.Size, channels: tuple[Tensor, ...]) -> list[tuple[int, int, int] | tuple[int, Tensor]]:
    """(dimension, first, length) or (dimension, indices) of each dimension that is not taken whole."""
    found: list[tuple[int, int, int] | tuple[int, Tensor]] = []
    for dim, index in enumerate(channels):
        first, count = int(index[0]) if len(index) else 0, len(index)
        if not torch.equal(index, torch.arange(first, first + count, device=index.device)):
            found.append((dim, index))
        elif count != shape[dim]:
            found.append((dim, first, count))
    return found


def _taken(tensor: Tensor, cuts: list[tuple[int, int, int] | tuple[int, Tensor]]) -> Tensor:
    for cut in cuts:
        tensor = tensor.index_select(*cut) if len(cut) == 2 else tensor.narrow(*cut)
    return tensor


def _cut(tensor: Tensor, channels: tuple[Tensor, ...]) -> Tensor:
    """The given indices of the leading dimensions; a view where they are ranges."""
    return _taken(tensor, _cuts(tensor.shape, channels))


def _offsets(sizes: list[int]) -> list[int]:
    total, offsets = 0, []
    for size in sizes:
        offsets.append(total)
        total += size
    return offsets
