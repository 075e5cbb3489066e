"""The C++ object of a chain: what it is bound to, and calls of it.

One program runs on several engines. What a chain computes is written here, convolution by convolution and
norm by norm, in specs that all take (csrc/common/chain_specs.h);
:mod:`oes_fast.rewrite.run.chain_joins` writes those of joins. :mod:`oes_fast.rewrite.run.chain_cpu` and
:mod:`oes_fast.rewrite.run.chain_cuda` give it their C++ objects, and the memory of tensors.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.chain_find import Block, Chain, ConvBlock
from oes_fast.rewrite.weights import CompactWeights


@dataclass(frozen=True)
class Result:
    """A result as its readers find it.

    Attributes:
        number: of it in the C++ object.
        varying: channels that vary, in order: the planes of its image.
        constant: channels that are constant, in order.
        planes: whether these are planes too, behind the others.
    """

    number: int
    varying: Tensor
    constant: Tensor
    planes: bool = False

    @property
    def channels(self) -> int:
        """Planes of its image."""
        return len(self.varying) + (len(self.constant) if self.planes else 0)


class NativeChain(ABC):
    """The C++ object of a chain for one dtype, and which evaluation its buffers hold.

    Args:
        chain: to run.
        alive: channels by node.
        weights: what the mask keeps, and where it lies in the flat vector.
        dtype: float32 or float64.
        device: of all tensors.
        constant: of every source, whether it depends on the input alone and needs no gradient.
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
    joins: ClassVar[bool] = False  # it takes joins, several readers and sources

    def __init__(
        self,
        chain: Chain,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        dtype: torch.dtype,
        device: torch.device,
        *,
        constant: Sequence[bool],
        products: str,
        networks: int = 1,
    ) -> None:
        self._chain = chain
        self._alive = alive
        self._weights = weights
        self._kept = weights.kept_numel
        self._dtype, self._device = dtype, device
        self._constant = tuple(constant)
        self._products = products
        self._networks = networks
        # Several threads may run one module: who evaluates has the buffers until the next one does.
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._evaluations = self._held = 0
        self.entries = self._entries()
        self.kernels = self._bound()

    @property
    def _constant_input(self) -> bool:
        """Whether the source of a row of convolutions is constant."""
        return self._constant[0]

    @property
    def takes_target(self) -> bool:
        """Whether it compares its result with a target: not where that comes from a norm or a join."""
        return not self._chain.blocks[-1].norms

    @property
    def memory(self) -> int:
        """Bytes of the buffers that hold images."""
        elements = sum(math.prod(block.conv.shape[1:]) for block in self._chain.convolutions)
        # Values and their gradients.
        return 2 * self._networks * elements * self._dtype.itemsize

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
        sources: Sequence[Tensor],
        running: list[Tensor | None],
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The result [1, C, H, W] and its error to the target; intermediate results stay in the buffers.

        Args:
            weights: kept weights, flat.
            sources: of every one of ``entries``, as :meth:`as_read` gives it where that is constant, else
                the image.
            running: mean and variance of every norm, updated; None where they stay as they are.
            target: [1, C, H, W], or None.
            weight: of each squared error to it, of its shape, or None.

        Returns:
            (result, mean (weighted) squared error to the target, a scalar where the other tensors lie, or
            None).

        Raises:
            InputError, TypeError, ValueError: a tensor is not on the chain's device, not of its dtype, or of
                another size.
        """
        with self._lock:
            self._held = self.NONE  # should the evaluation fail half-way
            contiguous = [source.contiguous() for source in sources]
            result = self._evaluate(weights.contiguous(), contiguous, running, target, weight)
            self._evaluations += 1
            self._held = self._of_thread.evaluation = self._evaluations
        return result

    def backward(
        self,
        weights: Tensor,
        sources: Sequence[Tensor],
        grad: Tensor | None,
        evaluation: int,
        *,
        needs_sources: Sequence[bool],
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Gradients of weights and sources; that of a source has no elements where it is not needed.

        Args:
            weights: as in the evaluation.
            sources: as in the evaluation.
            grad: of the result; None for that of the error to the target.
            evaluation: its number; NONE to evaluate again in any case.
            needs_sources: whether the gradient of each source is needed.
            target: as in the evaluation if ``grad`` is None, else None.
            weight: the same.
        """
        weights, sources = weights.contiguous(), [source.contiguous() for source in sources]
        grad = None if grad is None else grad.contiguous()
        with self._lock:
            if evaluation == self.NONE or self._held != evaluation:  # another one has used the buffers since
                self._held = self.NONE
                self._evaluate(weights, sources, [], target, weight)
                self._held = evaluation
            return self._differentiate(weights, sources, grad, needs_sources=needs_sources)

    @abstractmethod
    def as_read(self, entry: int, source: Tensor) -> Tensor:
        """A constant source [1, C, H, W] as the readers of one of ``entries`` take it."""

    def explain(self) -> list[str]:
        """What runs each convolution."""
        return [self.name] * len(self._chain.convolutions)

    def _entries(self) -> list[tuple[int, ConvBlock | None]]:
        """The images that the C++ object takes: numbers of sources.

        A constant source may be there several times, laid out for the convolution that is named, which then
        is the only one to read it.
        """
        (block, *_) = self._chain.convolutions
        return [(0, block if self._constant_input else None)]

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
        sources: list[Tensor],
        running: list[Tensor | None],
        target: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`forward`, of contiguous weights and sources, for who holds the buffers."""

    @abstractmethod
    def _differentiate(
        self, weights: Tensor, sources: list[Tensor], grad: Tensor | None, *, needs_sources: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        """:meth:`backward` of what the buffers hold."""

    def _dense_is_better(self, spec: Any, image: tuple[int, int, int], *, constant_input: bool) -> bool:
        """Whether to multiply by all weights, those that the mask drops being zero; the engine may choose."""
        return False

    # ---- the program

    def _bound(self) -> Any:
        """The C++ object with the chain's program."""
        chain = self._chain
        source = chain.source
        rows, columns = source.shape[2:]
        kernels = self._made((len(self._alive[source].varying), rows, columns))
        before = Result(0, self._alive[source].varying, self._alive[source].constant)
        for number, block in enumerate(chain.convolutions):
            spec = self._conv_spec(block, before, constant_input=self._constant_input and number == 0)
            behind = chain.blocks[number - 1].norms if number > 0 else []
            self._choose_head(spec, block, behind_one=len(behind) == 1)
            kernels.add_conv(spec)
            self._add_norms(kernels, block)
            alive = self._alive[block.end]
            before = Result(number + 1, alive.varying, alive.constant)
        self._finish(kernels, chain.blocks[-1])
        return kernels

    def _choose_head(self, spec: Any, block: ConvBlock, *, behind_one: bool) -> None:
        """Fuse a last convolution of few outputs behind a single norm with its loss."""
        extension = self._extension()
        few = spec.outputs <= extension.MOST_HEAD_OUTPUTS
        if spec.kind == extension.ConvKind.POINTWISE and behind_one and few and not block.norms:
            spec.kind = extension.ConvKind.HEAD

    def _add_norms(self, kernels: Any, block: Block) -> None:
        incoming = block.value.constant
        for node in block.norms:
            kernels.add_norm(self._norm_spec(node, incoming))
            incoming = self._alive[node].constant

    def _finish(self, kernels: Any, block: Block) -> None:
        act = block.act
        stage = ir.Act("identity") if act is None else act.stage
        assert isinstance(stage, ir.Act)
        extension = self._extension()
        if stage.kind == "sigmoid":
            kernels.finish(extension.OutputAct.SIGMOID, 0.0)
        else:
            kernels.finish(extension.OutputAct.LEAKY_RELU, leaky_slope(stage))

    def _conv_spec(self, block: ConvBlock, source: Result, *, constant_input: bool) -> Any:
        conv = convolution(block)
        up = isinstance(block.conv.stage, ir.UpConv)
        outputs = block.value
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
        index = self._taps(block, source)
        first = int(index.flatten()[0])
        if first >= 0 and torch.equal(
            index.flatten(), torch.arange(first, first + index.numel(), device="cpu")
        ):
            spec.first_weight = first
            spec.dense = True
        else:
            spec.taps = torch.nonzero(index >= 0).flatten().tolist()
            spec.weights = index[index >= 0].tolist()
            rows, columns = block.sources[0].shape[2:]
            image = source.channels, rows, columns
            spec.dense = self._dense_is_better(spec, image, constant_input=constant_input)
        spec.bias = self._bias(block).tolist()
        spec.constant_taps = [
            number for o, index, c in self._constant_taps(block, source) for number in (o, index, c)
        ]
        return spec

    def _taps(self, block: ConvBlock, source: Result) -> Tensor:
        """Index of each weight [varying outputs, planes of the source, kH, kW] in the flat vector, or -1."""
        conv, outputs = convolution(block), block.value.varying
        index = self._index(conv, outputs, source.varying)
        if not source.planes:
            return index
        of_constants = self._index(conv, outputs, source.constant)
        if not block.reads_zeros:  # what they add is the same for all pixels
            of_constants = torch.full_like(of_constants, -1)
        return torch.cat([index, of_constants], 1)

    def _constant_taps(self, block: ConvBlock, source: Result) -> list[tuple[int, int, int]]:
        """(output, index of the weight, number of the constant) of the weights of constant channels."""
        if block.reads_zeros:
            return []
        outputs = torch.cat([block.value.varying, block.value.constant])
        index = self._index(convolution(block), outputs, source.constant)
        return [(o, int(index[o, c, u, v]), c) for o, c, u, v in torch.nonzero(index >= 0).tolist()]

    def _bias(self, block: ConvBlock) -> Tensor:
        """Index of the bias of each output, the constant ones last, or -1."""
        conv = convolution(block)
        outputs = torch.cat([block.value.varying, block.value.constant])
        if conv.bias is None:
            return torch.full_like(outputs, -1)
        return self._weights.index(conv.bias, conv.bias_of(outputs))

    def _index(self, conv: ir.Conv, outputs: Tensor, inputs: Tensor) -> Tensor:
        return self._weights.index(conv.weight, outputs, inputs + conv.first, transposed=conv.transposed)

    def _norm_spec(self, node: ir.Node, incoming: Tensor) -> Any:
        """Of a norm whose constant input channels are ``incoming``."""
        norm = node.stage
        assert isinstance(norm, ir.Norm | ir.GroupNorm)
        alive = self._alive[node]
        spec = self._extension().NormSpec()
        none = [-1] * len(alive.varying)
        first = norm.first if isinstance(norm, ir.Norm) else 0
        varying = alive.varying + first
        spec.gamma = none if norm.weight is None else self._weights.index(norm.weight, varying).tolist()
        spec.beta = none if norm.bias is None else self._weights.index(norm.bias, varying).tolist()
        spec.eps = norm.eps
        if isinstance(norm, ir.Norm):
            spec.copies = norm.copies
            spec.tracks = norm.tracks
            spec.momentum = 0.0 if norm.momentum is None else norm.momentum
            spec.stats_index = varying.tolist()
            order = {channel: number for number, channel in enumerate(incoming.tolist())}
            spec.tracked = [order.get(channel, -1) for channel in alive.tracked.tolist()]
            spec.tracked_stats_index = (alive.tracked + first).tolist()
        if norm.act is not None:
            spec.act, spec.slope = activation(norm.act, self._extension().Act)
        if len(alive.constant):
            assert norm.bias is not None
            spec.constants = self._weights.index(norm.bias, alive.constant + first).tolist()
        return spec


def convolution(block: ConvBlock) -> ir.Conv:
    """The stage of a block's convolution."""
    stage = block.conv.stage
    conv = stage.conv if isinstance(stage, ir.UpConv) else stage
    assert isinstance(conv, ir.Conv)
    return conv


def activation(act: ir.Act, kinds: Any) -> tuple[Any, float]:
    """(activation, slope below zero or alpha) as the kernels know it."""
    if act.kind == "elu":
        return kinds.ELU, act.value
    if act.kind == "silu":
        return kinds.SILU, 0.0
    return kinds.LEAKY_RELU, leaky_slope(act)


def leaky_slope(act: ir.Act) -> float:
    """The slope below zero of an activation of straight lines."""
    return {"identity": 1.0, "relu": 0.0, "leaky_relu": act.value}[act.kind]
