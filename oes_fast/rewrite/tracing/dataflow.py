"""What a network computes, as the operations of PyTorch see it: which results depend on what, and how.

A trace sees the calls that reach a traced value. Below all Python code, where PyTorch dispatches an
operation, nothing passes unseen. :class:`Recorder` gives every tensor there a number that stands for how it
was computed: two runs with the same numbers made the same operations on the same parameters and input.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_ATEN = torch.ops.aten
# Other names for a tensor: they come and go with hooks and gradients. The way of gradients tells of them.
_RESHAPED = (_ATEN.view.default, _ATEN._unsafe_view.default)
_SAME = (_ATEN.alias.default, _ATEN.detach.default, _ATEN.lift_fresh.default, *_RESHAPED)
# Their schemas do not say that they write the running statistics.
_BATCH_NORMS = ("aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm")
_LIBRARIES = (os.path.dirname(torch.__file__), str(Path(__file__).parents[2]))


MOST_OPERATIONS = 50_000  # some seconds


class TooManyOperationsError(Exception):
    """The run is too long to be recorded."""


class Numbers:
    """Numbers for ways to compute something, the same number for the same way; shared by runs to compare."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}

    def __call__(self, way: Any) -> int:
        """The number of ``way``, a new one where it was not seen before."""
        return self._known.setdefault(way, len(self._known))


class Operation:
    """One operation of a run.

    Attributes:
        name: such as "aten.copy_.default".
        sources: numbers of what it reads.
        writes: it changes one of its arguments.
        random: it draws random numbers.
        place: "file:line" of the network's code, or "".
    """

    def __init__(self, func: Any, sources: list[int]) -> None:
        self.name = str(func)
        self.sources = sources
        self.writes = func._schema.is_mutable
        self.random = is_random(func)
        self.place = place_in_code()


