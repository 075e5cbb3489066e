"""The vector of kept weights by parameter name, for optimisers that treat parameters differently."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout

Place = tuple[int, torch.Size, tuple[int, ...], torch.dtype, torch.device]


class NamedWeights:
    """Leaf tensors in the memory of one flat parameter, a part for each parameter of the dense network.

    A backward pass gives the flat parameter its gradient; hooks hand every part its share, a view again. A
    part that a loss uses itself, as in a penalty, gets that gradient as well, in whichever order autograd
    brings the two. An optimiser clears either: what was cleared when the next gradient comes starts from
    nothing, whichever of the two was cleared, so that gradients add up as they do in a network of separate
    parameters.

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
        self._firsts = [0, *itertools.accumulate(self._sizes)]  # and how many there are
        self._flags = tuple(trained)
        self._parts: dict[str, nn.Parameter] = {}
        self._weights: nn.Parameter | None = None  # that the parts lie in
        self._places: list[Place] = []  # of weights and parts when they were last bound
        self._grad: Tensor | None = None  # of weights when it was last shared out
        self._shares: list[Tensor | None] = []  # of it, by part
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

    def check(self, weights: Tensor) -> None:
        """Before ``weights`` are used: put right what ``.data = `` took apart, see :meth:`_bind`.

        Other weights than those that the parts lie in, as of a functional call, are left alone.
        """
        if self._parts and weights is self._weights:
            now = [_place(tensor) for tensor in (weights, *self._parts.values())]
            if now != self._places:
                self._bind(self._weights)

    def clear(self, *, set_to_none: bool) -> None:
        """Clear the gradients of the parts, after that of the flat parameter."""
        for part in self._parts.values():
            if set_to_none:
                part.grad = None
            elif part.grad is not None:
                part.grad.detach().zero_()
        if set_to_none:
            self._grad, self._shares = None, [None] * len(self._parts)  # not kept alive here

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
            "_places": [],
            "_grad": None,
            "_shares": [],
            "_hooks": [],
            "_known": None,
        }

    def _present_flags(self) -> tuple[bool, ...]:
        return tuple(part.requires_grad for part in self._parts.values()) if self._parts else self._flags

    @torch.inference_mode(False)  # parts and gradients outlive the call
    def _bind(self, weights: nn.Parameter) -> None:
        """Make the parts lie in ``weights``, wherever its memory is.

        A part that was given other memory since the last time brings its values along.

        Raises:
            InputError: those values do not fit, or the flat parameter was given other memory as well. The
                parts lie in it then as it is.
        """
        if weights.shape != (self._firsts[-1],):
            raise InputError(f"weights: expected shape [{self._firsts[-1]}], got {list(weights.shape)}")
        moved = weights is not self._weights or _place(weights) != self._places[0]
        refused = ""
        if self._parts:
            with torch.no_grad():
                self._settle()
            parts, pieces = list(self._parts.values()), self._cut(weights.data)
            given = {}
            for number, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
                if _place(part) not in (self._places[1 + number], _place(piece)):
                    given[number] = part.data.clone()  # it may lie in the place of another part
            for number, values in given.items():
                reason = _refuse(values, pieces[number], moved=moved)
                if reason:
                    refused = refused or f"named_weights()[{self._names[number]!r}]: {reason}"
                else:
                    pieces[number].copy_(values)
            graded = {number for number, part in enumerate(parts) if part.grad is not None}
            for part, piece in zip(parts, pieces, strict=True):
                if _place(part) != _place(piece):
                    part.grad = None
                    part.data = piece
        else:
            pieces = self._cut(weights.detach())
            for number, (name, flag) in enumerate(zip(self._names, self._flags, strict=True)):
                self._parts[name] = part = nn.Parameter(pieces[number])
                settle = functools.partial(NamedWeights._settle_part, number=number)
                self._hook(part, settle, settle)
                part.requires_grad_(flag)  # not before: torch refuses hooks where it is off
            self._shares = [None] * len(self._parts)
            graded = set(range(len(self._parts)))
        if self._weights is not weights:
            for hook in self._hooks:
                hook.remove()
            self._weights = weights
            self._hooks = self._hook(weights, NamedWeights._before, NamedWeights._share)
        self._grad, self._shares = weights.grad, [None] * len(self._parts)
        for number, part in enumerate(self._parts.values()):
            if self._grad is not None and number in graded and (part.requires_grad or part.grad is not None):
                self._give(number)
        self._places = [_place(tensor) for tensor in (weights, *self._parts.values())]
        if refused:
            raise InputError(refused)

    def _hook(self, leaf: Tensor, before: Callable[[Any], None], after: Callable[[Any], None]) -> list[Any]:
        # Weakly, or the parameter would keep itself alive by its own hooks.
        own = weakref.ref(self)

        def call_before(grad: Tensor) -> None:
            if (named := own()) is not None:
                before(named)

        def call_after(parameter: Tensor) -> None:
            if (named := own()) is not None:
                after(named)

        return [leaf.register_hook(call_before), leaf.register_post_accumulate_grad_hook(call_after)]

    def _piece(self, flat: Tensor, number: int) -> Tensor:
        return flat.narrow(0, self._firsts[number], self._sizes[number]).view(self._shapes[number])

    def _cut(self, flat: Tensor) -> list[Tensor]:
        # One by one: torch refuses writing to the views that split makes of a tensor with a gradient.
        return [self._piece(flat, number) for number in range(len(self._sizes))]

    def _before(self) -> None:
        if self._weights is not None:
            self.check(self._weights)
        self._settle()

    def _settle(self) -> None:
        """Make the flat gradient and those of the parts one again.

        Either may have been cleared or replaced since the last time, and a part may have got one of its own.
        With gradients enabled, as in a backward pass with ``create_graph``, what is put together has a
        history.
        """
        weights, parts = self._weights, list(self._parts.values())
        if weights is None:
            return
        if weights.grad is not self._grad:
            for part, share in zip(parts, self._shares, strict=True):
                if share is not None and part.grad is share:
                    part.grad = None
            self._grad, self._shares = weights.grad, [None] * len(parts)
            for number, part in enumerate(parts):
                if self._grad is not None and part.grad is None and part.requires_grad:
                    self._give(number)
        elif all(part.grad is None for part in parts):
            weights.grad = self._grad = None
            self._shares = [None] * len(parts)
        changed = [i for i, part in enumerate(parts) if part.grad is not self._shares[i]]
        if not changed:
            return
        if weights.grad is None:
            weights.grad = torch.zeros_like(weights)
        flat = weights.grad
        if torch.is_grad_enabled():
            pieces = [piece.flatten() for piece in self._cut(flat)]
            for number in changed:
                own = parts[number].grad
                pieces[number] = torch.zeros_like(pieces[number]) if own is None else own.flatten()
            weights.grad = torch.cat(pieces)
            changed = [number for number, part in enumerate(parts) if part.grad is not None]
            self._shares = [None] * len(parts)
        else:
            for number in changed:
                own, piece = parts[number].grad, self._piece(flat, number)
                if own is None:
                    piece.zero_()
                    self._shares[number] = None
                else:
                    piece.copy_(own)
        self._grad = weights.grad
        for number in changed:
            if parts[number].grad is not None:
                self._give(number)

    def _settle_part(self, number: int) -> None:
        """:meth:`_settle` before and after a part gets a gradient of its own, cheaper where many parts do."""
        part, share = self._parts[self._names[number]], self._shares[number]
        if self._weights is None or self._weights.grad is not self._grad:
            self._settle()
        elif part.grad is share:
            return
        elif self._grad is None or part.grad is None or share is not None or torch.is_grad_enabled():
            self._settle()
        else:
            self._piece(self._grad, number).copy_(part.grad)
            self._give(number)

    def _share(self) -> None:
        """Give the parts their shares of a flat gradient that holds all there is of theirs."""
        if self._weights is None or self._weights.grad is None:
            return
        if self._weights.grad is not self._grad:
            self._grad, self._shares = self._weights.grad, [None] * len(self._parts)
        for number, part in enumerate(self._parts.values()):
            if self._shares[number] is None and (part.requires_grad or part.grad is not None):
                self._give(number)

    def _give(self, number: int) -> None:
        assert self._grad is not None
        self._shares[number] = self._parts[self._names[number]].grad = self._piece(self._grad, number)


def _place(tensor: Tensor) -> Place:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _refuse(values: Tensor, piece: Tensor, *, moved: bool) -> str:
    """Why the values that a part was given are not taken into the flat vector; empty if they can be."""
    if moved:
        return (
            "expected other values by .data for it or for the flat vector, got both since the last call; "
            "those of the vector hold, give the part its own again"
        )
    if (values.shape, values.dtype, values.device) != (piece.shape, piece.dtype, piece.device):
        return (
            f"expected values of shape {list(piece.shape)}, {piece.dtype} on {piece.device} by .data, "
            f"got {list(values.shape)}, {values.dtype} on {values.device}; it has those of the vector again"
        )
    return ""
