"""CUDA kernel of oes_fast/reference/masked_adam.py: csrc/cuda/mask/masked_adam.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast._cuda_extension import extension
from oes_fast.cuda_kernels._arguments import (
    adam_arguments,
    address,
    check_contiguous,
    check_ticks,
    launch_arguments,
)


def masked_adam(
    weights: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    mask: Tensor | None,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    ticks: Tensor | None = None,
    corrections: Tensor | None = None,
) -> None:
    """Update in place, float32 or float64, shape [n] or [N, n], contiguous arguments.

    ``mask``, bool, may be [n] for all networks. ``ticks``, int64 [1], stands for the step; ``corrections``
    [rows, 2], of the type of ``weights``, holds Adam's in row step mod rows.
    """
    arrays = {"weights": weights, "grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    given = launch_arguments(weights, arrays)
    of_all = mask is None or mask.ndim == 1
    if mask is not None:
        shape = weights.shape[-1:] if of_all else weights.shape
        check_tensor("mask", mask, shape=shape, dtypes=(torch.bool,), device=weights.device)
        check_contiguous("mask", mask)
    check_ticks(weights, ticks)
    extension().masked_adam(
        **given,
        **adam_arguments(weights, lr, beta1, beta2, eps, corrections),
        step=step,
        ticks=address(ticks),
        mask=address(mask),
        mask_stride=0 if of_all else weights.shape[-1],
    )
