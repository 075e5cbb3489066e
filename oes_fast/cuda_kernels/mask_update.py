"""CUDA kernel of oes_fast/reference/mask_update.py: csrc/cuda/mask/mask_update.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast._cuda_extension import extension
from oes_fast.cuda_kernels._arguments import adam_arguments, address, launch_arguments, noise_arguments


def mask_update(
    logits: Tensor,
    grad: Tensor,
    w0: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    seed: int | Tensor,
    step: int,
    temperature: float,
    kl: float,
    density: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    kl_value: bool,
    ticks: Tensor | None = None,
    corrections: Tensor | None = None,
) -> Tensor:
    """Update in place, float32 or float64, shape [n] or [N, n], contiguous arguments; the KL sums, [] or [N].

    ``w0`` may be [n] for all networks, ``seed`` int64 [N]. ``ticks``, int64 [1], stands for the step;
    ``corrections`` [rows, 2], of the type of ``logits``, holds Adam's in row step mod rows. Without
    ``kl_value`` nothing is written to what is returned.
    """
    arrays = {"logits": logits, "grad": grad, "w0": w0, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    given = launch_arguments(logits, arrays, shared="w0")
    networks, numel = given["networks"], given["numel"]
    value = logits.new_empty(logits.shape[:-1]) if numel else logits.new_zeros(logits.shape[:-1])
    sums = tickets = None
    if kl_value:
        sums = logits.new_empty(networks * extension().kl_blocks(numel), dtype=torch.float64)
        tickets = logits.new_zeros(networks, dtype=torch.int32)
    extension().mask_update(
        **given,
        **noise_arguments(logits, seed, step, ticks),
        **adam_arguments(logits, lr, beta1, beta2, eps, corrections),
        temperature=temperature,
        kl=kl,
        density=density,
        kl_value=address(value if kl_value else None),
        kl_sums=address(sums),
        kl_tickets=address(tickets),
    )
    return value
