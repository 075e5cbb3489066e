"""The C++ object of a chain: what it is bound to, and calls of it."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.conv_algorithm import dense_is_faster
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.chain_find import Chain, ConvBlock
from oes_fast.rewrite.weights import CompactWeights


class NativeChain:
    """The C++ object of a chain for one dtype, and which evaluation its buffers hold."""

    NONE = 0  # number of no evaluation

    def __init__(
        self,
        chain: Chain,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        source: Tensor,
        *,
        constant_input: bool,
    ) -> None:
        extension = _extension()
        cls = {torch.float32: extension.ChainFloat, torch.float64: extension.ChainDouble}[source.dtype]
        _, channels, height, width = source.shape
        self._alive = alive
        self._weights = weights
        # Several threads may run one module: who evaluates has the buffers until the next one does.
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._evaluations = self._held = 0
        self.kernels = cls(channels, height, width, constant_input, weights.kept_numel)
        before = alive[chain.source]
        for number, block in enumerate(chain.blocks):
            spec = self._conv_spec(block, before, source.dtype, constant_input=constant_input and number == 0)
            behind_one = number > 0 and len(chain.blocks[number - 1].norms) == 1
            few = spec.outputs <= extension.MOST_HEAD_OUTPUTS
            if spec.kind == extension.ConvKind.POINTWISE and behind_one and few and not block.norms:
                spec.kind = extension.ConvKind.HEAD
            self.kernels.add_conv(spec)
            incoming = alive[block.conv].constant
            for node in block.norms:
                self.kernels.add_norm(self._norm_spec(node, incoming))
                incoming = alive[node].constant
            before = alive[block.nodes[-1]]
        act = chain.blocks[-1].act
        stage = ir.Act("identity") if act is None else act.stage
        assert isinstance(stage, ir.Act)
        if stage.kind == "sigmoid":
            self.kernels.finish(extension.OutputAct.SIGMOID, 0.0)
        else:
            self.kernels.finish(extension.OutputAct.LEAKY_RELU, _leaky_slope(stage))

    @property
    def evaluation(self) -> int:
        """Number of the last evaluation that this thread asked for."""
        return self._of_thread.evaluation

    def forward(
        self, weights: Tensor, source: Tensor, running: list[Tensor | None], target: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """The result [1, C, H, W] and its error to the target; intermediate results stay in the buffers.

        Args:
            weights: kept weights, flat.
            source: as the first convolution reads it where that is constant, else the image.
            running: mean and variance of every norm, updated; None where they stay as they are.
            target: [1, C, H, W], or None.

        Raises:
            TypeError, ValueError: a tensor is not on the CPU, not of the chain's dtype, or too short.
        """
        with self._lock:
            result = self._evaluate(weights, source, running, target)
            self._evaluations += 1
            self._held = self._of_thread.evaluation = self._evaluations
        return result

    def backward(
        self,
        weights: Tensor,
        source: Tensor,
        grad: Tensor | None,
        evaluation: int,
        *,
        needs_source: bool,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of weights and source; that of the source has no elements where it is not needed.

        Args:
            weights: as in the evaluation.
            source: as in the evaluation.
            grad: of the result; None for that of the error to the target.
            evaluation: its number.
            needs_source: whether the gradient of the source is needed.
            target: as in the evaluation if ``grad`` is None, else None.
        """
        weights, source = weights.contiguous(), source.contiguous()
        grad = None if grad is None else grad.contiguous()
        grad_weights = torch.zeros_like(weights)
        grad_source = torch.empty_like(source) if needs_source else source.new_empty(0)
        with self._lock:
            if self._held != evaluation:  # another evaluation has used the buffers since
                self._evaluate(weights, source, [], target)
                self._held = evaluation
            self.kernels.backward(
                _array(weights),
                _array(source),
                None if grad is None else _array(grad),
                _array(grad_weights),
                _array(grad_source) if needs_source else None,
            )
        return grad_weights, grad_source

    def laid_out(self, planes: Tensor) -> Tensor:
        """A constant source [C * phases, H', W'] as the first convolution takes it."""
        if self.kernels.source_row_major:  # [H', C * phases, W']: a strip of rows is one piece of memory
            return planes.transpose(0, 1).contiguous()
        # What is read behind the last plane is not used, but has to be there.
        buffer = planes.new_zeros(planes.numel() + _extension().SLACK)
        buffer[: planes.numel()].view(planes.shape).copy_(planes)
        return buffer

    def _evaluate(
        self, weights: Tensor, source: Tensor, running: list[Tensor | None], target: Tensor | None
    ) -> tuple[Tensor, float]:
        weights, source = weights.contiguous(), source.contiguous()
        target = None if target is None else target.contiguous()
        channels, height, width = self.kernels.shape
        output = weights.new_empty(1, channels, height, width)
        loss = self.kernels.forward(
            _array(weights),
            _array(source),
            _array(output),
            [None if tensor is None else _array(tensor) for tensor in running],
            None if target is None else _array(target),
        )
        return output, loss

    def _conv_spec(self, block: ConvBlock, source: Alive, dtype: torch.dtype, *, constant_input: bool) -> Any:
        conv = block.conv.stage
        up = isinstance(conv, ir.UpConv)
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        outputs = self._alive[block.conv]
        extension = _extension()
        kind, spec = extension.ConvKind, extension.ConvSpec()
        pointwise = (
            conv.kernel == (1, 1) and conv.stride == (1, 1) and block.pad is None and block.box is None
        )
        pointwise = pointwise and not constant_input
        spec.kind = kind.UPSAMPLE if up else kind.POINTWISE if pointwise else kind.DIRECT
        if block.pad is not None:
            assert isinstance(block.pad.stage, ir.Pad)
            spec.padding = getattr(extension.Padding, block.pad.stage.mode.upper())
            spec.border = list(block.pad.stage.amount)
        spec.box = block.box is not None
        spec.stride = conv.stride[0]
        spec.kernel_rows, spec.kernel_columns = conv.kernel
        spec.outputs = len(outputs.varying)
        spec.scale = conv.scale
        index = self._weights.index(conv.weight, outputs.varying, source.varying + conv.first)
        first = int(index.flatten()[0])
        if first >= 0 and torch.equal(
            index.flatten(), torch.arange(first, first + index.numel(), device="cpu")
        ):
            spec.first_weight = first
            spec.dense = True
        else:
            spec.taps = torch.nonzero(index >= 0).flatten().tolist()
            spec.weights = index[index >= 0].tolist()
            rows, columns = block.nodes[0].inputs[0].shape[2:]
            image = len(source.varying), rows, columns
            spec.dense = dense_is_faster(extension, dtype, spec, image, constant_input=constant_input)
        all_outputs = torch.cat([outputs.varying, outputs.constant])
        bias = torch.full_like(all_outputs, -1)
        if conv.bias is not None:
            bias = self._weights.index(conv.bias, all_outputs)
        spec.bias = bias.tolist()
        index = self._weights.index(conv.weight, all_outputs, source.constant + conv.first)
        spec.constant_taps = [
            number
            for o, c, u, v in torch.nonzero(index >= 0).tolist()
            for number in (o, int(index[o, c, u, v]), c)
        ]
        return spec

    def _norm_spec(self, node: ir.Node, incoming: Tensor) -> Any:
        """Of a norm whose constant input channels are ``incoming``."""
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        alive = self._alive[node]
        spec = _extension().NormSpec()
        none = [-1] * len(alive.varying)
        varying = alive.varying + norm.first
        spec.gamma = none if norm.weight is None else self._weights.index(norm.weight, varying).tolist()
        spec.beta = none if norm.bias is None else self._weights.index(norm.bias, varying).tolist()
        spec.eps = norm.eps
        spec.copies = norm.copies
        spec.tracks = norm.tracks
        spec.momentum = 0.0 if norm.momentum is None else norm.momentum
        spec.stats_index = varying.tolist()
        order = {channel: number for number, channel in enumerate(incoming.tolist())}
        spec.tracked = [order.get(channel, -1) for channel in alive.tracked.tolist()]
        spec.tracked_stats_index = (alive.tracked + norm.first).tolist()
        if norm.act is not None:
            spec.act, spec.slope = _activation(norm.act)
        if len(alive.constant):
            assert norm.bias is not None
            spec.constants = self._weights.index(norm.bias, alive.constant + norm.first).tolist()
        return spec


def _extension() -> Any:
    """The C++ extension, which is there when a chain is made."""
    return importlib.import_module("oes_fast._C")


def _array(tensor: Tensor) -> Any:
    """The tensor's memory as the extension takes it: it checks dtype and size."""
    return tensor.detach().numpy()


def _activation(act: ir.Act) -> tuple[Any, float]:
    """(activation, slope below zero or alpha) as the kernels know it."""
    kinds = _extension().Act
    if act.kind == "elu":
        return kinds.ELU, act.value
    if act.kind == "silu":
        return kinds.SILU, 0.0
    return kinds.LEAKY_RELU, _leaky_slope(act)


def _leaky_slope(act: ir.Act) -> float:
    """The slope below zero of an activation of straight lines."""
    return {"identity": 1.0, "relu": 0.0, "leaky_relu": act.value}[act.kind]
