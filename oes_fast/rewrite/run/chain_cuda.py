"""Chains on the CUDA C++ kernels (csrc/cuda/chain/), which take addresses and a stream.

The kernels are started without waiting for them: what a wrong tensor would break is checked here, before
its address is taken. Once a chain is bound, nothing is allocated but results and nothing on the device is
read, so that a step can be recorded as a CUDA graph.
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

MOST_NETWORKS = 65535  # of the last dimension of a grid
MOST_KERNEL = 15  # rows and columns of a convolution
# Pixels around an image that are copies of its own: those of a side and what they copy lie in one tile of the
# input gradient, of 16 pixels at least.
MOST_COPIED = 7


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
        narrow = min(left, right, top, bottom) >= 0 and max(left, right) < columns and max(top, bottom) < rows
        if not narrow or block.pad.stage.mode == "circular":
            return False
        return block.pad.stage.mode == "zeros" or max(block.pad.stage.amount) <= MOST_COPIED

    @staticmethod
    def products_of(dtype: torch.dtype) -> str:
        """The setting of precision; float64 is never rounded."""
        return current() if dtype == torch.float32 else DEFAULT

    def as_read(self, entry: int, source: Tensor) -> Tensor:
        """See :class:`NativeChain`: as it is; padding and sums of a constant image are not in a chain."""
        return source.contiguous()

    def explain(self) -> list[str]:
        """See :class:`NativeChain`."""
        return [f"{self.name}: {line}" for line in self.kernels.explain()]

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

    def _check_networks(self) -> None:
        if not 1 <= self._networks <= MOST_NETWORKS:
            raise InputError(f"networks: expected 1 to {MOST_NETWORKS}, got {self._networks}")

    def _evaluate(
        self,
        weights: Tensor,
        sources: list[Tensor],
        running: list[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        (source,) = sources
        shape = self._networks, *self.kernels.shape
        target = None if target is None else target.contiguous()
        weight = None if weight is None else weight.contiguous()
        self._check_weights(weights)
        self._check_source(source)
        output = weights.new_empty(shape)
        self._check_running(running, output)
        if target is not None:
            _check("target", target, output, shape)
        if weight is not None:
            _check("weight", weight, output, shape)
        loss = None if target is None else weights.new_empty(() if self._networks == 1 else self._networks)
        self._wait_for_buffers()
        pairs = zip(running[::2], running[1::2], strict=True)
        self.kernels.forward(
            weights.data_ptr(),
            source.data_ptr(),
            source.shape[0] == 1,
            output.data_ptr(),
            list(map(_address, running)),
            [max((t.shape[-1] for t in pair if t is not None), default=0) for pair in pairs],
            _address(target),
            _address(weight),
            _address(loss),
            _cuda_extension.stream_of(weights),
        )
        return output, loss

    def _differentiate(
        self, weights: Tensor, sources: list[Tensor], grad: Tensor | None, *, needs_sources: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        (source,), (needs_source,) = sources, needs_sources
        self._check_weights(weights)
        self._check_source(source)
        if grad is not None:
            _check("grad", grad, weights, (self._networks, *self.kernels.shape))
        grad_weights = torch.empty_like(weights)
        grad_source = torch.empty_like(source) if needs_source else source.new_empty(0)
        self._wait_for_buffers()
        self.kernels.backward(
            weights.data_ptr(),
            source.data_ptr(),
            source.shape[0] == 1,
            _address(grad),
            grad_weights.data_ptr(),
            _address(grad_source if needs_source else None),
            _cuda_extension.stream_of(weights),
        )
        return grad_weights, [grad_source]

    def _check_weights(self, weights: Tensor) -> None:
        check_tensor("weights", weights, dtypes=(self._dtype,), device=self._device)
        shape = (self._kept,) if self._networks == 1 else (self._networks, self._kept)
        _check("weights", weights, weights, shape)

    def _check_source(self, source: Tensor) -> None:
        check_tensor("source", source, dtypes=(self._dtype,), device=self._device)
        shape = self._chain.source.shape
        image = len(self._alive[self._chain.source].varying), *shape[2:]
        shared = source.shape[:1] == (1,)
        _check("source", source, source, (1 if shared else self._networks, *image))

    def _check_running(self, running: list[Tensor | None], like: Tensor) -> None:
        lead = () if self._networks == 1 else (self._networks,)
        norms = self._chain.norms
        if not running:
            return
        for node, *pair in zip(norms, running[::2], running[1::2], strict=True):
            name = f"running statistics of {node.name}"
            assert isinstance(node.stage, ir.Norm)
            least = node.stage.first + node.stage.channels
            for tensor in pair:
                if tensor is not None:
                    _check(name, tensor, like, (*lead, None))
            sizes = {tensor.shape[-1] for tensor in pair if tensor is not None}
            if len(sizes) > 1 or min(sizes, default=least) < least:
                found = " and ".join(map(str, sorted(sizes)))
                raise InputError(f"{name}: expected {least} channels at least, got {found}")

    def _wait_for_buffers(self) -> None:
        """The current stream begins behind what the buffers were last used for."""
        if self._device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self._device)
        # While a step is recorded, the recording's own stream has waited for the others before.
        if (
            self._stream is not None
            and self._stream != stream
            and not torch.cuda.is_current_stream_capturing()
        ):
            stream.wait_stream(self._stream)
        self._stream = stream


def _address(tensor: Tensor | None) -> int:
    """Where the tensor's numbers begin, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _check(name: str, tensor: Tensor, like: Tensor, shape: Sequence[int | None]) -> None:
    """Raise unless the tensor is of the dtype, on the device and of the shape expected, and contiguous.

    Raises:
        InputError: not of the dtype, on the device or of the shape expected.
        TypeError: not contiguous.
    """
    check_tensor(name, tensor, shape=shape, like=like)
    if not tensor.is_contiguous():
        raise TypeError(f"{name}: expected a contiguous tensor, got a strided view")
