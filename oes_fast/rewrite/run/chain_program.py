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
from oes_fast.rewrite.run.chain_find import Chain, Link
from oes_fast.rewrite.weights import CompactWeights


class Program:
    """The C++ object of a chain for one dtype, and which evaluation its buffers hold."""

    NONE = 0  # number of no evaluation

    def __init__(
        self, chain: Chain, alive: dict[int, Alive], weights: CompactWeights, source: Tensor, *, fixed: bool
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
        self.kernels = cls(channels, height, width, fixed, weights.kept_numel)
        before = alive[id(chain.source)]
        for number, link in enumerate(chain.links):
            spec = self._conv_spec(link, before, source.dtype, fixed=fixed and number == 0)
            behind_one = number > 0 and len(chain.links[number - 1].norms) == 1
            few = spec.outputs <= extension.MOST_HEAD_OUTPUTS
            if spec.kind == extension.ConvKind.POINTWISE and behind_one and few and not link.norms:
                spec.kind = extension.ConvKind.HEAD
            self.kernels.add_conv(spec)
            incoming = alive[id(link.conv)].const
            for node in link.norms:
                self.kernels.add_norm(self._norm_spec(node, incoming))
                incoming = alive[id(node)].const
            before = alive[id(link.nodes[-1])]
        act = chain.links[-1].act
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
            source: as the first convolution reads it where it is fixed, else the image.
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
        """A fixed source [C * phases, H', W'] as the first convolution takes it."""
        if self.kernels.by_rows:  # [H', C * phases, W']: a strip of rows is one piece of memory
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

    def _conv_spec(self, link: Link, source: Alive, dtype: torch.dtype, *, fixed: bool) -> Any:
        conv = link.conv.stage
        up = isinstance(conv, ir.UpConv)
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        outputs = self._alive[id(link.conv)]
        extension = _extension()
        kind, spec = extension.ConvKind, extension.ConvSpec()
        pointwise = conv.kernel == (1, 1) and conv.stride == (1, 1) and link.pad is None and link.box is None
        spec.kind = kind.UPSAMPLE if up else kind.POINTWISE if pointwise and not fixed else kind.DIRECT
        if link.pad is not None:
            assert isinstance(link.pad.stage, ir.Pad)
            spec.padding = getattr(extension.Padding, link.pad.stage.mode.upper())
            spec.border = list(link.pad.stage.amount)
        spec.box = link.box is not None
        spec.stride = conv.stride[0]
        spec.kernel_rows, spec.kernel_columns = conv.kernel
        spec.outputs = len(outputs.vary)
        spec.scale = conv.scale
        places = self._weights.places(conv.weight, outputs.vary, source.vary + conv.first)
        first = int(places.flatten()[0])
        if first >= 0 and torch.equal(
            places.flatten(), torch.arange(first, first + places.numel(), device="cpu")
        ):
            spec.first_weight = first
            spec.dense = True
        else:
            spec.taps = torch.nonzero(places >= 0).flatten().tolist()
            spec.weights = places[places >= 0].tolist()
            rows, columns = link.nodes[0].inputs[0].shape[2:]
            image = len(source.vary), rows, columns
            spec.dense = dense_is_faster(extension, dtype, spec, image, fixed=fixed)
        all_outputs = torch.cat([outputs.vary, outputs.const])
        bias = torch.full_like(all_outputs, -1)
        if conv.bias is not None:
            bias = self._weights.places(conv.bias, all_outputs)
        spec.bias = bias.tolist()
        places = self._weights.places(conv.weight, all_outputs, source.const + conv.first)
        spec.constant_taps = [
            number
            for o, c, u, v in torch.nonzero(places >= 0).tolist()
            for number in (o, int(places[o, c, u, v]), c)
        ]
        return spec

    def _norm_spec(self, node: ir.Node, incoming: Tensor) -> Any:
        """Of a norm whose constant input channels are ``incoming``."""
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        alive = self._alive[id(node)]
        spec = _extension().NormSpec()
        none = [-1] * len(alive.vary)
        vary = alive.vary + norm.first
        spec.gamma = none if norm.weight is None else self._weights.places(norm.weight, vary).tolist()
        spec.beta = none if norm.bias is None else self._weights.places(norm.bias, vary).tolist()
        spec.eps = norm.eps
        spec.copies = norm.copies
        spec.tracks = norm.tracks
        spec.momentum = 0.0 if norm.momentum is None else norm.momentum
        spec.places = vary.tolist()
        order = {channel: number for number, channel in enumerate(incoming.tolist())}
        spec.tracked = [order.get(channel, -1) for channel in alive.tracked.tolist()]
        spec.tracked_places = (alive.tracked + norm.first).tolist()
        if norm.act is not None:
            spec.act, spec.slope = _activation(norm.act)
        if len(alive.const):
            assert norm.bias is not None
            spec.constants = self._weights.places(norm.bias, alive.const + norm.first).tolist()
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
