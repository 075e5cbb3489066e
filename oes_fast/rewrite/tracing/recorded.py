"""Whether a trace has seen all that a network computes: refuse it by name where it has not.

The network's own code and the calls that were recorded are each run on tensors without values, and what
PyTorch dispatches in both is compared: a branch that an ordinary tensor takes otherwise, an assignment
that nobody saw, a number that changes from call to call, a gradient that is stopped. The code runs once more
with gradients off, so that what it remembers or asks for shows as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import _disable_current_modes

from oes_fast.copies import copy_network
from oes_fast.entry import Entry, entry_of
from oes_fast.rewrite.tracing.dataflow import (
    MOST_OPERATIONS,
    Numbers,
    Recorder,
    TooManyOperationsError,
    gradient_way,
)
from oes_fast.rewrite.tracing.errors import TraceError
from oes_fast.rewrite.tracing.in_place import changes
from oes_fast.rewrite.tracing.side_effects import random_left_alone
from oes_fast.rewrite.tracing.state import asks_inference_mode, asks_types, remembered, seeds
from oes_fast.rewrite.tracing.statistics import attribute, tracks, updates

# What tensors without values cannot do: then the comparison is made with values.
_NEED_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    NotImplementedError,
)


def check_recorded(
    net: nn.Module, z: Tensor, root: nn.Module, fx_graph: torch.fx.Graph, entry: Entry | None = None
) -> None:
    """Compare what ``net`` computes from ``z`` with what ``fx_graph`` does.

    Args:
        net: that was traced; left alone.
        z: its input.
        root: of the trace; holds constants that the trace met.
        fx_graph: the calls recorded.
        entry: which of several results is compared.

    Raises:
        TraceError: naming the first operation in which they part.
    """
    if isinstance(z, FakeTensor) or any(isinstance(t, FakeTensor) for t in net.parameters()):
        return  # nothing will be computed with them
    if all(map(_is_layer, net.modules())):
        return  # there is no code but that of layers
    asked = asks_inference_mode(net)
    if asked is not None:
        raise TraceError(f"{type(net).__name__} asks for inference mode in its own code ({asked})")
    with _disable_current_modes():
        try:
            if not asks_types(net):
                with contextlib.suppress(*_NEED_VALUES):
                    _Comparison(net, z, FakeTensorMode(allow_non_fake_inputs=True), entry).check(
                        root, fx_graph
                    )
                    return
            with random_left_alone(z.device):
                _Comparison(net, z, None, entry).check(root, fx_graph)
        except TooManyOperationsError:
            raise TraceError(
                f"{type(net).__name__} makes more than {MOST_OPERATIONS} operations, too many to compare"
            ) from None


def _is_layer(module: nn.Module) -> bool:
    """One of the layers and containers of PyTorch or of this library, as it came."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    own = "forward" in vars(module) or module._backward_pre_hooks
    return type(module).__module__.startswith(_LAYERS) and not hooked and not own


_LAYERS = ("torch.nn.modules.", "oes_fast.models.", "oes_fast.nn.")


class _Run:
    """What one run came to."""

    def __init__(
        self, output: Any, recorder: Recorder, gradient: int | None, buffers: dict[str, int]
    ) -> None:
        self.number = recorder.number(output) if isinstance(output, Tensor) else None
        self.operations = recorder.operations
        self.composed = recorder.composed
        self.gradient = gradient
        self.buffers = buffers
        self.order = list(recorder.operations)


