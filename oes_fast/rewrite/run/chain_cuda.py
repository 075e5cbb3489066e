"""Chains on the CUDA C++ kernels (csrc/cuda/chain/), which take addresses and a stream."""

from __future__ import annotations

import gc
from typing import Any, ClassVar

import torch
from torch import Tensor

from oes_fast import _cuda_extension
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_find import ConvBlock
from oes_fast.rewrite.run.chain_gpu import GpuChain

MOST_KERNEL = 15  # rows and columns of a convolution
# Pixels around an image that are copies of its own: those of a side and what they copy lie in one tile of the
# input gradient, of 16 pixels at least.
MOST_COPIED = 7


class CudaChain(GpuChain):
    """See :class:`GpuChain`."""

    name = "CUDA chain"
    backend = "cuda"
    groups: ClassVar[
        tuple[int, ...]
    ] = ()  # of outputs that a kernel may have, all for none: tests reach every one

    @staticmethod
    def takes(block: ConvBlock) -> bool:
        """What :class:`GpuChain` takes, with no border wider than it can copy, and no wider kernel."""
        conv = block.conv.stage
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        if max(conv.kernel) > MOST_KERNEL or not GpuChain.takes(block):
            return False
        if block.pad is None:
            return True
        assert isinstance(block.pad.stage, ir.Pad)
        return block.pad.stage.mode == "zeros" or max(block.pad.stage.amount) <= MOST_COPIED

    def _extension(self) -> Any:
        return _cuda_extension.extension()

    def _bound(self) -> Any:
        try:
            return super()._bound()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
        # The engine's buffers are not torch's: what torch holds and does not use is in their way.
        gc.collect()
        torch.cuda.empty_cache()
        try:
            return super()._bound()
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(f"CUDA chain: {error}") from error

    def _made(self, image: tuple[int, int, int]) -> Any:
        self._check_networks()
        extension = self._extension()
        cls = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[self._dtype]
        products = getattr(extension.Products, self._products.upper())
        device = self._device.index or 0
        return cls(
            self._networks, *image, self._constant_input, self._kept, products, device, list(self.groups)
        )

    def _forward(
        self,
        weights: Tensor,
        source: Tensor,
        output: Tensor,
        running: list[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
        loss: Tensor | None,
    ) -> None:
        pairs = zip(running[::2], running[1::2], strict=True)
        self.kernels.forward(
            weights.data_ptr(),
            source.data_ptr(),
            self._is_shared(source),
            output.data_ptr(),
            list(map(_address, running)),
            [max((t.shape[-1] for t in pair if t is not None), default=0) for pair in pairs],
            _address(target),
            _address(weight),
            _address(loss),
            _cuda_extension.stream_of(weights),
        )

    def _backward(
        self,
        weights: Tensor,
        source: Tensor,
        grad: Tensor | None,
        grad_weights: Tensor,
        grad_source: Tensor | None,
    ) -> None:
        self.kernels.backward(
            weights.data_ptr(),
            source.data_ptr(),
            self._is_shared(source),
            _address(grad),
            grad_weights.data_ptr(),
            _address(grad_source),
            _cuda_extension.stream_of(weights),
        )


def _address(tensor: Tensor | None) -> int:
    """Where the tensor's numbers begin, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
