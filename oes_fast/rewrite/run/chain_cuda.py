"""Chains on the CUDA C++ kernels (csrc/cuda/chain/).

The engine takes addresses and a stream, and starts its kernels without waiting for them: what a wrong address
would break is checked here, every tensor before its address is taken. Nothing is allocated but through torch
once a chain is bound, and nothing on the device is read, so that a step can be recorded as a CUDA graph.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from oes_fast import _cuda_extension
from oes_fast._checks import check_tensor
from oes_fast.errors import InputError
from oes_fast.precision import DEFAULT, current
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_find import ConvBlock
from oes_fast.rewrite.run.chain_program import NativeChain

MOST_KERNEL = 15  # rows and columns of a convolution
# Pixels around an image that are copies of its own: those of a side and what they copy lie in one tile of the
# input gradient, of 16 pixels at least.
MOST_COPIED = 7
MOST_NETWORKS = 65535  # of the last dimension of a grid


class CudaChain(NativeChain):
    """See :class:`NativeChain`; it takes any number of networks.

    A constant source is one image for all networks. Another one may be, if it has a leading dimension of 1.
    """

    name = "CUDA chain"
    backend = "cuda"
    explains = True
    groups: ClassVar[
        tuple[int, ...]
    ] = ()  # of outputs that a kernel may have, all for none: tests reach every one

    _stream: torch.cuda.Stream | None = None  # of the last call, on a device

    @staticmethod
    def takes(block: ConvBlock) -> bool:
        """No circular padding, no border as wide as the image or wider than it can copy, no wider kernel."""
        conv = block.conv.stage
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        if max(conv.kernel) > MOST_KERNEL:
            return False
        if block.pad is None:
            return True
        assert isinstance(block.pad.stage, ir.Pad)
        rows, columns = block.pad.inputs[0].shape[2:]
        left, right, top, bottom = block.pad.stage.amount
        widest = max(left, right, top, bottom)
        narrow = min(left, right, top, bottom) >= 0 and max(left, right) < columns and max(top, bottom) < rows
        mode = block.pad.stage.mode
        return narrow and (mode == "zeros" or (mode != "circular" and widest <= MOST_COPIED))

    @staticmethod
    def products_of(dtype: torch.dtype) -> str:
        """The setting of precision; float64 is never rounded."""
        return current() if dtype == torch.float32 else DEFAULT

    def as_read(self, source: Tensor) -> Tensor:
        """See :class:`NativeChain`: as it is."""
        return source.contiguous()

    def explain(self) -> list[str]:
        """See :class:`NativeChain`."""
        return [f"{self.name}: {line}" for line in self.kernels.explain()]

    def _extension(self) -> Any:
        return _cuda_extension.extension()

    def _bound(self, image: tuple[int, int, int]) -> Any:
        try:
            return super()._bound(image)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
        # The engine's buffers are not torch's: what torch holds and does not use is in their way.
        gc.collect()
        torch.cuda.empty_cache()
        try:
            return super()._bound(image)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise torch.OutOfMemoryError(f"CUDA chain: {error}") from error

    def _made(self, image: tuple[int, int, int]) -> Any:
        if not 1 <= self._networks <= MOST_NETWORKS:
            raise InputError(f"networks: expected 1 to {MOST_NETWORKS}, got {self._networks}")
        extension = self._extension()
        cls = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[self._dtype]
        products = getattr(extension.Products, self._products.upper())
        device = self._device.index or 0
        return cls(
            self._networks, *image, self._constant_input, self._kept, products, device, list(self.groups)
        )

    def _evaluate(
        self, weights: Tensor, source: Tensor, running: list[Tensor | None], target: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        shape = self._networks, *self.kernels.shape
        target = None if target is None else target.contiguous()
        output = weights.new_empty(shape)
        loss = None if target is None else weights.new_empty(() if self._networks == 1 else self._networks)
        self.kernels.forward(
            self._weights_address("weights", weights),
            *self._source_address(source),
            _address("out", output, output),
            *self._running_addresses(running, output),
            _address("target", target, output, shape),
            _address("loss", loss, output),
            self._ordered(weights),
        )
        return output, loss

    def _differentiate(
        self, weights: Tensor, source: Tensor, grad: Tensor | None, *, needs_source: bool
    ) -> tuple[Tensor, Tensor]:
        grad_weights = torch.empty_like(weights)
        grad_source = torch.empty_like(source) if needs_source else source.new_empty(0)
        self.kernels.backward(
            self._weights_address("weights", weights),
            *self._source_address(source),
            _address("grad", grad, weights, (self._networks, *self.kernels.shape)),
            self._weights_address("grad_weights", grad_weights),
            _address("grad_source", grad_source if needs_source else None, weights),
            self._ordered(weights),
        )
        return grad_weights, grad_source

    def _weights_address(self, name: str, weights: Tensor) -> int:
        check_tensor(name, weights, dtypes=(self._dtype,), device=self._device)
        shape = (self._kept,) if self._networks == 1 else (self._networks, self._kept)
        return _address(name, weights, weights, shape)

    def _source_address(self, source: Tensor) -> tuple[int, bool]:
        """(address, whether it is one image for all networks)."""
        check_tensor("source", source, dtypes=(self._dtype,), device=self._device)
        shape = self._chain.source.shape
        image = len(self._alive[self._chain.source].varying), *shape[2:]
        shared = source.shape[:1] == (1,)
        return _address("source", source, source, (1 if shared else self._networks, *image)), shared

    def _running_addresses(self, running: list[Tensor | None], like: Tensor) -> tuple[list[int], list[int]]:
        """(addresses of mean and variance of every norm, 0 where they stay; channels of every norm's)."""
        if not running:
            return [], []
        lead = () if self._networks == 1 else (self._networks,)
        norms = [node for block in self._chain.blocks for node in block.norms]
        addresses, channels = [], []
        for node, *pair in zip(norms, running[::2], running[1::2], strict=True):
            name = f"running statistics of {node.name}"
            addresses += [_address(name, tensor, like, (*lead, None)) for tensor in pair]
            sizes = {tensor.shape[-1] for tensor in pair if tensor is not None}
            if len(sizes) > 1 or min(sizes, default=self._channels_of(node)) < self._channels_of(node):
                found = " and ".join(map(str, sorted(sizes)))
                raise InputError(f"{name}: expected {self._channels_of(node)} channels at least, got {found}")
            channels.append(max(sizes, default=0))
        return addresses, channels

    def _channels_of(self, node: ir.Node) -> int:
        """How many channels the running statistics of a norm have at least."""
        assert isinstance(node.stage, ir.Norm)
        return node.stage.first + node.stage.channels

    def _ordered(self, tensor: Tensor) -> int:
        """The stream to start on, behind what the buffers were last used for."""
        if not _cuda_extension.emulated():
            stream = torch.cuda.current_stream(self._device)
            # While a step is recorded, the recording's own stream has waited for the others before.
            if (
                self._stream is not None
                and self._stream != stream
                and not torch.cuda.is_current_stream_capturing()
            ):
                stream.wait_stream(self._stream)
            self._stream = stream
        return _cuda_extension.stream_of(tensor)


def _address(
    name: str, tensor: Tensor | None, like: Tensor, shape: Sequence[int | None] | None = None
) -> int:
    """Where the tensor's numbers begin, 0 for none.

    Raises:
        InputError: not of the dtype, on the device or of the shape expected.
        TypeError: not contiguous.
    """
    if tensor is None:
        return 0
    check_tensor(name, tensor, shape=shape, like=like)
    if not tensor.is_contiguous():
        raise TypeError(f"{name}: expected a contiguous tensor, got a strided view")
    return tensor.data_ptr()
