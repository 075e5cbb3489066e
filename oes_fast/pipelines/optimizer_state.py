"""The state of an optimiser as tensors, for checkpoints: nothing is pickled, and nothing read is run."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from oes_fast.errors import CheckpointError, InputError

STATE = "optimizer."  # names of what is kept begin with it
_LAYOUT = f"{STATE}layout"


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Class and options, by which a checkpoint knows it: "torch.optim.sgd.SGD(lr=0.1, momentum=0.9)".

    An option that is neither number nor text goes by its type. Of classes that are not PyTorch's, attributes
    of object and class that are numbers, text or tuples of them come behind: " with clip=1.0".
    """
    kind = type(optimizer)
    others = {name: value for name, value in _attributes(optimizer).items() if _is_plain(value)}
    behind = ", ".join(f"{name}={_said(value)}" for name, value in sorted(others.items()))
    groups = []
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name != "params"}
        groups.append(", ".join(f"{name}={_said(value)}" for name, value in sorted(options.items())))
    made = f"{kind.__module__}.{kind.__qualname__}({'; '.join(groups)})"
    return f"{made} with {behind}" if behind else made


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser has beside that of PyTorch's: of its own classes, then of itself."""
    own = [kind for kind in type(optimizer).__mro__ if not kind.__module__.startswith("torch.")]
    own.remove(object)
    if not own:
        return {}
    common = vars(torch.optim.Optimizer([torch.zeros(1, device="cpu")], {}))
    found: dict[str, Any] = {}
    for kind in reversed(own):
        found |= {name: value for name, value in vars(kind).items() if not name.startswith("__")}
    return found | {name: value for name, value in vars(optimizer).items() if name not in common}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)


def _said(value: object) -> str:
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_said, value))})"
    plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if plain else type(value).__name__


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors that :func:`load_optimizer_state` makes the state of again.

    Returns:
        The tensors of the state under names of their own, and one of JSON text, uint8, that says where each
        belongs.

    Raises:
        InputError: the state holds something else than tensors, numbers, text, None, and lists and dicts of
            them; with its name.
    """
    tensors: dict[str, Tensor] = {}
    layout = _packed("", optimizer.state_dict(), tensors)
    text = json.dumps(layout).encode()
    return tensors | {_LAYOUT: torch.tensor(list(text), dtype=torch.uint8, device="cpu")}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Give an optimiser of the same class and options what :func:`optimizer_state` gave.

    Raises:
        CheckpointError: it was not made by it.
    """
    try:
        layout = json.loads(bytes(state[_LAYOUT].tolist()))
        made = _unpacked(layout, state)
        optimizer.load_state_dict(made)
        _keep_dtypes(optimizer, made["state"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"optimizer: expected the state of {type(optimizer).__name__}, got something else "
            f"({type(error).__name__}: {error})"
        ) from error


def _keep_dtypes(optimizer: torch.optim.Optimizer, made: dict[int, Any]) -> None:
    """Undo that PyTorch rounds state of another dtype to that of the weights, and takes text apart."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in made.items():
        loaded = optimizer.state[weights[number]]
        for name, value in entries.items():
            if isinstance(value, str):
                loaded[name] = value
            elif isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def _packed(place: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value; its tensors are put aside."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = f"{STATE}{len(tensors)}"
        # Some share memory, as the last gradient and an old direction; files keep each for itself.
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, tuple | list):
        items = [_packed(f"{place}[{number}]", item, tensors) for number, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _packed(f"{place}[{key!r}]", item, tensors)] for key, item in value.items()]}
    raise InputError(
        f"optimizer: expected a state_dict of tensors and numbers, which a checkpoint can keep, got "
        f"{type(value).__name__} as state_dict(){place}"
    )


def _unpacked(layout: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(layout, dict):
        return layout
    ((kind, value), *_) = layout.items()
    if kind == "tensor":
        return tensors[value].clone()
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in value}
    items = [_unpacked(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
