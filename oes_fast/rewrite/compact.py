"""The weights a plan reads, cut from one flat vector: all of them, or the ones a mask keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast.flat import FlatLayout


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
        self._requests: list[tuple[str, tuple[Tensor, ...], tuple[int, ...]]] = []
        self._values: set[int] = set()
        self._shapes = dict(zip(layout.names, layout.shapes, strict=True))
        self._source = self._target = torch.empty(0, dtype=torch.int64, device="cpu")
        self._numel = 0
        self._places: dict[str, Tensor] | None = None

    def request(self, name: str, *channels: Tensor) -> int:
        """Ask for a block: the given channels of the leading dimensions of a parameter, all of the others.

        Returns:
            Its place in the list that :meth:`blocks` gives.
        """
        shape = self._shapes[name]
        size = (*(len(c) for c in channels), *shape[len(channels) :])
        self._requests.append((name, channels, size))
        return len(self._requests) - 1

    def request_values(self, name: str, *channels: Tensor) -> int:
        """Ask for the kept weights alone of such a block, in order, as a vector; there must be a mask."""
        kept = self.kept(name, *channels)
        assert kept is not None
        place = self.request(name, *channels)
        self._requests[place] = (name, channels, (int(kept.sum()),))
        self._values.add(place)
        return place

    def kept(self, name: str, *channels: Tensor) -> Tensor | None:
        """The mask of such a block, bool; None where there is no mask."""
        return None if self._masks is None else _cut(self._masks[name], channels)

    def nonzeros(self, name: str, *channels: Tensor) -> int:
        """How many weights of such a block the mask keeps."""
        if self._masks is None:
            return torch.Size([*(len(c) for c in channels), *self._shapes[name][len(channels) :]]).numel()
        return int(_cut(self._masks[name], channels).sum())

    def places(self, name: str, *channels: Tensor) -> Tensor:
        """Where the weights of such a block lie in the flat vector, int64; -1 for those the mask drops."""
        if self._places is None:
            mask = (
                torch.ones(self._layout.numel, dtype=torch.bool, device="cpu")
                if self._mask is None
                else self._mask
            )
            self._places = self._layout.views(torch.where(mask, torch.cumsum(mask, 0) - 1, -1))
        return _cut(self._places[name], channels)

    def finish(self, device: torch.device) -> None:
        """Fix the blocks asked for; to be called once, before :meth:`blocks`."""
        if self._mask is None:
            return
        offsets = dict(zip(self._layout.names, _offsets(self._layout.sizes), strict=True))
        pieces = []
        for place, (name, channels, _) in enumerate(self._requests):
            numbers = torch.arange(self._shapes[name].numel(), device="cpu").view(self._shapes[name])
            piece = _cut(numbers, channels)
            kept_here = self.kept(name, *channels)
            if place in self._values and kept_here is not None:
                piece = piece[kept_here]
            pieces.append(piece.flatten() + offsets[name])
        dense = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64, device="cpu")
        rank = torch.cumsum(self._mask, 0) - 1
        kept = self._mask[dense]
        self._target = torch.nonzero(kept).flatten().to(device)
        self._source = rank[dense[kept]].to(device)
        self._numel = dense.numel()

    def blocks(self, weights: Tensor) -> list[Tensor]:
        """The blocks in the order they were asked for, differentiable in ``weights``."""
        if self._mask is None:
            views = self._layout.views(weights)
            return [_cut(views[name], channels) for name, channels, _ in self._requests]
        compact = _Scatter.apply(weights, self._source, self._target, self._numel)
        sizes = [torch.Size(size).numel() for _, _, size in self._requests]
        pieces = compact.split(sizes)
        return [piece.view(size) for piece, (_, _, size) in zip(pieces, self._requests, strict=True)]


class _Scatter(torch.autograd.Function):
    """out[target] = weights[source], zero elsewhere. A weight may go to several places."""

    @staticmethod
    def forward(weights: Tensor, source: Tensor, target: Tensor, numel: int) -> Tensor:
        return weights.new_zeros(numel).index_copy_(0, target, weights.index_select(0, source))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, source, target, _ = inputs
        ctx.save_for_backward(source, target)
        ctx.kept = weights.numel()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        source, target = ctx.saved_tensors
        return grad.new_zeros(ctx.kept).index_add_(0, source, grad.index_select(0, target)), None, None, None


def _cut(tensor: Tensor, channels: tuple[Tensor, ...]) -> Tensor:
    """The given indices of the leading dimensions; a view where they are ranges."""
    for dim, index in enumerate(channels):
        first = int(index[0]) if len(index) else 0
        if torch.equal(index, torch.arange(first, first + len(index), device=index.device)):
            tensor = tensor.narrow(dim, first, len(index))
        else:
            tensor = tensor.index_select(dim, index)
    return tensor


def _offsets(sizes: list[int]) -> list[int]:
    total, offsets = 0, []
    for size in sizes:
        offsets.append(total)
        total += size
    return offsets
