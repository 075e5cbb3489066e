"""Random words and the noise made of them: checks and choice of backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oes_fast import reference
from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.backends import resolve
from oes_fast.errors import InputError
from oes_fast.ops import _library
from oes_fast.reference.philox import MASK_NOISE

_PIECE = 2**16  # elements at a time


def random_bits(
    seed: int,
    step: int,
    numel: int,
    *,
    stream: int = MASK_NOISE,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Philox4x32-10 words of elements 0 .. numel-1 (Salmon et al., SC 2011), the same from every backend.

    Args:
        seed: key, in [0, 2^64).
        step: in [0, 2^32).
        numel: how many elements.
        stream: what the words are for, in [0, 2^32).
        device: where to make them.
        backend: "auto", "reference", "torch" (the same here), "cpu", "triton" or "cuda".

    Returns:
        int64 of shape [numel], values in [0, 2^32).

    Raises:
        InputError: a number out of range.
        BackendError: the named backend cannot run here.
    """
    check_integer("seed", seed, minimum=0, below=2**64)
    check_integer("step", step, minimum=0, below=2**32)
    check_integer("numel", numel, minimum=0)
    check_integer("stream", stream, minimum=0, below=2**32)
    chosen = resolve(backend, device, _library.candidates(torch.float32, cuda=True))
    if chosen == "reference":
        return reference.random_bits(seed, step, numel, stream=stream, device=device)
    words = torch.empty(numel, dtype=torch.int64, device=device)
    _library.kernel("random_bits", chosen)(words, _library.as_signed(seed), step, stream)
    return words


def logistic_from_bits(bits: Tensor, dtype: torch.dtype = torch.float32, *, backend: str = "auto") -> Tensor:
    """Logistic(0, 1) noise log(U / (1 - U)) of words, U = (word div 2^9 + 1/2) / 2^23.

    The kernels are within 2 units in the last place of the reference, which is exact but for one rounding.

    Args:
        bits: int64, shape [n], values in [0, 2^32).
        dtype: of the result, float32 or float64.
        backend: "auto", "reference", "torch" (the same here), "cpu", "triton" (float32 only) or "cuda".

    Returns:
        Tensor of shape [n], finite, at most 16.64 in magnitude.

    Raises:
        InputError: ``bits`` is not a vector of int64.
        BackendError: the named backend cannot run here.
    """
    check_tensor("bits", bits, ndim=1, dtypes=(torch.int64,))
    chosen = resolve(backend, bits.device, _library.candidates(dtype, cuda=True))
    if chosen == "reference":
        return reference.logistic_from_bits(bits, dtype)
    noise = torch.empty(bits.shape, dtype=dtype, device=bits.device)
    _library.kernel("logistic_from_bits", chosen)(noise, bits.contiguous())
    return noise


def add_normal_noise(
    out: Tensor,
    base: Tensor,
    std: float | Tensor,
    *,
    seed: int,
    step: int,
    stream: int,
    backend: str = "auto",
) -> Tensor:
    """Write base + std * N(0, 1), a function of (seed, step, stream, element).

    The noise is that of :func:`oes_fast.reference.normal_from_bits`. In float32 "cpu" has a kernel, within 4
    units in the last place of it; otherwise the words come from the backend's kernel, and PyTorch makes the
    noise of them.

    Args:
        out: contiguous, written; may be ``base`` itself.
        base: shape, dtype and device of ``out``.
        std: standard deviation, >= 0, or one for each element in the shape of ``out``.
        seed: key, in [0, 2^64).
        step: in [0, 2^32).
        stream: what the noise is for, in [0, 2^32).
        backend: see :func:`random_bits`.

    Returns:
        ``out``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a number out of range.
        BackendError: the named backend cannot run here.
    """
    check_tensor("out", out)
    check_tensor("base", base, shape=out.shape, like=out)
    if isinstance(std, Tensor):
        check_tensor("std", std, shape=out.shape, like=out)
    else:
        check_number("std", std, minimum=0.0)
    if not out.is_contiguous():
        raise InputError("out: expected a contiguous tensor to write to, got a strided view")
    to, source = out.view(-1), base.reshape(-1)
    chosen = resolve(backend, out.device, _library.candidates(torch.float32, cuda=True))
    if chosen == "cpu" and out.dtype == torch.float32:
        for name, value, below in (("seed", seed, 2**64), ("step", step, 2**32), ("stream", stream, 2**32)):
            check_integer(name, value, minimum=0, below=below)
        stds, factor = (std.reshape(-1), 1.0) if isinstance(std, Tensor) else (None, std)
        add = _library.kernel("add_normal_noise", chosen)
        add(to, source, stds, factor, _library.as_signed(seed), step, stream)
        return out
    words = random_bits(seed, step, out.numel(), stream=stream, device=out.device, backend=backend)
    # In pieces that stay in a processor's cache it takes half as long; a GPU is better off without.
    size = _PIECE if out.device.type == "cpu" else max(out.numel(), 1)
    with torch.no_grad():
        for first in range(0, out.numel(), size):
            piece = slice(first, first + size)
            noise = reference.normal_from_bits(words[piece], out.dtype)
            noise *= std.view(-1)[piece] if isinstance(std, Tensor) else std
            torch.add(source[piece], noise, out=to[piece])
    return out


def _fake_nothing(*arguments: Any) -> None:
    return None


_library.define(
    "random_bits",
    "(Tensor(a!) words, SymInt seed, SymInt step, SymInt stream) -> ()",
    fake=_fake_nothing,
    module="philox",
    backends=("cpu", "triton", "cuda"),
)
_library.define(
    "logistic_from_bits",
    "(Tensor(a!) noise, Tensor bits) -> ()",
    fake=_fake_nothing,
    module="philox",
    backends=("cpu", "triton", "cuda"),
)
_library.define(
    "add_normal_noise",
    "(Tensor(a!) out, Tensor base, Tensor? stds, float std, SymInt seed, SymInt step, SymInt stream) -> ()",
    fake=_fake_nothing,
    module="philox",
    backends=("cpu",),
)
