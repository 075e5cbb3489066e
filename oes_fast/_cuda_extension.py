"""The CUDA C++ extension: the one for a GPU, or the emulated one for CPU tensors."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor


def emulated() -> bool:
    """Whether the kernels run in an emulation on CPU tensors: OES_FAST_EMULATE_CUDA=1."""
    return os.environ.get("OES_FAST_EMULATE_CUDA", "0") == "1"


def device_type() -> str:
    """Where tensors lie that the extension takes."""
    return "cpu" if emulated() else "cuda"


def extension() -> Any:
    """The module."""
    return importlib.import_module("oes_fast._C_cuda_emulated" if emulated() else "oes_fast._C_cuda")


def stream_of(tensor: Tensor) -> int:
    """The current stream of a tensor's device, as a number."""
    return 0 if emulated() else torch.cuda.current_stream(tensor.device).cuda_stream
