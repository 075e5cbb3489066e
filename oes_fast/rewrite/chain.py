"""Rows of convolutions and batch norms that the C++ kernels run as one.

A chain is a part of the graph without branches: convolutions with batch norm and activation behind them.
Inside it nothing but the convolutions' own results is kept: each convolution normalises and activates what it
reads, forward and backward (csrc/cpu/chain.h). What does not fit ends the chain and runs stage by stage.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oes_fast.rewrite import stages as s
from oes_fast.rewrite.compact import CompactWeights
from oes_fast.rewrite.forms import dense_is_faster
from oes_fast.rewrite.liveness import Alive

MOST_OF_HEAD = 4  # outputs: the kernels hold their sums in registers

_ACTIVATIONS = (None, "identity", "relu", "leaky_relu", "elu", "silu")
_OUTPUTS = ("identity", "relu", "leaky_relu", "sigmoid")


@dataclass
class Link:
    """A convolution with what belongs to it.

    Attributes:
        nodes: of the graph, in order; the last one's result is the link's.
        pad, box: before the convolution, or None.
        conv: node of the convolution.
        norms: nodes of one or two batch norms, the first with an activation perhaps.
        act: node of the activation of a last convolution without batch norm, or None.
    """

    nodes: list[s.Node]
    pad: s.Node | None
    box: s.Node | None
    conv: s.Node
    norms: list[s.Node] = field(default_factory=list)
    act: s.Node | None = None


@dataclass
class Chain:
    """Links, each reading the result of the one before it.

    Attributes:
        source: node that the first link reads.
        links: one or more.
    """

    source: s.Node
    links: list[Link]

    @property
    def end(self) -> s.Node:
        """Node whose result is the chain's."""
        return self.links[-1].nodes[-1]

    @property
    def nodes(self) -> list[s.Node]:
        """All nodes it runs."""
        return [node for link in self.links for node in link.nodes]


def find_chains(graph: s.Graph, alive: dict[int, Alive], fixed: set[int]) -> list[Chain]:
    """The chains of a graph, the longest there are, none overlapping.

    Args:
        graph: rewritten.
        alive: channels by id of the node.
        fixed: ids of the nodes that depend on the input alone.
    """
    taken: set[int] = set(fixed)
    chains = []
    for node in graph.nodes:
        if id(node) in taken or not node.inputs:
            continue
        source = node.inputs[0]
        if len(alive[id(source)].const):
            continue
        links: list[Link] = []
        first: s.Node | None = node
        while first is not None and id(first) not in taken:
            link = _link(graph, alive, first)
            if link is None:
                break
            links.append(link)
            first = graph.sole_user(link.nodes[-1]) if link.norms else None
        if links:
            chains.append(Chain(source, links))
            taken.update(id(n) for n in chains[-1].nodes)
    return chains


def _link(graph: s.Graph, alive: dict[int, Alive], node: s.Node) -> Link | None:
    """The link whose first node is ``node``, or None where there is none."""
    source = alive[id(node.inputs[0])]
    nodes: list[s.Node] = []
    pad = box = None
    reader: s.Node | None = node
    if reader is not None and isinstance(reader.stage, s.Pad):
        pad = reader
        nodes.append(reader)
        reader = graph.sole_user(reader)
    if reader is not None and isinstance(reader.stage, s.Box) and reader.stage.size == 2:
        box = reader
        nodes.append(reader)
        reader = graph.sole_user(reader)
    if reader is None or not _convolves(reader, pad, box) or reader.shape[0] != 1:
        return None
    for between in nodes:
        if not _same(alive[id(between)], source):
            return None
    channels = alive[id(reader)].vary
    if len(channels) == 0 or len(source.vary) == 0:
        return None
    link = Link([*nodes, reader], pad, box, reader)
    following = graph.sole_user(reader)
    while (
        following is not None and len(link.norms) < 2 and _normalises(following, alive, channels, link.norms)
    ):
        link.norms.append(following)
        link.nodes.append(following)
        following = graph.sole_user(following)
    if link.norms:
        return link
    if len(alive[id(reader)].const):
        return None
    if following is not None and isinstance(following.stage, s.Act) and following.stage.kind in _OUTPUTS:
        if not _same(alive[id(following)], alive[id(reader)]):
            return None
        link.act = following
        link.nodes.append(following)
    return link


