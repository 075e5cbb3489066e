"""Changes in place that are harmless: of a tensor that the network made itself and has no other name for.

A call that changes its first argument is recorded as the call that makes a new tensor of it. That computes
the same if nobody reads the old tensor later, under any name. Proof, from the graph of recorded calls: the
memory written to was made by operations that always make new tensors. Whatever may share it, because it
comes from it through operations that may hand on their argument or a view of it, is not read after the
change; but for the very same tensor, for which the result stands from there on, and for what was made of that
result. An operation that is not known to make a new tensor counts as one that may hand on any argument.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast.nn import MaskedConv2d
from oes_fast.rewrite.tracing.errors import TraceError

# What a call in place is without it: x += y is x = x + y.
_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
OPERATORS = {f"__{target.__name__}__": target for target in _OPERATORS}  # by the method of a tensor
SIGNS = dict(zip(_OPERATORS, ("+=", "-=", "*=", "/=", "**="), strict=True))
_FUNCTIONS: dict[Any, Any] = {
    torch.relu_: torch.relu,
    torch.sigmoid_: torch.sigmoid,
    torch.tanh_: torch.tanh,
    F.leaky_relu_: F.leaky_relu,
    F.elu_: F.elu,
    F.hardtanh_: F.hardtanh,
    F.celu_: F.celu,
    F.selu_: F.selu,
}
_METHODS = {
    *("add_", "sub_", "mul_", "div_", "pow_", "neg_", "abs_", "exp_", "sqrt_", "square_"),
    *("relu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_"),
}
# Operations whose result is always a tensor of its own.
_FRESH_LAYERS = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    MaskedConv2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.Linear,
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softmax,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.CircularPad2d,
)
_FRESH = {
    *("add", "sub", "mul", "truediv", "div", "neg", "pow", "abs", "exp", "log", "sqrt", "rsqrt", "square"),
    *("mean", "sum", "var", "std", "amax", "amin", "clone", "cat", "concat", "concatenate", "stack"),
    *("relu", "leaky_relu", "elu", "silu", "gelu", "prelu", "sigmoid", "tanh", "softplus", "hardtanh"),
    *("softmax", "clamp", "conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "matmul", "bmm"),
    *("batch_norm", "instance_norm", "group_norm", "layer_norm", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "interpolate"),
}


class Changes:
    """The calls of a recorded graph that change a tensor in place.

    Args:
        root: of the trace.
        fx_graph: recorded calls, with their results' shapes.
    """

    def __init__(self, root: nn.Module, fx_graph: torch.fx.Graph) -> None:
        self._root = root
        self._position = {node: number for number, node in enumerate(fx_graph.nodes)}

    def check(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """The calls whose results are the very tensor that ``node`` changes; none where it changes nothing.

        Raises:
            TraceError: it changes what may be read under another name, or it is not known what it changes.
        """
        if not changes(node, self._root):
            return []
        target = node.args[0] if node.args else None
        if without_change(node, self._root) is None or not isinstance(target, torch.fx.Node):
            raise self._refusal(node)
        memory = self._memory(target)
        if memory is None or not _keeps_type(node):
            raise self._refusal(node)
        same, derived = self._same(target, node), self._derived(node)
        now = self._position[node]
        for name in memory - same - derived:
            if any(self._position[user] > now for user in name.users):
                raise self._refusal(node)
        return [name for name in same if self._position[name] < now]

    def _refusal(self, node: torch.fx.Node) -> TraceError:
        sign = SIGNS.get(node.target) if node.op == "call_function" else None
        which = sign or getattr(node.target, "__name__", str(node.target)).removeprefix("net.")
        source = node.args[0] if node.args else None
        if isinstance(source, torch.fx.Node):
            return TraceError(in_place_message(which, source, node.meta.get("place")))
        return TraceError(f"{which} changes a tensor in place")

    def _memory(self, target: torch.fx.Node) -> set[torch.fx.Node] | None:
        """Everything that may share the memory of ``target``; None where others may have it as well."""
        roots, waiting, seen = [], [target], {target}
        while waiting:
            node = waiting.pop()
            if self._is_fresh(node):
                roots.append(node)
                continue
            sources = [node.args[0]] if changes(node, self._root) else node.all_input_nodes
            if not sources or _is_data(node):  # z, parameters; data hides a change from autograd
                return None
            for source in sources:
                if isinstance(source, torch.fx.Node) and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        memory = set(seen)
        for root in roots:
            memory |= self._derived(root)
        return memory

    def _derived(self, node: torch.fx.Node) -> set[torch.fx.Node]:
        """What may share the memory of a call's result because it was made of that, and the call itself."""
        found, waiting = {node}, [node]
        while waiting:
            source = waiting.pop()
            for user in source.users:
                if user.op == "output" or user in found or self._is_fresh(user):
                    continue
                if changes(user, self._root) and user.args[0] is not source:
                    continue  # reads it
                found.add(user)
                waiting.append(user)
        return found

    def _same(self, target: torch.fx.Node, node: torch.fx.Node) -> set[torch.fx.Node]:
        """The calls that give the tensor ``target`` itself, ``node`` among them."""
        first = target
        while self._hands_on(first):
            source = first.args[0]
            assert isinstance(source, torch.fx.Node)
            first = source
        found, waiting = {first, node}, [first]
        while waiting:
            for user in waiting.pop().users:
                if user not in found and self._hands_on(user) and user.args[0] in found:
                    found.add(user)
                    waiting.append(user)
        return found

    def _hands_on(self, node: torch.fx.Node) -> bool:
        """Whether the result is the first argument itself."""
        if not node.args or not isinstance(node.args[0], torch.fx.Node):
            return False
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            if type(module) is nn.Identity and plain(module):
                return True
        return changes(node, self._root)

    def _is_fresh(self, node: torch.fx.Node) -> bool:
        if changes(node, self._root):
            return False
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            return isinstance(module, _FRESH_LAYERS) and plain(module)
        if node.op == "call_method":
            receiver = node.args[0]
            tensor = isinstance(receiver, torch.fx.Node) and isinstance(receiver.meta.get("value"), Tensor)
            return tensor and node.target in _FRESH
        if node.op != "call_function":
            return False
        if node.target in (F.max_pool2d, F.adaptive_max_pool2d):
            return True
        owner = getattr(node.target, "__module__", None)
        own = owner in (None, "torch", "torch.functional", "torch.nn.functional", "torch._C._nn", "_operator")
        return own and getattr(node.target, "__name__", "") in _FRESH


