"""Registration of the kernels with torch: one operator an operation and backend, oes_fast::OPERATION_BACKEND.

The schemas, the fakes for tracing and the derivatives are written once, here and in the operations' files;
the C++ extension adds what computes on the CPU, and :func:`define` what launches kernels on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

KERNELS = ("cpu", "triton")  # the backends that every operation has kernels for
LAUNCHED_FROM = {"triton": "kernels", "cuda": "cuda_kernels"}  # packages with a module for each operation

_LIBRARY = torch.library.Library("oes_fast", "FRAGMENT")
_backends_of: dict[str, tuple[str, ...]] = {}


def define(
    name: str, schema: str, *, fake: Callable[..., Any], module: str, backends: Sequence[str] = KERNELS
) -> None:
    """Declare the operators of one operation.

    Args:
        name: of the operation.
        schema: arguments and results, in torch's schema language.
        fake: makes empty results from empty arguments.
        module: of oes_fast.kernels and, for "cuda", oes_fast.cuda_kernels, with a function ``name`` of the
            schema's arguments that launches.
        backends: those that have kernels for it.
    """
    _backends_of[name] = tuple(backends)
    for backend in backends:
        _LIBRARY.define(f"{name}_{backend}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"oes_fast::{name}_{backend}", fake, lib=_LIBRARY)
        if backend in LAUNCHED_FROM:

            def launch(*arguments: Any, backend: str = backend) -> Any:
                return launcher(backend, module, name)(*arguments)

            _LIBRARY.impl(f"{name}_{backend}", launch, "CompositeExplicitAutograd")


def launcher(backend: str, module: str, name: str) -> Callable[..., Any]:
    """The function that launches an operation's kernel: see :func:`define`."""
    # Imported at the first call, since Triton is optional and slow to import.
    return getattr(importlib.import_module(f"oes_fast.{LAUNCHED_FROM[backend]}.{module}"), name)


def define_backward(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Give the operators of one operation a derivative.

    Args:
        name: of the operation.
        backward: (ctx, backend, *gradients) to gradients of the arguments.
        setup_context: keeps what ``backward`` needs, see torch.library.register_autograd.
    """
    for backend in _backends_of[name]:

        def of_backend(ctx: Any, *grads: Any, backend: str = backend) -> Any:
            return backward(ctx, backend, *grads)

        torch.library.register_autograd(
            f"oes_fast::{name}_{backend}", of_backend, setup_context=setup_context, lib=_LIBRARY
        )


def define_once_differentiable(name: str) -> None:
    """Refuse a second derivative of ``name``, whose first one is the operator ``name``_backward."""

    def refuse(ctx: Any, backend: str, *grads: Any) -> None:
        raise NotImplementedError(
            f'{name}: backend "{backend}" has no second derivative; use backend="reference"'
        )

    define_backward(f"{name}_backward", refuse, lambda ctx, inputs, output: None)


def candidates(
    dtype: torch.dtype, *, cpu: bool = True, cuda: bool = False, levels: bool = False
) -> tuple[str, ...]:
    """The backends that have an operation in this dtype: Triton's are float32 only.

    Args:
        dtype: of the tensors.
        cpu: whether the C++ extension has the operation.
        cuda: whether there is a CUDA C++ kernel for it.
        levels: whether a mask has more than two levels, which no kernel has.
    """
    if levels:
        return ("reference",)
    kernels = (*(("cpu",) if cpu else ()), *(("cuda",) if cuda else ()))
    return (*kernels, "triton", "reference") if dtype == torch.float32 else (*kernels, "reference")


def kernel(name: str, backend: str) -> Callable[..., Any]:
    """The operator of one operation and backend."""
    return getattr(torch.ops.oes_fast, f"{name}_{backend}").default


def measuring() -> AbstractContextManager[None]:
    """Inside, Triton kernels look for the best configuration of problems that they do not know yet."""
    if importlib.util.find_spec("triton") is None:
        return contextlib.nullcontext()
    return importlib.import_module("oes_fast.kernels.tuning").measuring()


def as_signed(value: int) -> int:
    """An integer in [0, 2^64) as the int64 of the same bits, which is what a schema can carry."""
    return value - 2**64 if value >= 2**63 else value
