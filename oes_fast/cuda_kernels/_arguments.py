"""Tensors as the extension takes them: addresses, which are checked here, since nothing else would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast._cuda_extension import device_type, extension, stream_of
from oes_fast.errors import InputError


def address(tensor: Tensor | None) -> int:
    """Where the elements lie; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def place(tensor: Tensor) -> Any:
    """Device and current stream of a tensor, where a launch with it goes.

    Raises:
        InputError: the kernels do not run on its device.
    """
    if tensor.device.type != device_type():
        raise InputError(f"expected a tensor on {device_type()}, got one on {tensor.device}")
    return extension().Place(tensor.device.index or 0, stream_of(tensor))


def launch_arguments(like: Tensor, tensors: Mapping[str, Tensor], shared: str = "") -> dict[str, Any]:
    """What every launch takes: place, type, networks and elements, and the addresses of the tensors.

    Args:
        like: float32 or float64, shape [n] or [N, n].
        tensors: by their names, of that shape, type and device, contiguous.
        shared: the name of a tensor that may be of shape [n] for all networks; its stride is given as well.

    Raises:
        InputError: one of them is something else.
    """
    check_tensor(next(iter(tensors)), like)
    if like.ndim not in (1, 2):
        raise InputError(f"{next(iter(tensors))}: expected shape [n] or [N, n], got {tuple(like.shape)}")
    numel = like.shape[-1]
    found: dict[str, Any] = {
        "place": place(like),
        "float64": like.dtype == torch.float64,
        "networks": 1 if like.ndim == 1 else like.shape[0],
        "numel": numel,
    }
    for name, tensor in tensors.items():
        of_all = name == shared and tensor.ndim == 1
        check_tensor(name, tensor, shape=(numel,) if of_all else like.shape, like=like)
        check_contiguous(name, tensor)
        found[name] = address(tensor)
        if name == shared:
            found[f"{name}_stride"] = 0 if of_all else numel
    return found


def noise_arguments(like: Tensor, seed: int | Tensor, step: int, ticks: Tensor | None) -> dict[str, Any]:
    """Where the noise comes from.

    Args:
        like: a tensor of the launch, shape [n] or [N, n].
        seed: int64 [N] of N networks, or one integer of the bits of an int64 or of a uint64.
        step: of the search.
        ticks: int64 [1], in place of the step; or None.

    Raises:
        InputError: seeds or ticks of another shape, type or device.
    """
    seeds = seed if isinstance(seed, Tensor) else None
    if seeds is not None:
        networks = like.shape[:-1] if like.ndim == 2 else (1,)
        check_tensor("seed", seeds, shape=networks, dtypes=(torch.int64,), device=like.device)
        check_contiguous("seed", seeds)
    check_ticks(like, ticks)
    return {
        "seed": 0 if isinstance(seed, Tensor) else seed - 2**64 if seed >= 2**63 else seed,
        "step": step,
        "seeds": address(seeds),
        "ticks": address(ticks),
    }


def adam_arguments(
    like: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    corrections: Tensor | None,
) -> dict[str, Any]:
    """The numbers of Adam; ``corrections`` as :class:`oes_fast.ops._clock.Clock` has them, or None.

    Raises:
        InputError: corrections of another shape, type or device.
    """
    if corrections is not None:
        check_tensor("corrections", corrections, shape=(None, 2), like=like)
        check_contiguous("corrections", corrections)
    return {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "corrections": address(corrections),
        "rows": 0 if corrections is None else len(corrections),
    }


def check_ticks(like: Tensor, ticks: Tensor | None) -> None:
    """Refuse ticks that are not int64 [1] on the device.

    Raises:
        InputError: they are not.
    """
    if ticks is not None:
        check_tensor("ticks", ticks, shape=(1,), dtypes=(torch.int64,), device=like.device)


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Refuse a strided view.

    Raises:
        InputError: it is one.
    """
    if not tensor.is_contiguous():
        raise InputError(f"{name}: expected a contiguous tensor, got a strided view")
