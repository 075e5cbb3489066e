"""What torch.compile leaves alone, and which transformations of PyTorch a rewritten network refuses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from oes_fast.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_REASON = "oes_fast runs kernels and plans of its own here, which torch.compile has nothing to add to"


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``function``, run as it is, with all that it calls, where torch.compile compiles its caller.

    As :func:`torch.compiler.disable`, which imports the compiler and with it doubles the time that
    ``import oes_fast`` takes.
    """
    alone: list[Callable[Arguments, Result]] = []

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled
            return function(*args, **kwargs)
        if not alone:
            alone.append(torch.compiler.disable(function))
        return alone[0](*args, **kwargs)

    # Dynamo calls it in place of looking into it.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
    call._torchdynamo_disable_recursive = True  # type: ignore[attr-defined]
    return call


def refuse_transforms(**tensors: Tensor) -> None:
    """Refuse tensors with a tangent, and batches of torch.func.vmap.

    Plans keep results from call to call and chains run in C++: neither passes a tangent or a hidden batch on.

    Raises:
        InputError: naming the argument.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            raise InputError(
                f"{name}: expected no tangent of forward-mode differentiation (torch.func.jvp, jacfwd), got "
                "one; rewritten networks have reverse-mode derivatives: torch.func.grad, vjp, jacrev"
            )
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_batchedtensor(tensor):
                raise InputError(
                    f"{name}: expected a tensor outside torch.func.vmap, got a batch of it; loop over it"
                )
            tensor = torch._C._functorch.get_unwrapped(tensor)
