"""Chains on the C++ kernels of the CPU (csrc/cpu/chain/)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.rewrite import ir
from oes_fast.rewrite.conv_algorithm import dense_is_faster
from oes_fast.rewrite.run.chain_find import Block, ConvBlock, JoinBlock
from oes_fast.rewrite.run.chain_joins import join_spec, needs_planes
from oes_fast.rewrite.run.chain_program import NativeChain, Result, activation, convolution


class CpuChain(NativeChain):
    """See :class:`NativeChain`; it takes one network."""

    name = "C++ chain"
    backend = "cpu"
    joins: ClassVar[bool] = True

    def as_read(self, entry: int, source: Tensor) -> Tensor:
        """See :class:`NativeChain`: in four phases where the convolution's stride is 2."""
        block = self.entries[entry][1]
        if block is None:
            return source.contiguous()
        planes = source.contiguous().unsqueeze(2)
        if convolution(block).stride == (2, 2):
            planes = torch.ops.oes_fast.phase_split_cpu(planes.squeeze(2))
        return self.laid_out(entry, planes.flatten(1, 2)[0])

    def laid_out(self, entry: int, planes: Tensor) -> Tensor:
        """A constant source [C * phases, H', W'] as the convolution that reads it takes it."""
        if self.kernels.source_row_major(
            entry
        ):  # [H', C * phases, W']: a strip of rows is one piece of memory
            return planes.transpose(0, 1).contiguous()
        # What is read behind the last plane is not used, but has to be there.
        buffer = planes.new_zeros(planes.numel() + self._extension().SLACK)
        buffer[: planes.numel()].view(planes.shape).copy_(planes)
        return buffer

    @property
    def takes_target(self) -> bool:
        """See :class:`NativeChain`."""
        return self._leaves_by_convolution(self._chain.blocks[-1])

    @property
    def memory(self) -> int:
        """Bytes of the buffers that hold images."""
        return int(self.kernels.memory)

    def _extension(self) -> Any:
        return importlib.import_module("oes_fast._C")

    def _made(self, image: tuple[int, int, int]) -> Any:
        if self._networks != 1:
            raise InputError(f'networks: expected 1 with backend "cpu", got {self._networks}')
        extension = self._extension()
        cls = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[self._dtype]
        return cls(*image, self.entries[0][1] is not None, self._kept)

    def _entries(self) -> list[tuple[int, ConvBlock | None]]:
        entries: list[tuple[int, ConvBlock | None]] = []
        for number, node in enumerate(self._chain.sources):
            if not len(self._alive[node].varying):
                continue
            readers = [block for block in self._chain.blocks if node in block.sources]
            convolutions = [block for block in readers if isinstance(block, ConvBlock) and _lays_out(block)]
            if not self._constant[number]:
                convolutions = []
            entries += [(number, block) for block in convolutions]
            if len(convolutions) < len(readers):
                entries.append((number, None))
        return entries

    def _dense_is_better(self, spec: Any, image: tuple[int, int, int], *, constant_input: bool) -> bool:
        return dense_is_faster(self._extension(), self._dtype, spec, image, constant_input=constant_input)

    # ---- the program of a graph

    def _bound(self) -> Any:
        chain, alive = self._chain, self._alive
        images = [
            (len(alive[node].varying), node.shape[2], node.shape[3])
            for node in (chain.sources[number] for number, _ in self.entries)
        ]
        kernels = self._made(images[0])
        for image, (_, reader) in zip(images[1:], self.entries[1:], strict=True):
            kernels.add_source(*image, reader is not None)
        results: dict[ir.Node, Result] = {}
        for block in chain.blocks:
            sources = [self._source(node, block, results) for node in block.sources]
            if isinstance(block, ConvBlock) and len(block.value.varying):
                number = self._add_conv(kernels, block, sources[0], results)
            else:
                number = kernels.add_join(self._join_spec(block, sources))
            self._add_norms(kernels, block)
            constant = alive[block.norms[-1]].constant if block.norms else block.value.constant
            planes = bool(len(constant)) and self._needs_planes(block)
            if planes:
                kernels.add_planes()
            results[block.end] = Result(number, block.value.varying, constant, planes)
        end = chain.blocks[-1]
        if self._leaves_by_convolution(end):
            self._finish(kernels, end)
        else:
            kernels.finish(self._extension().OutputAct.LEAKY_RELU, 1.0)
        return kernels

    def _source(self, node: ir.Node, reader: Block, results: dict[ir.Node, Result]) -> Result:
        """What a block reads: a result, or one of the entries."""
        if node in results:
            return results[node]
        alive = self._alive[node]
        for number, (source, laid_out_for) in enumerate(self.entries):
            if self._chain.sources[source] is node and laid_out_for in (None, reader):
                return Result(number, alive.varying, alive.constant)
        return Result(0, alive.varying, alive.constant)  # nothing of it varies, and nothing is read

    def _add_conv(
        self, kernels: Any, block: ConvBlock, source: Result, results: dict[ir.Node, Result]
    ) -> int:
        inside = block.sources[0] in results
        constant_input = not inside and self.entries[source.number][1] is not None
        spec = self._conv_spec(block, source, constant_input=constant_input)
        if block is self._chain.blocks[-1] and inside and not len(block.value.constant):
            readers = [other for other in self._chain.blocks if block.sources[0] in other.sources]
            (before,) = (b for b in self._chain.blocks if b.end is block.sources[0])
            one = len(before.norms) + (before.act is not None) < 2
            self._choose_head(spec, block, behind_one=one and len(readers) == 1)
        return int(kernels.add_conv(spec, source.number))

    def _join_spec(self, block: Block, sources: Sequence[Result]) -> Any:
        extension = self._extension()
        if isinstance(block, JoinBlock):
            return join_spec(extension, block, sources, self._weights)
        # A convolution of what is constant.
        assert isinstance(block, ConvBlock)
        spec = extension.JoinSpec()
        spec.rows, spec.columns = block.conv.shape[2:]
        spec.bias = self._bias(block).tolist()
        taps = self._constant_taps(block, sources[0])
        spec.inputs = [sources[0].number] if taps else []
        spec.constant_terms = [number for o, index, c in taps for number in (o, 0, c, index)]
        spec.scale = convolution(block).scale * (1 if block.box is None else 4)
        return spec

    def _add_norms(self, kernels: Any, block: Block) -> None:
        incoming = block.value.constant
        if block.act is not None or not block.norms:
            if self._leaves_by_convolution(block):
                return
            act = ir.Act("identity") if block.act is None else block.act.stage
            assert isinstance(act, ir.Act)
            kernels.add_act(*activation(act, self._extension().Act))
        for node in block.norms:
            groups = node.stage.groups if isinstance(node.stage, ir.GroupNorm) else 0
            kernels.add_norm(self._norm_spec(node, incoming), groups)
            incoming = self._alive[node].constant

    def _leaves_by_convolution(self, block: Block) -> bool:
        """Whether the image comes from a convolution with no norm behind, which compares it with a target."""
        kinds = ("identity", "relu", "leaky_relu", "sigmoid")
        act = None if block.act is None else block.act.stage
        return (
            block is self._chain.blocks[-1]
            and isinstance(block, ConvBlock)
            and not block.norms
            and not len(block.value.constant)
            and (act is None or (isinstance(act, ir.Act) and act.kind in kinds))
        )

    def _needs_planes(self, block: Block) -> bool:
        """Whether constant channels of a result are read as images, or leave the chain without a norm."""
        if block is self._chain.blocks[-1]:
            return not block.norms
        return any(
            reader.reads_zeros if isinstance(reader, ConvBlock) else needs_planes(reader)
            for reader in self._chain.blocks
            if block.end in reader.sources and isinstance(reader, ConvBlock | JoinBlock)
        )

    def _evaluate(
        self,
        weights: Tensor,
        sources: list[Tensor],
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
            [_array(source) for source in sources],
            _array(output),
            [None if tensor is None else _array(tensor) for tensor in running],
            None if target is None else _array(target),
            None if weight is None else _array(weight),
        )
        return output, None if target is None else weights.new_tensor(loss)

    def _differentiate(
        self, weights: Tensor, sources: list[Tensor], grad: Tensor | None, *, needs_sources: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        grad_weights = torch.zeros_like(weights)
        grad_sources = [
            torch.empty_like(source) if needed else source.new_empty(0)
            for source, needed in zip(sources, needs_sources, strict=True)
        ]
        self.kernels.backward(
            _array(weights),
            [_array(source) for source in sources],
            None if grad is None else _array(grad),
            _array(grad_weights),
            [
                _array(grad_source) if needed else None
                for grad_source, needed in zip(grad_sources, needs_sources, strict=True)
            ],
        )
        return grad_weights, grad_sources


def _lays_out(block: ConvBlock) -> bool:
    """Whether the convolution reads a constant source as it is kept: nothing is between them."""
    up = isinstance(block.conv.stage, ir.UpConv)
    return not up and block.pad is None and block.box is None and len(block.value.varying) > 0


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as the extension takes it: it checks dtype and size."""
    return tensor.detach().numpy()


def _check_statistics(running: list[Tensor | None], weights: Tensor) -> None:
    for tensor in running:
        if tensor is not None and (tensor.dtype != weights.dtype or not tensor.is_contiguous()):
            raise TypeError("running statistics: expected contiguous tensors of the weights' dtype")
