"""CUDA kernels of oes_fast/reference/gumbel_mask.py: csrc/cuda/mask/gumbel_mask.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast._cuda_extension import extension
from oes_fast.cuda_kernels._arguments import address, launch_arguments, noise_arguments


def gumbel_mask_out(
    masked: Tensor,
    w0: Tensor,
    logits: Tensor,
    seed: int | Tensor,
    step: int,
    temperature: float,
    ticks: Tensor | None = None,
) -> None:
    """Masked weights into ``masked``, float32 or float64, shape [n] or [N, n], contiguous arguments.

    ``w0`` may be [n] for all networks, ``seed`` int64 [N]; ``ticks``, int64 [1], stands for the step.
    """
    extension().gumbel_mask(
        **launch_arguments(logits, {"logits": logits, "masked": masked, "w0": w0}, shared="w0"),
        **noise_arguments(logits, seed, step, ticks),
        temperature=temperature,
    )


def gumbel_mask(w0: Tensor, logits: Tensor, seed: int | Tensor, step: int, temperature: float) -> Tensor:
    """Masked weights of the shape of ``logits``; see :func:`gumbel_mask_out`."""
    masked = torch.empty_like(logits)
    gumbel_mask_out(masked, w0, logits, seed, step, temperature)
    return masked


def gumbel_mask_backward(
    grad: Tensor,
    w0: Tensor,
    logits: Tensor,
    seed: int | Tensor,
    step: int,
    temperature: float,
    needs_w0: bool,
    needs_logits: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of w0, for each network, and logits, of their shape; or [0] for what is not needed."""
    grad_w0 = torch.empty_like(logits) if needs_w0 else logits.new_empty(0)
    grad_logits = torch.empty_like(logits) if needs_logits else logits.new_empty(0)
    extension().gumbel_mask_backward(
        **launch_arguments(logits, {"logits": logits, "grad": grad, "w0": w0}, shared="w0"),
        **noise_arguments(logits, seed, step, None),
        temperature=temperature,
        grad_w0=address(grad_w0 if needs_w0 else None),
        grad_logits=address(grad_logits if needs_logits else None),
    )
    return grad_w0, grad_logits
