"""The extension with the CUDA kernels: the real one, or the same sources emulated on the CPU.

Under OES_FAST_EMULATE_CUDA=1 the kernels run on CPU tensors, very slowly: for tests on a machine without a
GPU. Whether the extension may be loaded is told by ``oes_fast.backends()["cuda"]``.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from oes_fast import _extension

EMULATE = "OES_FAST_EMULATE_CUDA"  # the variable


def emulated() -> bool:
    """Whether CUDA kernels are emulated on the CPU; the variable is read whenever this is asked."""
    return os.environ.get(EMULATE, "0") == "1"


def description() -> _extension.Extension:
    """What the extension is built from."""
    return _extension.EMULATED_CUDA if emulated() else _extension.CUDA


def extension() -> Any:
    """The module with the CUDA kernels.

    Raises:
        ImportError: it is not there or does not load.
    """
    return importlib.import_module(description().name)


def device_type() -> str:
    """Where tensors for the kernels lie: "cuda", or "cpu" for the emulation."""
    return "cpu" if emulated() else "cuda"


def stream_of(tensor: Tensor) -> int:
    """Address of the stream for the kernels: PyTorch's current one on the tensor's device; 0 emulated."""
    return 0 if emulated() else int(torch.cuda.current_stream(tensor.device).cuda_stream)