def _convolves(node: s.Node, pad: s.Node | None, box: s.Node | None) -> bool:
    stage = node.stage
    if isinstance(stage, s.UpConv):
        if pad is None or box is not None or stage.factor != 2 or stage.conv.kernel != (3, 3):
            return False
        assert isinstance(pad.stage, s.Pad)
        modes = ("replicate", "zeros")
        return stage.crop == (3, 3) and pad.stage.amount == (1, 1, 1, 1) and pad.stage.mode in modes
    if not isinstance(stage, s.Conv) or stage.dilation != (1, 1):
        return False
    return stage.stride in ((1, 1), (2, 2))


def _normalises(node: s.Node, alive: dict[int, Alive], channels: Tensor, before: list[s.Node]) -> bool:
    norm = node.stage
    if (
        len(before) == 2
        or not isinstance(norm, s.Norm)
        or not norm.of_batch
        or (norm.tracks and norm.momentum is None)
    ):
        return False
    kind = None if norm.act is None else norm.act.kind
    if kind not in (_ACTIVATIONS if not before else (None, "identity")):
        return False
    n, _, h, w = node.shape
    return n * h * w > 1 and torch.equal(alive[id(node)].vary, channels)


def _same(one: Alive, other: Alive) -> bool:
    return torch.equal(one.vary, other.vary) and torch.equal(one.const, other.const)