class Recorder(TorchDispatchMode):
    """Numbers every tensor that is computed inside. Constants are computed, and known by their values.

    Args:
        numbers: shared by the runs to compare.
        named: tensors that stand for something: ("parameter", name), ("input",), ...

    Attributes:
        operations: by the number of their result, in order.
        asked: the code asked for a value that the input decides.
        composed: numbers that stand for a tensor with what was written to it, and the two they are made of.
    """

    def __init__(self, numbers: Numbers, named: Iterable[tuple[Tensor, tuple[str, ...]]]) -> None:
        super().__init__()
        self.operations: dict[int, Operation] = {}
        self.composed: dict[int, tuple[int, ...]] = {}
        self._numbers = numbers
        self._tensors: dict[int, tuple[Tensor, int]] = {}  # kept, so that no other tensor gets the same id
        self._storages: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._contents: dict[tuple[int, int], tuple[Tensor, int]] = {}
        self._draws = 0
        self.asked = False
        for tensor, name in named:
            self._name(tensor, numbers(name))

    def number(self, tensor: Tensor) -> int:
        """Stands for how ``tensor`` was computed, with all that was written to its memory since."""
        storage = _storage(tensor)
        known = self._tensors.get(id(tensor))
        if known is not None:
            number = known[1]
        elif storage in self._storages:  # a view that was made unseen
            layout = (tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())
            number = self._composed("view", (self._storages[storage],), layout)
        else:
            number = self._content(tensor)
        written = self._written.get(storage)
        return number if written is None else self._composed("written", (number, written))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor
            return func(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        random = is_random(func)
        if not random and all(self._is_constant(t) for t in tensors):
            with _disable_current_modes():
                return func(*args, **kwargs)
        self._draws += random
        if len(self.operations) > MOST_OPERATIONS:
            raise TooManyOperationsError
        self.asked |= torch.Tag.data_dependent_output in func.tags
        described = tuple(
            ("tensor", self.number(x)) if isinstance(x, Tensor) else _described(x) for x in leaves
        )
        number = self._numbers((func, described, structure, self._draws if random else None))
        operation = Operation(func, [x[1] for x in described if x[0] == "tensor"])
        result = func(*args, **kwargs)
        if func in _SAME and (func not in _RESHAPED or result.shape == tensors[0].shape):
            self._name(result, operation.sources[0])
            return result
        self.operations.setdefault(number, operation)
        written = _written(func, args, kwargs)
        for index, tensor in enumerate(written):
            storage = _storage(tensor)
            self._name(tensor, self.number(tensor), keep=True)
            self._written[storage] = self._derived(("write", number, index), number)
        for index, tensor in enumerate(x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)):
            if any(tensor is w for w in written):
                continue
            if written and any(_storage(tensor) == _storage(w) for w in written):
                self._name(tensor, self._tensors[id(written[0])][1])
            else:
                self._name(tensor, self._derived(("result", number, index), number))
        return result

    def _composed(self, way: str, sources: tuple[int, ...], *more: Any) -> int:
        number = self._numbers((way, sources, more))
        self.composed[number] = sources
        return number

    def _derived(self, way: tuple[Any, ...], source: int) -> int:
        number = self._numbers(way)
        self.operations.setdefault(number, self.operations[source])
        return number

    def _name(self, tensor: Tensor, number: int, *, keep: bool = False) -> None:
        if keep and id(tensor) in self._tensors:
            return
        self._tensors[id(tensor)] = (tensor, number)
        self._storages.setdefault(_storage(tensor), number)

    def _is_constant(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return not (
            isinstance(tensor, FakeTensor)
            or id(tensor) in self._tensors
            or storage in self._storages
            or storage in self._written
        )

    def _content(self, tensor: Tensor) -> int:
        """A constant is known by its values; a stray tensor without values, by nothing at all."""
        if isinstance(tensor, FakeTensor) or tensor.is_meta:
            return self._numbers(("from another run", id(tensor)))
        key = (id(tensor), tensor._version if not tensor.is_inference() else -1)
        if key not in self._contents:
            with _disable_current_modes(), torch.no_grad():
                number = self._numbers(("constant", *content(tensor)))
            self._contents[key] = (tensor, number)
        return self._contents[key][1]


def content(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors of equal values have in common."""
    try:
        dense = tensor.detach().cpu().contiguous().reshape(-1)
        data = dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    except (RuntimeError, TypeError):  # sparse or quantised
        data = repr(tensor).encode()
    return tuple(tensor.shape), str(tensor.dtype), hashlib.sha256(data).hexdigest()


def gradient_way(output: Tensor, names: dict[int, str], numbers: Numbers) -> int:
    """A number for the way that gradients take from ``output`` to the parameters.

    Args:
        output: of a run.
        names: of the parameters, by id.
        numbers: shared by the runs to compare.
    """
    if output.grad_fn is None:
        return numbers(("leaf", names.get(id(output)) if output.requires_grad else None))
    done: dict[Any, int] = {}
    waiting: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    while waiting:
        node, sources_done = waiting.pop()
        if node in done:
            continue
        sources = [(source, index) for source, index in node.next_functions if source is not None]
        if not sources_done:
            waiting.append((node, True))
            waiting.extend((source, False) for source, _ in sources)
            continue
        variable = getattr(node, "variable", None)
        leaf = names.get(id(variable), "another tensor") if isinstance(variable, Tensor) else None
        done[node] = numbers(("gradient", node.name(), leaf, tuple((done[s], i) for s, i in sources)))
    return done[output.grad_fn]


def is_random(func: Any) -> bool:
    """Whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            found.extend(t for t in pytree.tree_leaves(value) if isinstance(t, Tensor))
    if func._schema.name in _BATCH_NORMS:
        _, _, _, mean, var, training, *_ = args
        found.extend(t for t in (mean, var) if training and t is not None)
    return found


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(tensor)


def _described(value: Any) -> tuple[str, Any]:
    """An argument that is no tensor, as something to compare: True is not 1, NaN is NaN."""
    return type(value).__name__, value if isinstance(value, str | int) else repr(value)


def place_in_code() -> str:
    """File and line of the user's code that is running, "" if there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARIES) and not name.startswith("<"):
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
