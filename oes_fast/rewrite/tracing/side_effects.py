"""What a trace cannot see: refuse networks whose code does more than compute its output from its input."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from oes_fast.rewrite.tracing.errors import TraceError
from oes_fast.rewrite.tracing.state import functions_of


@contextmanager
def refuse_side_effects(net: nn.Module) -> Iterator[None]:
    """Undo what the network's code does to itself inside, and refuse if it was anything.

    Values that such code makes would be frozen into the graph: the same random numbers in every call, a
    counter that counts no more. A stored activation is forgotten without complaint.

    Args:
        net: traced inside.

    Raises:
        TraceError: the code drew random numbers, or assigned to parameters, buffers or attributes; or there
            are hooks that a trace passes over.
    """
    for name, module in net.named_modules():
        if list(module.children()) and (module._backward_hooks or module._backward_pre_hooks):
            raise TraceError(f"{name or type(net).__name__} has backward hooks around several layers")
    if any(hooks for name, hooks in vars(nn.modules.module).items() if name in _GLOBAL_HOOKS):
        raise TraceError("there are hooks on all modules (torch.nn.modules.module.register_module_*_hook)")
    for name, module in net.named_modules():
        kind = _COMPILED.get(type(module).__name__)
        if isinstance(module, torch.jit.ScriptModule):
            kind = "a module of TorchScript: hand over the network that it was made from"
        if kind is not None:
            raise TraceError(f"{name or 'net'} is {kind}")
        for attribute in vars(module):
            layer = type(module).__module__.startswith("torch.nn.modules.")
            own = layer and isinstance(getattr(type(module), attribute, None), FunctionType)
            if own or attribute == "forward":
                raise TraceError(
                    f"{name or type(net).__name__} has a {attribute} of its own in place of its class's"
                )
    before = [(m, dict(m._parameters), dict(m._buffers), dict(m.__dict__)) for m in net.modules()]
    states = _random_states()
    try:
        with _Refuse():
            yield
    finally:
        changed = [name for entry in before for name in _restore(*entry)]
    if _random_states() != states:
        raise TraceError(f"{type(net).__name__} draws random numbers in its own code")
    if changed:
        raise TraceError(f"{type(net).__name__} assigns to its own {', '.join(sorted(set(changed)))}")


@contextmanager
def isinstance_of_traced(net: nn.Module, shown: Callable[[Any], Any]) -> Iterator[None]:
    """Let the modules' code see tensors in traced values, when it asks for their type.

    By isinstance, torch.is_tensor or torch.jit.isinstance.

    Traced values are no tensors, and making them pretend to be would crash code in C, which looks inside.
    So the name ``isinstance`` gets another meaning where the code of the network's modules was written.

    Args:
        net: traced inside.
        shown: what the code shall take a value for.
    """

    def is_instance(value: Any, classes: Any) -> bool:
        return isinstance(value, classes) or isinstance(shown(value), classes)

    def is_tensor(value: Any) -> bool:
        return isinstance(value, Tensor) or isinstance(shown(value), Tensor)

    changed: list[dict[str, Any]] = []
    before, before_of_jit = torch.is_tensor, torch.jit.isinstance
    torch.is_tensor = is_tensor  # type: ignore[assignment]
    torch.jit.isinstance = lambda value, classes: before_of_jit(shown(value), classes)
    try:
        for variables in {id(f.__globals__): f.__globals__ for f in functions_of(net)}.values():
            if "isinstance" not in variables:
                variables["isinstance"] = is_instance
                changed.append(variables)
        yield
    finally:
        torch.is_tensor, torch.jit.isinstance = before, before_of_jit
        for variables in changed:
            del variables["isinstance"]


@contextmanager
def random_left_alone(device: torch.device) -> Iterator[None]:
    """Set the random generators of Python, NumPy and PyTorch back at the end.

    Args:
        device: whose generator of PyTorch's is kept beside that of the CPU.
    """
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)  # noqa: NPY002


def refuse_gradient_hooks(net: nn.Module) -> None:
    """Refuse hooks on the gradients of parameters: the rewritten network has other parameters.

    Raises:
        TraceError: naming the parameter.
    """
    for name, parameter in net.named_parameters():
        if parameter._backward_hooks:
            raise TraceError(f"parameter {name} has a hook on its gradient")


class _Refuse(TorchFunctionMode):
    """Refuses operations before they are made, in this thread only.

    Random tensors that depend on no traced value, and traced values written into tensors that are none.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _RANDOM and not any(_traced(a) for a in (*args, *(kwargs or {}).values())):
            raise TraceError(f"torch.{name} draws random numbers in the network's own code")
        # What is written to a traced value is recorded, and judged when all is known that reads it.
        recorded = bool(args) and isinstance(args[0], torch.fx.Proxy) and (kwargs or {}).get("out") is None
        recorded = recorded and not isinstance(func, torch._ops.OpOverload) and "setitem" not in name
        if (
            not recorded
            and _writes(func, name, kwargs or {})
            and any(isinstance(leaf, torch.fx.Proxy) for leaf in tree_leaves((args, kwargs)))
        ):
            raise TraceError(f"the network's own code changes a tensor in place, by {name}")
        return func(*args, **(kwargs or {}))


def _writes(func: Any, name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes one of its arguments."""
    if isinstance(func, torch._ops.OpOverload):
        return func._schema.is_mutable
    return (
        name in ("__setitem__", "setitem")
        or (name.endswith("_") and not name.endswith("__"))
        or kwargs.get("out") is not None
        or bool(kwargs.get("inplace"))
    )


_COMPILED = {
    "OptimizedModule": "a module of torch.compile: hand over the network that was compiled (its _orig_mod)",
}
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "randint",
        "randperm",
        "rand_like",
        "randn_like",
        "randint_like",
        "normal",
        "bernoulli",
        "multinomial",
        "poisson",
        "normal_",
        "uniform_",
        "bernoulli_",
        "random_",
        "exponential_",
        "cauchy_",
        "geometric_",
        "log_normal_",
    ]
)


def _traced(value: Any) -> bool:
    return isinstance(value, torch.fx.Proxy) or (isinstance(value, Tensor) and value.is_meta)


def _random_states() -> tuple[Any, str]:
    return random.getstate(), repr(np.random.get_state(legacy=False))  # noqa: NPY002


def _restore(
    module: nn.Module, parameters: dict[str, Any], buffers: dict[str, Any], attributes: dict[str, Any]
) -> list[str]:
    """Set a module back; names of what had changed but for stored activations."""
    changed: list[str] = []
    for store, old in ((module._parameters, parameters), (module._buffers, buffers)):
        if set(store) != set(old) or any(store[name] is not old[name] for name in old):
            changed.extend(name for name in {*store, *old} if store.get(name) is not old.get(name))
            store.clear()
            store.update(old)
    now = dict(module.__dict__)
    for name, value in now.items():
        if name in attributes and attributes[name] is value:
            continue
        if not isinstance(value, torch.fx.Proxy):
            changed.append(name)
        if name in attributes:
            module.__dict__[name] = attributes[name]
        else:
            del module.__dict__[name]
    return changed
