"""Chains on the Triton kernels (kernels/chain/), on a GPU or, under Triton's interpreter, on the CPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from oes_fast.errors import BackendError
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_find import ConvBlock
from oes_fast.rewrite.run.chain_gpu import GpuChain

MOST_KERNEL = 254  # rows and columns of a convolution: a tap's place is two bytes
MOST_COPIED = 15  # pixels around an image that are copies of those on its edge, which are added one by one


class TritonChain(GpuChain):
    """See :class:`GpuChain`."""

    name = "Triton chain"
    backend = "triton"
    group: int | None = None  # of outputs that a program has, None for any: tests reach every one

    @staticmethod
    def takes(block: ConvBlock) -> bool:
        """What :class:`GpuChain` takes, with no border of more copies of an edge, and no wider kernel."""
        conv = block.conv.stage
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        if max(conv.kernel) > MOST_KERNEL or not GpuChain.takes(block):
            return False
        if block.pad is None:
            return True
        assert isinstance(block.pad.stage, ir.Pad)
        return block.pad.stage.mode != "replicate" or max(block.pad.stage.amount) <= MOST_COPIED

    def _extension(self) -> Any:
        return importlib.import_module("oes_fast.kernels.chain.specs")

    def _made(self, image: tuple[int, int, int]) -> Any:
        self._check_networks()
        program = importlib.import_module("oes_fast.kernels.chain.program")
        return program.Chain(
            self._networks,
            *image,
            constant_input=self._constant_input,
            weights=self._kept,
            products=self._products,
            dtype=self._dtype,
            device=self._device,
            group=self.group,
        )

    def _bound(self) -> Any:
        kernels = super()._bound()
        if self._device.type == "cuda":  # where its buffers and tables are filled
            self._stream = torch.cuda.current_stream(self._device)
        return kernels

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
        with _compiling():
            self.kernels.forward(
                weights, source, self._is_shared(source), output, running, target, weight, loss
            )

    def _backward(
        self,
        weights: Tensor,
        source: Tensor,
        grad: Tensor | None,
        grad_weights: Tensor,
        grad_source: Tensor | None,
    ) -> None:
        with _compiling():
            self.kernels.backward(weights, source, self._is_shared(source), grad, grad_weights, grad_source)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Inside, a kernel that is not compiled at its first launch, or does not fit, is said in words."""
    try:
        yield
    except importlib.import_module("triton.errors").TritonError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(
            f'backend "triton": a kernel cannot be compiled for this GPU, or does not fit it ({first}); '
            'backend="torch" needs none'
        ) from error
