"""What a network's code remembers from one call to the next, outside of parameters and buffers."""

from __future__ import annotations

import contextlib
import dis
import random
from collections.abc import Iterator, Mapping, Set
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from oes_fast.rewrite.tracing.dataflow import content

_LIBRARIES = ("torch", "numpy", "builtins", "oes_fast.nn", "oes_fast.models", "functools", "typing")
_MOST_OBJECTS = 20_000
_MOST_ELEMENTS = 10_000


def remembered(net: nn.Module) -> dict[str, Any]:
    """Everything that a call may change unseen, by a name for it, in a form to compare.

    Attributes of modules with what their lists, dictionaries and objects hold, variables of their classes,
    the global variables and those of enclosing functions that their code names, and the states of random
    generators among them. A tensor that was computed counts by its shape alone.
    """
    seen: dict[int, int] = {id(t): -1 for t in [*net.parameters(), *net.buffers()]}
    alive: list[Any] = []  # so that no other object gets the same id
    found: dict[str, Any] = {}
    classes: set[type] = set()
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                found[f"{path}.{name}".lstrip(".")] = _form(value, seen, alive)
        for cls in type(module).__mro__:
            if cls not in classes and not _of_library(cls.__module__):
                classes.add(cls)
                for name, value in vars(cls).items():
                    if not name.startswith("__") or name == "__call__":
                        found[f"{cls.__name__}.{name}"] = _form(value, seen, alive)
    return found


def asks_types(net: nn.Module) -> bool:
    """Whether the code asks for the type of a value: a tensor without values is of another type."""
    for function in functions_of(net):
        for instruction in _instructions(function.__code__):
            if instruction.argval == "__class__" and instruction.opname == "LOAD_ATTR":
                return True
            if instruction.argval == "type" and instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                return True
    return False


def asks_inference_mode(net: nn.Module) -> str | None:
    """The name by which the code asks for inference mode, which no trace has; None where it does not."""
    return _first_named(net, ("is_inference_mode_enabled", "is_inference"))


def seeds(net: nn.Module) -> str | None:
    """The name by which the code sets a random generator back, before it draws from it; None for none."""
    return _first_named(net, ("manual_seed", "manual_seed_all", "seed", "fork_rng", "set_rng_state"))


def _first_named(net: nn.Module, wanted: tuple[str, ...]) -> str | None:
    names = {name for f in functions_of(net) for code in _codes(f.__code__) for name in code.co_names}
    return next((name for name in wanted if name in names), None)


def functions_of(net: nn.Module) -> list[FunctionType]:
    """The functions that a call of the network may run, as far as names tell, but for libraries'."""
    classes = {cls for m in net.modules() for cls in type(m).__mro__ if not _of_library(cls.__module__)}
    held: dict[str, list[Any]] = {}
    for owner in (*classes, *net.modules()):
        for name, value in vars(owner).items():
            held.setdefault(name, []).append(value)
    hooks = [name for name in held if name.endswith("_hooks")]
    waiting = [v for name in ("forward", "__call__", *hooks) for v in held.get(name, [])]
    found: dict[int, FunctionType] = {}
    while waiting:
        value = waiting.pop()
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(value, FunctionType) and id(value) not in found:
            if not _of_library(value.__module__ or ""):
                found[id(value)] = value
                waiting.extend(_variables(value))
                names = {name for code in _codes(value.__code__) for name in code.co_names}
                waiting.extend(v for name in names for v in held.get(name, []))
        elif isinstance(value, Mapping | list | tuple) and len(value) < 100:  # hooks, lists of functions
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
    return list(found.values())


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those defined inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    for own in _codes(code):
        yield from dis.get_instructions(own)


def _form(value: Any, seen: dict[int, int], alive: list[Any]) -> tuple[Any, ...]:
    """A flat description of an object and all that it holds."""
    form: list[Any] = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str | bytes | int | float | complex | type(None)):
            form.append((type(value).__name__, repr(value)))
            continue
        if id(value) in seen:
            form.append(("again", seen[id(value)]))
            continue
        if len(seen) > _MOST_OBJECTS:
            break
        seen[id(value)] = len(seen)
        alive.append(value)
        leaf = _leaf(value)
        if leaf is not None:
            form.append((type(value).__name__, leaf))
            continue
        parts = _parts(value)
        form.append((type(value).__name__, len(parts)))
        waiting.extend(reversed(parts))
    return tuple(form)


def _leaf(value: Any) -> Any:
    """The content of an object that holds no others; None for what does."""
    if isinstance(value, Tensor):
        if isinstance(value, FakeTensor) or value.is_meta:
            return tuple(value.shape)
        return content(value) if value.numel() <= _MOST_ELEMENTS else (id(value), value._version)
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes() if value.size <= _MOST_ELEMENTS else id(value)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, torch.Generator):
        return content(value.get_state())
    if isinstance(value, type | ModuleType | nn.Module | torch.fx.Proxy):
        return ""  # modules are gone through by name
    return None


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple) or type(value).__name__ == "deque":
        return list(value)
    if isinstance(value, Set):
        return [repr(sorted(map(repr, value)))]
    if isinstance(value, MethodType):
        return [value.__func__]
    if isinstance(value, FunctionType):
        return _variables(value)
    held = getattr(value, "__dict__", None)
    parts = [part for item in held.items() for part in item] if isinstance(held, dict) else []
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            parts.append(getattr(value, name, None))
    if not parts:
        text = ""
        with contextlib.suppress(Exception):  # whatever an object of the user's own raises
            text = repr(value)
        parts.append("" if " at 0x" in text else text)
    return parts


def _variables(function: FunctionType) -> list[Any]:
    """Variables outside a function that its code may change."""
    if _of_library(function.__module__ or ""):
        return []
    names = [name for code in _codes(function.__code__) for name in code.co_names]
    found = [name for name in names if name in function.__globals__]
    parts: list[Any] = [function.__globals__[name] for name in found]
    parts.extend(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    return parts


def _of_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES or module.startswith(("oes_fast.nn", "oes_fast.models"))
