"""The vector of kept weights by parameter name, for optimisers that treat parameters differently."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.flat import FlatLayout


class NamedWeights:
    """Leaf tensors in the memory of one flat parameter, a part for each parameter of the dense network.

    A backward pass gives the flat parameter its gradient; hooks hand every part its share, a view again. An
    optimiser clears either: what was cleared when the next gradient comes starts from nothing, whichever of
    the two was cleared, so that gradients add up as they do in a network of separate parameters.

    Args:
        layout: of the dense network.
        mask: flat bool of the weights kept, or None for all.
        trained: of each parameter, whether it has a gradient.
    """

    def __init__(self, layout: FlatLayout, mask: Tensor | None, trained: Sequence[bool]) -> None:
        self._names = layout.names
        self._sizes = layout.sizes if mask is None else [int(p.sum()) for p in mask.split(layout.sizes)]
        # What a mask keeps of a parameter has no shape of its own.
        self._shapes = layout.shapes if mask is None else [torch.Size([size]) for size in self._sizes]
        self._flags = tuple(trained)
        self._parts: dict[str, nn.Parameter] = {}
        self._weights: nn.Parameter | None = None  # that the parts lie in
        self._hooks: list[Any] = []
        self._known: tuple[tuple[bool, ...], torch.device, Tensor | None] | None = None

    def parts(self, weights: nn.Parameter) -> dict[str, nn.Parameter]:
        """The parts of ``weights`` by name; the same tensors in every call."""
        self._bind(weights)
        return dict(self._parts)

    def rebind(self, weights: nn.Parameter) -> None:
        """Follow ``weights`` to another memory, dtype or device, if the parts have been asked for."""
        if self._parts:
            self._bind(weights)

    def trained(self, device: torch.device) -> Tensor | None:
        """Which of the kept weights have a gradient, bool [kept]; None where all have."""
        flags = self._present_flags()
        if self._known is None or self._known[:2] != (flags, device):
            found = None
            if not all(flags):
                with torch.inference_mode(False):  # it outlives the call
                    sizes = torch.tensor(self._sizes, device=device)
                    found = torch.tensor(flags, device=device).repeat_interleave(sizes)
            self._known = (flags, device, found)
        return self._known[2]

    def __getstate__(self) -> dict[str, Any]:
        # Copies have parts of their own, made when they are asked for.
        return self.__dict__ | {
            "_flags": self._present_flags(),
            "_parts": {},
            "_weights": None,
            "_hooks": [],
            "_known": None,
        }

    def _present_flags(self) -> tuple[bool, ...]:
        return tuple(part.requires_grad for part in self._parts.values()) if self._parts else self._flags

    def _bind(self, weights: nn.Parameter) -> None:
        if self._parts:
            self._clear()
        for name, flag, piece in zip(self._names, self._flags, self._cut(weights.detach()), strict=True):
            part = self._parts.get(name)
            if part is None:
                self._parts[name] = nn.Parameter(piece, requires_grad=flag)
            elif (part.data_ptr(), part.dtype, part.device) != (piece.data_ptr(), piece.dtype, piece.device):
                part.grad = None
                part.data = piece
        if self._weights is not weights:
            for hook in self._hooks:
                hook.remove()
            self._weights = weights
            # Weakly, or the parameter would keep itself alive by its own hooks.
            own = weakref.ref(self)

            def before(grad: Tensor) -> None:
                if (named := own()) is not None:
                    named._clear()

            def after(parameter: Tensor) -> None:
                if (named := own()) is not None:
                    named._share_gradient()

            self._hooks = [
                weights.register_hook(before),
                weights.register_post_accumulate_grad_hook(after),
            ]
        self._share_gradient()

    def _cut(self, flat: Tensor) -> list[Tensor]:
        # One by one: torch refuses writing to the views that split makes of a tensor with a gradient.
        found, first = [], 0
        for size, shape in zip(self._sizes, self._shapes, strict=True):
            found.append(flat.narrow(0, first, size).view(shape))
            first += size
        return found

    def _clear(self) -> None:
        """Before a gradient is added: take out of the flat one what an optimiser has cleared in the parts."""
        flat = None if self._weights is None else self._weights.grad
        if self._weights is None or flat is None:
            return
        parts = list(self._parts.values())
        if all(part.grad is None for part in parts):
            self._weights.grad = None
            return
        with torch.no_grad():
            for part, piece in zip(parts, self._cut(flat), strict=True):
                if part.grad is None:
                    piece.zero_()
                elif part.grad.data_ptr() != piece.data_ptr():  # replaced by one that the user made
                    piece.copy_(part.grad)

    def _share_gradient(self) -> None:
        flat = None if self._weights is None else self._weights.grad
        if flat is None:
            return
        for part, piece in zip(self._parts.values(), self._cut(flat), strict=True):
            if part.requires_grad and (part.grad is None or part.grad.data_ptr() != piece.data_ptr()):
                part.grad = piece