def in_place_message(sign: str, source: torch.fx.Node, place: str | None) -> str:
    """What a refusal says of a change by an operator, a function, a method or a layer."""
    of = str(source.target).removeprefix("net.") if source.op == "call_module" else source.name
    return (
        f"the network's own code changes a tensor in place: {sign} on the result of {of}"
        f"{f' at {place}' if place else ''}"
    )


def changes(node: torch.fx.Node, root: nn.Module) -> bool:
    """Whether a call changes one of its arguments."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if isinstance(node.target, torch._ops.OpOverload):
        return bool(node.target._schema.is_mutable)
    if node.op not in ("call_method", "call_function"):
        return False
    name = getattr(node.target, "__name__", str(node.target))
    if (name.endswith("_") and not name.endswith("__")) or name in ("setitem", "__setitem__"):
        return True
    if node.op == "call_method":
        return name in OPERATORS
    return (
        node.target in _OPERATORS
        or bool(arguments(node).get("inplace"))
        or node.kwargs.get("out") is not None
    )


def without_change(node: torch.fx.Node, root: nn.Module) -> tuple[Any, dict[str, Any]] | None:
    """Target and keyword arguments of the call that makes a new tensor instead; None where none is known."""
    if node.kwargs.get("out") is not None:
        return None
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        own = type(module).__module__.startswith("torch.nn.modules.") and plain(module)
        return (node.target, dict(node.kwargs)) if own and len(node.args) == 1 and not node.kwargs else None
    if node.op == "call_method":
        target = str(node.target)
        return (target.removesuffix("_"), dict(node.kwargs)) if target in _METHODS else None
    if node.target in _OPERATORS or node.target in _FUNCTIONS:
        target = _OPERATORS[node.target] if node.target in _OPERATORS else _FUNCTIONS[node.target]
        return target, dict(node.kwargs)
    if getattr(node.target, "__module__", "") == "torch.nn.functional" and "inplace" in node.kwargs:
        return node.target, dict(node.kwargs) | {"inplace": False}
    return None


def plain(module: nn.Module) -> bool:
    """No hooks that would see or change what passes."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks)


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of a function call by name, as far as its signature tells them."""
    target: Callable[..., Any] = node.target  # type: ignore[assignment]
    try:
        return inspect.signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):
        return dict(node.kwargs)


def _keeps_type(node: torch.fx.Node) -> bool:
    """Whether a new tensor would have the type of the changed one: no argument is of a wider one."""
    value = node.meta["value"]
    if not isinstance(value, Tensor):
        return False
    for argument in (*node.args[1:], *node.kwargs.values()):
        other = argument.meta["value"] if isinstance(argument, torch.fx.Node) else argument
        if isinstance(other, complex) or (isinstance(other, Tensor) and other.dtype != value.dtype):
            return False
    return value.is_floating_point()


def _is_data(node: torch.fx.Node) -> bool:
    return node.target is getattr and "data" in node.args
