"""CUDA kernels of oes_fast/reference/philox.py: csrc/cuda/mask/noise.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from oes_fast._checks import check_tensor
from oes_fast._cuda_extension import extension
from oes_fast.cuda_kernels._arguments import address, check_contiguous, place


def random_bits(words: Tensor, seed: int, step: int, stream: int) -> None:
    """Fill ``words`` (int64, shape [n], contiguous), see oes_fast.reference.random_bits."""
    check_tensor("words", words, ndim=1, dtypes=(torch.int64,))
    check_contiguous("words", words)
    extension().random_bits(
        place=place(words), numel=words.numel(), seed=seed, step=step, stream=stream, words=address(words)
    )


def logistic_from_bits(noise: Tensor, bits: Tensor) -> None:
    """Fill ``noise`` (float32 or float64) from ``bits`` (int64), shape [n], contiguous, as the reference."""
    check_tensor("noise", noise, ndim=1)
    check_tensor("bits", bits, shape=noise.shape, dtypes=(torch.int64,), device=noise.device)
    check_contiguous("noise", noise)
    check_contiguous("bits", bits)
    extension().logistic_from_bits(
        place=place(noise),
        float64=noise.dtype == torch.float64,
        numel=noise.numel(),
        words=address(bits),
        noise=address(noise),
    )