class ChainRun:
    """A chain bound to its channels and weights.

    Args:
        chain: to run.
        alive: channels by id of the node.
        weights: what the mask keeps, and where it lies in the flat vector.
        fixed: the source depends on the input alone.
    """

    def __init__(
        self, chain: Chain, alive: dict[int, Alive], weights: CompactWeights, *, fixed: bool
    ) -> None:
        self.chain = chain
        self._alive = alive
        self._weights = weights
        self._fixed = fixed
        self._programs: dict[tuple[torch.dtype, bool], Program] = {}
        self._planes: tuple[Tensor, Tensor] | None = None
        self._norms = [norm for link in chain.links for norm in link.norms]
        end = chain.end.stage
        # Constant channels of the result: in training a batch norm gives its beta for them.
        self._beta = None
        if isinstance(end, s.Norm) and len(alive[id(chain.end)].const):
            assert end.bias is not None
            self._beta = weights.request(end.bias, alive[id(chain.end)].const + end.first)

    def constants(self, blocks: list[Tensor], activate: Callable[..., Tensor]) -> Tensor | None:
        """Values of the constant channels of the result, or None."""
        if self._beta is None:
            return None
        end = self.chain.end.stage
        assert isinstance(end, s.Norm)
        beta = blocks[self._beta]
        return beta if end.act is None else activate(beta, end.act)

    def __call__(
        self,
        weights: Tensor,
        source: Tensor,
        buffers: Mapping[str, Tensor],
        *,
        update_stats: bool,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The chain's result [1, C, H, W], and its mean squared error to the target.

        Args:
            weights: kept weights, flat.
            source: channels that vary of the source [1, C, H, W].
            buffers: running statistics by name, updated in place if ``update_stats``.
            update_stats: update them.
            target: [1, C, H, W], or None; a chain that ends in a batch norm takes none.
        """
        fixed = self._fixed and not source.requires_grad
        program = self._program(source, fixed)
        running: list[Tensor | None] = []
        for node in self._norms:
            norm = node.stage
            assert isinstance(norm, s.Norm)
            if update_stats and norm.tracks:
                assert norm.mean is not None
                assert norm.var is not None
                running += [buffers[norm.mean], buffers[norm.var]]
                if norm.count is not None and norm.counts:
                    buffers[norm.count].add_(1)
            else:
                running += [None, None]
        source = self._read(source, program) if fixed else source
        if target is None or self.chain.links[-1].norms:
            return _Evaluate.apply(weights, source, program, running), None
        return _EvaluateLoss.apply(weights, source, target.detach(), program, running)

    def _program(self, source: Tensor, fixed: bool) -> Program:
        key = source.dtype, fixed
        if key not in self._programs:
            self._programs[key] = Program(self.chain, self._alive, self._weights, source, fixed=fixed)
        return self._programs[key]

    def _read(self, source: Tensor, program: Program) -> Tensor:
        """A fixed source as the first convolution reads it, made once."""
        if self._planes is None or self._planes[0] is not source:
            conv = self.chain.links[0].conv.stage
            planes = source.contiguous().unsqueeze(2)
            if isinstance(conv, s.Conv) and conv.stride == (2, 2):
                planes = torch.ops.oes_fast.phase_split_cpu(planes.squeeze(2))
            planes = program.laid_out(planes.flatten(1, 2)[0])
            if source.is_inference():
                return planes
            self._planes = (source, planes)
        return self._planes[1]


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
        self.kernels = cls(channels, height, width, fixed)
        before = alive[id(chain.source)]
        for number, link in enumerate(chain.links):
            spec = self._conv_spec(link, before, source.dtype, fixed=fixed and number == 0)
            behind_one = number > 0 and len(chain.links[number - 1].norms) == 1
            if spec.kind == "pointwise" and behind_one and not link.norms and spec.outputs <= MOST_OF_HEAD:
                spec.kind = "head"
            self.kernels.add_conv(spec)
            incoming = alive[id(link.conv)].const
            for node in link.norms:
                self.kernels.add_norm(self._norm_spec(node, incoming))
                incoming = alive[id(node)].const
            before = alive[id(link.nodes[-1])]
        act = chain.links[-1].act
        kind, slope = "leaky_relu", 1.0
        if act is not None:
            assert isinstance(act.stage, s.Act)
            kind, slope = _activation(act.stage)
        self.kernels.finish(kind, slope)

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
                weights.data_ptr(),
                source.data_ptr(),
                0 if grad is None else grad.data_ptr(),
                grad_weights.data_ptr(),
                grad_source.data_ptr() if needs_source else 0,
            )
        return grad_weights, grad_source

    def laid_out(self, planes: Tensor) -> Tensor:
        """A fixed source [C * phases, H', W'] as the first convolution takes it."""
        if self.kernels.by_rows:  # [H', C * phases, W']: a strip of rows is one piece of memory
            return planes.transpose(0, 1).contiguous()
        # What is read behind the last plane is not used, but has to be there.
        buffer = planes.new_zeros(planes.numel() + _extension().SLACK)
        return buffer[: planes.numel()].view(planes.shape).copy_(planes)

    def _evaluate(
        self, weights: Tensor, source: Tensor, running: list[Tensor | None], target: Tensor | None
    ) -> tuple[Tensor, float]:
        weights, source = weights.contiguous(), source.contiguous()
        target = None if target is None else target.contiguous()
        channels, height, width = self.kernels.shape
        output = weights.new_empty(1, channels, height, width)
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in running]
        loss = self.kernels.forward(
            weights.data_ptr(),
            source.data_ptr(),
            output.data_ptr(),
            addresses,
            0 if target is None else target.data_ptr(),
        )
        return output, loss

    def _conv_spec(self, link: Link, source: Alive, dtype: torch.dtype, *, fixed: bool) -> Any:
        conv = link.conv.stage
        up = isinstance(conv, s.UpConv)
        if isinstance(conv, s.UpConv):
            conv = conv.conv
        assert isinstance(conv, s.Conv)
        outputs = self._alive[id(link.conv)]
        spec = _extension().ConvSpec()
        pointwise = conv.kernel == (1, 1) and conv.stride == (1, 1) and link.pad is None and link.box is None
        spec.kind = "up" if up else "pointwise" if pointwise and not fixed else "direct"
        spec.border = [0, 0, 0, 0]
        if link.pad is not None:
            assert isinstance(link.pad.stage, s.Pad)
            spec.pad = link.pad.stage.mode
            spec.border = list(link.pad.stage.amount)
        spec.box = link.box is not None
        spec.stride = conv.stride[0]
        spec.kernel_rows, spec.kernel_columns = conv.kernel
        spec.outputs = len(outputs.vary)
        spec.scale = conv.scale
        places = self._weights.places(conv.weight, outputs.vary, source.vary + conv.first)
        first = int(places.flatten()[0])
        if first >= 0 and torch.equal(places.flatten(), torch.arange(first, first + places.numel())):
            spec.first_weight = first
            spec.dense = True
        else:
            spec.taps = torch.nonzero(places >= 0).flatten().tolist()
            spec.weights = places[places >= 0].tolist()
            rows, columns = link.nodes[0].inputs[0].shape[2:]
            image = len(source.vary), rows, columns
            spec.dense = dense_is_faster(_extension(), dtype, spec, image, fixed=fixed)
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

    def _norm_spec(self, node: s.Node, incoming: Tensor) -> Any:
        """Of a norm whose constant input channels are ``incoming``."""
        norm = node.stage
        assert isinstance(norm, s.Norm)
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


def _activation(act: s.Act) -> tuple[str, float]:
    """(name, slope below zero) of an activation as the kernels know it."""
    if act.kind == "relu":
        return "leaky_relu", 0.0
    if act.kind == "identity":
        return "leaky_relu", 1.0
    return act.kind, act.value


class _Evaluate(torch.autograd.Function):
    """The chain as a function of weights and source."""

    @staticmethod
    def forward(weights: Tensor, source: Tensor, program: Program, running: list[Tensor | None]) -> Tensor:
        _check_statistics(running, weights)
        return program.forward(weights, source, running)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, source, ctx.program, _ = inputs
        ctx.save_for_backward(weights, source)
        ctx.evaluation = ctx.program.evaluation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, source = ctx.saved_tensors
        needs_weights, needs_source = ctx.needs_input_grad[:2]
        grad_weights, grad_source = _Differentiate.apply(
            weights, source, grad, ctx.program, ctx.evaluation, needs_source, None
        )
        return grad_weights if needs_weights else None, grad_source if needs_source else None, None, None


class _EvaluateLoss(torch.autograd.Function):
    """The chain with the error of its result to a target, as a function of weights and source."""

    @staticmethod
    def forward(
        weights: Tensor, source: Tensor, target: Tensor, program: Program, running: list[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        _check_statistics(running, weights)
        output, loss = program.forward(weights, source, running, target)
        return output, weights.new_tensor(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights, source, target, ctx.program, _ = inputs
        ctx.save_for_backward(weights, source, target, output[0])
        ctx.evaluation = ctx.program.evaluation
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_loss: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weights, source, target, output = ctx.saved_tensors
        needs_weights, needs_source = ctx.needs_input_grad[:2]
        evaluation, factor = ctx.evaluation, grad_loss
        if grad is not None:  # of the image as well: all of it from there, the buffers hold another gradient
            evaluation, factor = ctx.program.NONE, None
            if grad_loss is not None:
                grad = grad + grad_loss * (2 / target.numel()) * (output - target)
            target = None
        elif grad_loss is None:
            return None, None, None, None, None
        grad_weights, grad_source = _Differentiate.apply(
            weights, source, grad, ctx.program, evaluation, needs_source, target
        )
        if factor is not None and float(factor) != 1.0:
            grad_weights, grad_source = grad_weights * factor, grad_source * factor
        return (
            grad_weights if needs_weights else None,
            grad_source if needs_source else None,
            None,
            None,
            None,
        )


def _check_statistics(running: list[Tensor | None], weights: Tensor) -> None:
    for tensor in running:
        if tensor is not None and (tensor.dtype != weights.dtype or not tensor.is_contiguous()):
            raise TypeError("running statistics: expected contiguous tensors of the weights' dtype")


class _Differentiate(torch.autograd.Function):
    """The chain's derivative; it has none itself."""

    @staticmethod
    def forward(
        weights: Tensor,
        source: Tensor,
        grad: Tensor | None,
        program: Program,
        evaluation: int,
        needs_source: bool,
        target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return program.backward(weights, source, grad, evaluation, needs_source=needs_source, target=target)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError('backend "cpu" has no second derivative; use backend="torch"')
