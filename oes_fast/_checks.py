"""Checks of arguments, shared by every public function: a bad one gives a single clear line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor

from oes_fast.errors import InputError

MAX_SEED = 2**63
MAX_RUNS = 100  # networks, inputs and results of all lie in memory at once
FLOAT_DTYPES = (torch.float32, torch.float64)


def check_tensor(
    name: str,
    value: object,
    *,
    ndim: int | None = None,
    shape: Sequence[int | None] | None = None,
    dtypes: Sequence[torch.dtype] = FLOAT_DTYPES,
    like: Tensor | None = None,
    device: torch.device | None = None,
    finite: bool = False,
) -> Tensor:
    """Return ``value`` if it is the tensor that is expected, else raise :class:`InputError`.

    Args:
        name: the argument's name, for the message.
        value: what came.
        ndim: number of dimensions expected.
        shape: sizes expected; None stands for any.
        dtypes: dtypes accepted.
        like: a tensor whose dtype and device it must share.
        device: where it must be, whatever its dtype.
        finite: refuse NaN and infinity (reads the whole tensor).
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got one of layout {value.layout}")
    if value.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise InputError(f"{name}: expected dtype {wanted}, got {str(value.dtype).removeprefix('torch.')}")
    if ndim is not None and value.ndim != ndim:
        raise InputError(f"{name}: expected {ndim} dimensions, got shape {tuple(value.shape)}")
    if shape is not None and not _shape_matches(value.shape, shape):
        wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        raise InputError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
    if like is not None and (value.dtype != like.dtype or value.device != like.device):
        raise InputError(
            f"{name}: expected {like.dtype} on {like.device}, got {value.dtype} on {value.device}"
        )
    if device is not None and value.device != device:
        raise InputError(f"{name}: expected a tensor on {device}, got one on {value.device}")
    if finite:
        check_values(name, value)
        bad = value.numel() - int(torch.isfinite(value).sum())
        if bad:
            raise InputError(f"{name}: expected finite values, got {bad} NaN or infinite of {value.numel()}")
    return value


def check_values(name: str, value: Tensor) -> Tensor:
    """Return ``value`` if it has numbers that can be read, which one on the meta device has not."""
    if value.is_meta:
        raise InputError(f"{name}: expected a tensor with values, got one on the meta device")
    return value


def check_length(name: str, value: object, length: int, wanted: str) -> Sequence[Any]:
    """Return ``value`` if it is a sequence of so many; ``wanted`` says what of, as "(height, width)"."""
    try:
        fits = not isinstance(value, str) and len(value) == length  # type: ignore[arg-type]
    except TypeError:  # a number, and a tensor that is one
        fits = False
    if not fits:
        raise InputError(f"{name}: expected {wanted}, got {value!r}")
    return cast(Sequence[Any], value)


def described(value: object, *, of_network: bool = True) -> str:
    """What was returned in the place of one tensor, for a message; of a network, with how to get at one."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    advice = "; wrap the network in a module whose forward takes the image out of it" if of_network else ""
    either = f"{advice}, or say which by entry=" if of_network else ""
    if isinstance(value, Mapping):
        return f"a {kind} with {', '.join(map(repr, value)) or 'nothing'}{either}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {len(value)}{either}"
    return f"{kind}{'' if value is None or isinstance(value, int | float) else advice}"


def check_logits(
    logits: object, *, like: Tensor | None = None, numel: int | None = None, finite: bool = False
) -> Tensor:
    """``logits``, if they are of shape [numel], or of shape [q - 1, numel] with q > 2 levels.

    Args:
        logits: what came.
        like: a tensor whose dtype and device they must share.
        numel: elements expected, None for any number.
        finite: refuse NaN and infinity.

    Raises:
        InputError: another shape, dtype or device.
    """
    tensor = check_tensor("logits", logits, like=like, finite=finite)
    if tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[0] == 1):  # one row: two levels, written flat
        return check_tensor("logits", tensor, shape=(numel,))
    return check_tensor("logits", tensor, shape=(None, numel))


def check_written(tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Check the arguments that an operation writes: contiguous, and no memory shared with another argument.

    Args:
        tensors: all arguments.
        names: of those that are written.

    Raises:
        InputError: a strided view, or one that overlaps another argument.
    """
    for name in names:
        if not tensors[name].is_contiguous():
            raise InputError(f"{name}: expected a contiguous tensor to write to, got a strided view")
    if torch.compiler.is_compiling():
        return  # a tensor that is being traced has no address
    ends = {name: (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for name, t in tensors.items()}
    for name in names:
        for other, (begin, end) in ends.items():
            if other != name and begin < ends[name][1] and ends[name][0] < end:
                raise InputError(f"{name}: expected memory of its own to write to, it overlaps {other}")


def _shape_matches(got: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(got) == len(wanted) and all(w is None or g == w for g, w in zip(got, wanted, strict=True))


def check_number(
    name: str,
    value: float,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """Return ``value`` as a float if it is finite and in range (``above`` and ``below`` are exclusive)."""
    if not isinstance(value, int | float) and isinstance(value, Real):
        value = float(value)  # NumPy's numbers; what torch.compile traces does not come here
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name}: expected a number, got {type(value).__name__}")
    bounds = [
        (minimum is None or value >= minimum, f">= {minimum}"),
        (above is None or value > above, f"> {above}"),
        (maximum is None or value <= maximum, f"<= {maximum}"),
        (below is None or value < below, f"< {below}"),
    ]
    asked = [
        text
        for bound, (_, text) in zip((minimum, above, maximum, below), bounds, strict=True)
        if bound is not None
    ]
    # Not math.isfinite, which torch.compile cannot follow where it has made a number a symbol.
    if not abs(value) < math.inf or not all(ok for ok, _ in bounds):
        raise InputError(
            f"{name}: expected a finite number {' and '.join(asked)}".rstrip() + f", got {value}"
        )
    return float(value)


def check_scale(
    name: str,
    value: float,
    dtype: torch.dtype,
    *,
    minimum: float | None = None,
    above: float | None = None,
) -> float:
    """As :func:`check_number`, of what is multiplied with tensors of ``dtype``: it must be a number there."""
    number, largest = check_number(name, value, minimum=minimum, above=above), torch.finfo(dtype).max
    if abs(number) > largest:
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{name}: expected a number of {kind}, which go to {largest:.3g}, got {number}")
    return number


def check_integer(name: str, value: int, *, minimum: int | None = None, below: int | None = None) -> int:
    """Return ``value`` if it is an integer with minimum <= value < below."""
    if isinstance(value, bool) or not isinstance(value, Integral):  # NumPy's integers too
        raise InputError(f"{name}: expected an integer, got {type(value).__name__}")
    if (minimum is not None and value < minimum) or (below is not None and value >= below):
        bounds = [f">= {minimum}"] if minimum is not None else []
        bounds += [f"< {below}"] if below is not None else []
        raise InputError(f"{name}: expected an integer {' and '.join(bounds)}, got {value}")
    return int(value)


def check_steps(name: str, value: int, *, minimum: int = 0) -> int:
    """Return ``value`` if so many steps can be made: those of a run are numbered in 32 bits."""
    return check_integer(name, check_integer(name, value, minimum=minimum), below=2**32)


def check_flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}: expected True or False, got {value!r}")
    return value


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value