class _Comparison:
    """Runs of one copy of the network.

    Args:
        net: to copy.
        z: input.
        mode: that makes tensors without values; None for runs with values.
        entry: which of several results is compared.
    """

    def __init__(self, net: nn.Module, z: Tensor, mode: FakeTensorMode | None, entry: Entry | None) -> None:
        self._entry = entry
        self._without_values = mode is not None
        self._mode: Any = contextlib.nullcontext() if mode is None else mode
        without: Callable[[Tensor], Tensor] = torch.clone
        if mode is not None:
            without = lambda t: mode.from_tensor(t, static_shapes=True)  # noqa: E731
            tensors = {id(t): without(t) for t in [*net.parameters(), *net.buffers()]}
            self._net = copy_network(net, tensors)
        else:
            self._net = copy_network(net)
        with torch.no_grad():
            self._z = without(z.detach())
        self._z.requires_grad_(z.requires_grad)
        self._numbers = Numbers()
        self._named: list[tuple[Tensor, tuple[str, ...]]] = []
        self._named += [(p, ("parameter", name)) for name, p in self._net.named_parameters()]
        self._named += [(b, ("buffer", name)) for name, b in self._net.named_buffers()]
        self._named.append((self._z, ("input", "")))
        self._names = {id(t): " ".join(name) for t, name in self._named}

    def check(self, root: nn.Module, fx_graph: torch.fx.Graph) -> None:
        """See :func:`check_recorded`."""
        title = type(self._net).__name__
        recorded = self._run(lambda: _replay(root, self._net, fx_graph, self._z))
        first = self._run(self._call)
        if first.number != recorded.number:
            raise TraceError(f"{title} {_parting(first, recorded)}")
        for name, number in first.buffers.items():
            if number != recorded.buffers[name]:
                raise TraceError(f"{title} changes its buffer {name} in its own code")
        seeded = seeds(self._net) if any(o.random for o in first.operations.values()) else None
        if seeded is not None:
            raise TraceError(f"{title} draws random numbers after a seed of its own ({seeded})")
        if first.gradient != recorded.gradient:
            raise TraceError(
                f"{title} stops or changes gradients in its own code (torch.no_grad, detach, "
                "an autograd.Function or a hook), which the trace did not see"
            )
        before = remembered(self._net)
        with torch.no_grad():
            second = self._run(self._call)
        if second.number != first.number:
            third = self._run(self._call)
            if third.number == first.number:
                raise TraceError(
                    f"{title} computes something else where gradients are off: {_parting(second, first)}"
                )
            raise TraceError(f"{title} computes something else in its next call: {_parting(third, first)}")
        after = remembered(self._net)
        changed = sorted({*before, *after} - {n for n in before if n in after and before[n] == after[n]})
        if changed:
            raise TraceError(f"{title} keeps in {', '.join(changed)} what changes from call to call")

    def _call(self) -> Any:
        return entry_of(self._net(self._z), self._entry, of=type(self._net).__name__)

    def _run(self, call: Callable[[], Any]) -> _Run:
        recorder = Recorder(self._numbers, self._named)
        norms = [m for m in self._net.modules() if tracks(m)]
        counts = [count for m in norms if isinstance(count := m.num_batches_tracked, Tensor)]
        before = [] if self._without_values else [count.clone() for count in counts]
        with self._mode, recorder:
            output = call()
        for count, old in zip(counts, before, strict=False):  # a cumulative average depends on its value
            count.copy_(old)
        if recorder.asked and self._without_values:  # an error that the code may have caught
            raise UnsupportedFakeTensorException("values are needed")
        buffers = {name: recorder.number(b) for name, b in self._net.named_buffers()}
        gradient = None
        if torch.is_grad_enabled() and isinstance(output, Tensor):
            gradient = gradient_way(output, self._names, self._numbers)
        return _Run(output, recorder, gradient, buffers)


def _replay(root: nn.Module, net: nn.Module, fx_graph: torch.fx.Graph, z: Tensor) -> Any:
    """Make the recorded calls that the output depends on, or that change something."""
    values: dict[torch.fx.Node, Any] = {}
    needed: set[torch.fx.Node] = set()
    for node in reversed(fx_graph.nodes):
        if node.op == "output" or node in needed or changes(node, root) or updates(node, root):
            needed.update((node, *node.all_input_nodes))
    for node in fx_graph.nodes:
        if node.op == "output":
            return torch.fx.map_arg(node.args[0], values.__getitem__)
        if node in needed:
            args = torch.fx.map_arg(node.args, values.__getitem__)
            kwargs = torch.fx.map_arg(node.kwargs, values.__getitem__)
            values[node] = _made(root, net, node, args, kwargs, z)
    return None


def _made(root: nn.Module, net: nn.Module, node: torch.fx.Node, args: Any, kwargs: Any, z: Tensor) -> Any:
    target = str(node.target)
    if node.op == "placeholder":
        return z
    if node.op == "get_attr":
        if target.startswith("net."):
            with contextlib.suppress(AttributeError, StopIteration):
                return attribute(net, target.removeprefix("net."))
        return attribute(root, target)
    if node.op == "call_module":
        return net.get_submodule(target.removeprefix("net").removeprefix("."))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _parting(own: _Run, other: _Run) -> str:
    """The first operation of one run that its output needs and the other run has not."""
    needed: set[int] = set()
    waiting = [] if own.number is None else [own.number]
    while waiting:
        number = waiting.pop()
        if number in needed:
            continue
        needed.add(number)
        waiting.extend(own.composed.get(number, ()))
        if number in own.operations:
            waiting.extend(own.operations[number].sources)
    first = next((n for n in own.order if n in needed and n not in other.operations), None)
    if first is None:
        return "gives another of its tensors than the trace saw: a branch in its code, or a change in place"
    operation = own.operations[first]
    place = f" at {operation.place}" if operation.place else ""
    if operation.random:
        return f"draws random numbers in its own code ({operation.name}{place})"
    if operation.writes:
        return f"changes a tensor in place ({operation.name}{place})"
    return (
        f"takes a way that the trace did not see ({operation.name}{place}): a branch on the type, gradient "
        "or memory of a tensor, something kept from an earlier call or read from a clock, a change in place"
    )
