"""What a trace cannot see: refuse networks whose code does more than compute its output from its input."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oes_fast.rewrite.convert import TraceError


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
    before = [(m, dict(m._parameters), dict(m._buffers), dict(m.__dict__)) for m in net.modules()]
    states = _random_states()
    try:
        with _RefuseRandom():
            yield
    finally:
        changed = [name for entry in before for name in _restore(*entry)]
    if _random_states() != states:
        raise TraceError(f"{type(net).__name__} draws random numbers in its own code")
    if changed:
        raise TraceError(f"{type(net).__name__} assigns to its own {', '.join(sorted(set(changed)))}")


def refuse_gradient_hooks(net: nn.Module) -> None:
    """Refuse hooks on the gradients of parameters: the rewritten network has other parameters.

    Raises:
        TraceError: naming the parameter.
    """
    for name, parameter in net.named_parameters():
        if parameter._backward_hooks:
            raise TraceError(f"parameter {name} has a hook on its gradient")


class _RefuseRandom(TorchFunctionMode):
    """Refuses random tensors that depend on no traced value, before they are drawn; in this thread only."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _RANDOM and not any(_traced(a) for a in (*args, *(kwargs or {}).values())):
            raise TraceError(f"torch.{name} draws random numbers in the network's own code")
        return func(*args, **(kwargs or {}))


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
