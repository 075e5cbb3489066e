"""The C++ object of a chain: what it is bound to, and calls of it.

One program runs on two engines. What a chain computes is written here, convolution by convolution and norm by
norm, in specs that both take (csrc/common/chain_specs.h); :mod:`oes_fast.rewrite.run.chain_cpu` and
:mod:`oes_fast.rewrite.run.chain_cuda` give it their C++ objects, and the memory of tensors.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.chain_find import Chain, ConvBlock
from oes_fast.rewrite.weights import CompactWeights


class NativeChain(ABC):
    """The C++ object of a chain for one dtype, and which evaluation its buffers hold.

    Args:
        chain: to run.
        alive: channels by node.
        weights: what the mask keeps, and where it lies in the flat vector.
        dtype: float32 or float64.
        device: of all tensors.
        constant_input: the source depends on the input alone.
        products: how float32 products are computed, one of :data:`oes_fast.precision.PRECISIONS`.
        networks: how many networks of one mask it runs at once, N: each with weights, statistics and an image
            of its own. Tensors have the shapes named below for N = 1, the usual case, and a leading dimension
            of N in place of weights' none and images' 1 otherwise.

    Raises:
        InputError: the engine does not take so many networks.
        OutOfMemoryError: the device has no memory for its buffers.
    """

    NONE = 0  # number of no evaluation
    name: ClassVar[str]  # what explain() calls it
    backend: ClassVar[str]
    explains: ClassVar[bool] = False  # it has something to say of each convolution

    def __init__(
        self,
        chain: Chain,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        dtype: torch.dtype,
        device: torch.device,
        *,
        constant_input: bool,
        products: str,
        networks: int = 1,
    ) -> None:
        self._chain = chain
        self._alive = alive
        self._weights = weights
        self._kept = weights.kept_numel
        self._dtype, self._device = dtype, device
        self._constant_input = constant_input
        self._products = products
        self._networks = networks
        # Several threads may run one module: who evaluates has the buffers until the next one does.
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._evaluations = self._held = 0
        source = chain.source.shape
        self.kernels = self._bound((len(alive[chain.source].varying), source[2], source[3]))

    @staticmethod
    def takes(block: ConvBlock) -> bool:
        """Whether the engine has what a block computes."""
        return True

    @staticmethod
    def products_of(dtype: torch.dtype) -> str:
        """How an engine computes products of this dtype by the setting of precision that holds."""
        return "float32"

    @property
    def evaluation(self) -> int:
        """Number of the last evaluation that this thread asked for."""
        return self._of_thread.evaluation

    def forward(
        self,
        weights: Tensor,
        source: Tensor,
        running: list[Tensor | None],
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The result [1, C, H, W] and its error to the target; intermediate results stay in the buffers.

        Args:
            weights: kept weights, flat.
            source: as :meth:`as_read` gives it where that is constant, else the image.
            running: mean and variance of every norm, updated; None where they stay as they are.
            target: [1, C, H, W], or None.
            weight: of each squared error to it, of its shape, or None.

        Returns:
            (result, mean (weighted) squared error to the target, a scalar where the other tensors lie, or None).

        Raises:
            InputError, TypeError, ValueError: a tensor is not on the chain's device, not of its dtype, or of
                another size.
        """
        with self._lock:
            self._held = self.NONE  # should the evaluation fail half-way
            result = self._evaluate(weights.contiguous(), source.contiguous(), running, target, weight)
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
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of weights and source; that of the source has no elements where it is not needed.

        Args:
            weights: as in the evaluation.
            source: as in the evaluation.
            grad: of the result; None for that of the error to the target.
            evaluation: its number; NONE to evaluate again in any case.
            needs_source: whether the gradient of the source is needed.
            target: as in the evaluation if ``grad`` is None, else None.
            weight: the same.
        """
        weights, source = weights.contiguous(), source.contiguous()
        grad = None if grad is None else grad.contiguous()
        with self._lock:
            if evaluation == self.NONE or self._held != evaluation:  # another one has used the buffers since
                self._held = self.NONE
                self._evaluate(weights, source, [], target, weight)
                self._held = evaluation
            return self._differentiate(weights, source, grad, needs_source=needs_source)

    @abstractmethod
    def as_read(self, source: Tensor) -> Tensor:
        """A constant source [1, C, H, W] as the first convolution takes it."""

    def explain(self) -> list[str]:
        """What runs each convolution."""
        return [self.name] * len(self._chain.blocks)

    @abstractmethod
    def _extension(self) -> Any:
        """The C++ module, which is there when a chain is made."""

    @abstractmethod
    def _made(self, image: tuple[int, int, int]) -> Any:
        """The C++ object for a source of these channels, rows and columns, without a program yet."""

    @abstractmethod
    def _evaluate(
        self,
        weights: Tensor,
        source: Tensor,
        running: list[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`forward`, of contiguous weights and source, for who holds the buffers."""

    @abstractmethod
    def _differentiate(
        self, weights: Tensor, source: Tensor, grad: Tensor | None, *, needs_source: bool
    ) -> tuple[Tensor, Tensor]:
        """:meth:`backward` of what the buffers hold."""

    def _dense_is_better(self, spec: Any, image: tuple[int, int, int], *, constant_input: bool) -> bool:
        """Whether to multiply by all weights, those that the mask drops being zero; the engine may choose."""
        return False

    # ---- the program

    def _bound(self, image: tuple[int, int, int]) -> Any:
        """The C++ object with the chain's program."""
        extension, chain, alive = self._extension(), self._chain, self._alive
        kernels = self._made(image)
        before = alive[chain.source]
        for number, block in enumerate(chain.blocks):
            spec = self._conv_spec(block, before, constant_input=self._constant_input and number == 0)
            behind_one = number > 0 and len(chain.blocks[number - 1].norms) == 1
            few = spec.outputs <= extension.MOST_HEAD_OUTPUTS
            if spec.kind == extension.ConvKind.POINTWISE and behind_one and few and not block.norms:
                spec.kind = extension.ConvKind.HEAD
            kernels.add_conv(spec)
            incoming = alive[block.conv].constant
            for node in block.norms:
                kernels.add_norm(self._norm_spec(node, incoming))
                incoming = alive[node].constant
            before = alive[block.nodes[-1]]
        act = chain.blocks[-1].act
        stage = ir.Act("identity") if act is None else act.stage
        assert isinstance(stage, ir.Act)
        if stage.kind == "sigmoid":
            kernels.finish(extension.OutputAct.SIGMOID, 0.0)
        else:
            kernels.finish(extension.OutputAct.LEAKY_RELU, _leaky_slope(stage))
        return kernels

    def _conv_spec(self, block: ConvBlock, source: Alive, *, constant_input: bool) -> Any:
        conv = block.conv.stage
        up = isinstance(conv, ir.UpConv)
        if isinstance(conv, ir.UpConv):
            conv = conv.conv
        assert isinstance(conv, ir.Conv)
        outputs = self._alive[block.conv]
        extension = self._extension()
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
            spec.dense = self._dense_is_better(spec, image, constant_input=constant_input)
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
        spec = self._extension().NormSpec()
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
            spec.act, spec.slope = _activation(norm.act, self._extension().Act)
        if len(alive.constant):
            assert norm.bias is not None
            spec.constants = self._weights.index(norm.bias, alive.constant + norm.first).tolist()
        return spec


def _activation(act: ir.Act, kinds: Any) -> tuple[Any, float]:
    """(activation, slope below zero or alpha) as the kernels know it."""
    if act.kind == "elu":
        return kinds.ELU, act.value
    if act.kind == "silu":
        return kinds.SILU, 0.0
    return kinds.LEAKY_RELU, _leaky_slope(act)


def _leaky_slope(act: ir.Act) -> float:
    """The slope below zero of an activation of straight lines."""
    return {"identity": 1.0, "relu": 0.0, "leaky_relu": act.value}[act.kind]
