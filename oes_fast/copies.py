"""Copies of networks, also of those that PyTorch's own copy refuses."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from oes_fast.errors import InputError

NetT = TypeVar("NetT", bound=nn.Module)


def copy_network(net: NetT, replaced: Mapping[int, Any] | None = None) -> NetT:
    """A deep copy of ``net``.

    torch.nn.utils.weight_norm and spectral_norm, and networks that store activations, keep tensors that have
    a history of operations; copy.deepcopy refuses those. The copy has their values, without the history.

    Args:
        net: to copy.
        replaced: what to put in the place of an object, by its id; such an object is not copied.

    Raises:
        InputError: the network holds what cannot be copied, such as an open file or a lock.
    """
    memo: dict[int, Any] = dict(replaced or {})
    for module in net.modules():
        # A layer has a dozen empty dictionaries for hooks, on which deepcopy spends most of its time.
        for held in vars(module).values():
            if type(held) is OrderedDict and not held and not vars(held):
                memo.setdefault(id(held), OrderedDict())
    for tensor in tensors_of(net):
        if id(tensor) not in memo and not tensor.is_leaf:
            memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(net, memo)
    except Exception as error:  # whatever its objects raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"net: expected a network that can be copied, got {reason}") from error


def tensors_of(net: nn.Module) -> Iterator[Tensor]:
    """All tensors that modules hold, also in lists, dictionaries and objects of the user's own."""
    seen: set[int] = set()
    waiting: list[Any] = [net]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
            if value.grad_fn is None and value.is_leaf and value.grad is not None:
                yield value.grad
        else:
            waiting.extend(parts(value))


def parts(value: Any) -> list[Any]:
    """What a container or an object holds; nothing for what is neither."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | Set) or type(value).__name__ == "deque":
        return list(value)
    if isinstance(value, type | ModuleType | torch.dtype | torch.device | FunctionType | BuiltinFunctionType):
        return []
    held = getattr(value, "__dict__", None)
    return list(held.values()) if isinstance(held, dict) else []
