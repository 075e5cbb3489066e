"""Chains on the C++ kernels of the CPU (csrc/cpu/chain/)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.rewrite import ir
from oes_fast.rewrite.conv_algorithm import dense_is_faster
from oes_fast.rewrite.run.chain_program import NativeChain


class CpuChain(NativeChain):
    """See :class:`NativeChain`; it takes one network."""

    name = "C++ chain"
    backend = "cpu"

    def as_read(self, source: Tensor) -> Tensor:
        """See :class:`NativeChain`: in four phases where the convolution's stride is 2."""
        conv = self._chain.blocks[0].conv.stage
        planes = source.contiguous().unsqueeze(2)
        if isinstance(conv, ir.Conv) and conv.stride == (2, 2):
            planes = torch.ops.oes_fast.phase_split_cpu(planes.squeeze(2))
        return self.laid_out(planes.flatten(1, 2)[0])

    def laid_out(self, planes: Tensor) -> Tensor:
        """A constant source [C * phases, H', W'] as the first convolution takes it."""
        if self.kernels.source_row_major:  # [H', C * phases, W']: a strip of rows is one piece of memory
            return planes.transpose(0, 1).contiguous()
        # What is read behind the last plane is not used, but has to be there.
        buffer = planes.new_zeros(planes.numel() + self._extension().SLACK)
        buffer[: planes.numel()].view(planes.shape).copy_(planes)
        return buffer

    def _extension(self) -> Any:
        return importlib.import_module("oes_fast._C")

    def _made(self, image: tuple[int, int, int]) -> Any:
        if self._networks != 1:
            raise InputError(f'networks: expected 1 with backend "cpu", got {self._networks}')
        extension = self._extension()
        cls = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[self._dtype]
        return cls(*image, self._constant_input, self._kept)

    def _dense_is_better(self, spec: Any, image: tuple[int, int, int], *, constant_input: bool) -> bool:
        return dense_is_faster(self._extension(), self._dtype, spec, image, constant_input=constant_input)

    def _evaluate(
        self,
        weights: Tensor,
        source: Tensor,
        running: list[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        _check_statistics(running, weights)
        target = None if target is None else target.contiguous()
        weight = None if weight is None else weight.contiguous()
        output = weights.new_empty(1, *self.kernels.shape)
        loss = self.kernels.forward(
            _array(weights),
            _array(source),
            _array(output),
            [None if tensor is None else _array(tensor) for tensor in running],
            None if target is None else _array(target),
            None if weight is None else _array(weight),
        )
        return output, None if target is None else weights.new_tensor(loss)

    def _differentiate(
        self, weights: Tensor, source: Tensor, grad: Tensor | None, *, needs_source: bool
    ) -> tuple[Tensor, Tensor]:
        grad_weights = torch.zeros_like(weights)
        grad_source = torch.empty_like(source) if needs_source else source.new_empty(0)
        self.kernels.backward(
            _array(weights),
            _array(source),
            None if grad is None else _array(grad),
            _array(grad_weights),
            _array(grad_source) if needs_source else None,
        )
        return grad_weights, grad_source


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as the extension takes it: it checks dtype and size."""
    return tensor.detach().numpy()


def _check_statistics(running: list[Tensor | None], weights: Tensor) -> None:
    for tensor in running:
        if tensor is not None and (tensor.dtype != weights.dtype or not tensor.is_contiguous()):
            raise TypeError("running statistics: expected contiguous tensors of the weights' dtype")
