"""How each stage runs on plain PyTorch operations, on the channels that are alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from oes_fast.copies import copy_network
from oes_fast.ops.running_stats import LayerStats
from oes_fast.ops.sparse_conv2d import SparsePattern
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.norm_ops import NormRun
from oes_fast.rewrite.run.sparse_ops import BACKEND, sparse_convolve, sparse_pattern
from oes_fast.rewrite.weights import CompactWeights

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@dataclass(frozen=True)
class Value:
    """Result of a stage.

    Attributes:
        x: the channels that vary, [N, vary, H, W]; any tensor where the result is no image.
        const: one number for each constant channel, [const], or None where there are none.
        offset: [vary], still to be added to ``x``; only between a convolution and a batch norm.
    """

    x: Tensor
    const: Tensor | None = None
    offset: Tensor | None = None


@dataclass
class FusedLoss:
    """The loss to take along with the last layer.

    Attributes:
        target: image to compare the output with.
        loss: mean squared error, where the last layer took it along; else None.
    """

    target: Tensor
    loss: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What one pass of a plan shares.

    Attributes:
        z: input.
        weights: kept weights, flat.
        blocks: weights, as :class:`CompactWeights` gives them.
        buffers: running statistics by name.
        update_stats: update them in place.
        fused_loss: the loss to take along, if one is asked for.
        counted: names of the batch counts to add one to when all stages have run.
        moved: running statistics to move then.
    """

    z: Tensor
    weights: Tensor
    blocks: list[Tensor]
    buffers: Mapping[str, Tensor]
    update_stats: bool
    fused_loss: FusedLoss | None = None
    counted: list[str] = field(default_factory=list)
    moved: list[LayerStats] = field(default_factory=list)


Run = Callable[[Context, list[Value]], Value]


class Builder:
    """Binds the stages of a graph to their channels and weights.

    Args:
        graph: to build.
        net: the traced network.
        alive: channels by id of the node.
        weights: where blocks of weights are asked for.
        device: of the weights.
        fixed: ids of the nodes that depend on the input alone.
        chained: ids of the nodes that run as part of a chain.
        kernels: "torch", or "cpu" for the C++ kernels where they are the better choice (for "triton" there is
            :class:`oes_fast.rewrite.run.triton_ops.TritonBuilder`).

    Attributes:
        sparse: ids of the convolutions that run on their kept weights alone, once they are built.
    """

    def __init__(
        self,
        graph: ir.Graph,
        net: nn.Module,
        alive: dict[int, Alive],
        weights: CompactWeights,
        device: torch.device,
        *,
        fixed: set[int],
        chained: set[int],
        kernels: str,
    ) -> None:
        self._fixed = fixed
        self._chained = chained
        self._patterns: dict[int, SparsePattern | None] = {}
        self._kernels = kernels
        self._graph = graph
        self._net = net
        self._alive = alive
        self._weights = weights
        self._device = device

    def build(self, node: ir.Node) -> Run:
        """The function that runs ``node``."""
        run = _BUILDERS[type(node.stage)](self, node)
        if not isinstance(node.stage, ir.Constant | ir.Parameter | ir.Opaque) or len(node.shape) != 4:
            return run
        # These make all channels; their readers expect the ones that are alive.
        take = positions(torch.arange(node.shape[1], device="cpu"), self._alive[id(node)].vary, self._device)
        return run if take is None else lambda context, values: Value(select(run(context, values).x, take, 1))

    def output(self) -> Run:
        """The function that puts the output's channels together."""
        return self._assembled(self._graph.output, torch.arange(self._graph.output.shape[1], device="cpu"))

    # ---- leaves

    def _input(self, node: ir.Node) -> Run:
        take = positions(torch.arange(node.shape[1], device="cpu"), self._alive[id(node)].vary, self._device)
        return lambda context, _: Value(select(context.z, take, 1))

    def _constant(self, node: ir.Node) -> Run:
        assert isinstance(node.stage, ir.Constant)
        value = node.stage.value.to(self._device)
        return lambda context, _: Value(value)

    def _parameter(self, node: ir.Node) -> Run:
        assert isinstance(node.stage, ir.Parameter)
        name = node.stage.name
        if name in dict(self._net.named_buffers()):
            # A function that reads it may update it, as torch.nn.functional.batch_norm does.
            return lambda context, _: Value(
                context.buffers[name] if context.update_stats else context.buffers[name].clone()
            )
        block = self._weights.request(name)
        return lambda context, _: Value(context.blocks[block])

    # ---- convolutions

    def _conv(self, node: ir.Node) -> Run:
        conv = node.stage
        assert isinstance(conv, ir.Conv)
        (source,) = node.inputs
        pattern = self._pattern(node)
        if pattern is not None:
            fixed = id(source) in self._fixed
            return self._convolution(node, conv, sparse_convolve(pattern, conv.stride[0], fixed=fixed))
        padding = (0, 0)
        if self._folds_into_conv(source):
            assert isinstance(source.stage, ir.Pad)
            padding = (source.stage.amount[2], source.stage.amount[0])

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation)
            # A fixed image lies channels last, and so does what comes of it. For 15 channels on two threads,
            # batch norm takes 39 ms backward in that layout and 13 in the other; for 16 both take the same.
            return y if y.shape[1] % 16 == 0 else y.contiguous()

        return self._convolution(node, conv, convolve)

    def _up_conv(self, node: ir.Node) -> Run:
        up = node.stage
        assert isinstance(up, ir.UpConv)
        (source,) = node.inputs
        rows, columns = up.crop
        if self._folds_into_conv(source):
            # Outside the image a transposed convolution sees zeros: the ring need not be there to be cut off.
            assert isinstance(source.stage, ir.Pad)
            rows -= source.stage.amount[2] * up.factor
            columns -= source.stage.amount[0] * up.factor

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            kernel = spread(weight.flip(2, 3), up.factor).transpose(0, 1)
            return F.conv_transpose2d(x, kernel, bias, stride=up.factor, padding=(rows, columns))

        return self._convolution(node, up.conv, convolve)

    def _convolution(
        self, node: ir.Node, conv: ir.Conv, convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    ) -> Run:
        (source,) = node.inputs
        inputs, outputs = self._alive[id(source)], self._alive[id(node)]
        request = self._weights.request if self._pattern(node) is None else self._weights.request_values
        weight = request(conv.weight, outputs.vary, inputs.vary + conv.first)
        offset = self._offset(conv, inputs, outputs.vary)
        const = self._offset(conv, inputs, outputs.const)
        defer = self._normalised(node)
        empty = len(outputs.vary) == 0
        n, _, h, w = node.shape

        def run(context: Context, values: list[Value]) -> Value:
            (value,) = values
            constants = None if const is None else const(context, value.const)
            if empty:
                return Value(value.x.new_zeros(n, 0, h, w), constants)
            kernel = context.blocks[weight]
            if conv.scale != 1.0:
                kernel = kernel * conv.scale
            shift = None if offset is None else offset(context, value.const)
            if defer:
                return Value(convolve(value.x, kernel, None), constants, shift)
            return Value(convolve(value.x, kernel, shift), constants)

        return run

    def _offset(
        self, conv: ir.Conv, inputs: Alive, outputs: Tensor
    ) -> Callable[[Context, Tensor | None], Tensor] | None:
        """Bias plus what constant input channels add, for the given outputs; None where it is nothing."""
        if len(outputs) == 0:
            return None
        constants = inputs.const + conv.first
        block = bias = None
        if len(constants) and self._weights.nonzeros(conv.weight, outputs, constants):
            block = self._weights.request(conv.weight, outputs, constants)
        if conv.bias is not None and self._weights.nonzeros(conv.bias, outputs):
            bias = self._weights.request(conv.bias, outputs)
        if block is None and bias is None:
            return None

        def offset(context: Context, const: Tensor | None) -> Tensor:
            shift = None if bias is None else context.blocks[bias]
            if block is not None:
                assert const is not None
                added = (context.blocks[block].flatten(2).sum(2) * conv.scale) @ const
                shift = added if shift is None else shift + added
            assert shift is not None
            return shift

        return offset

    def _pattern(self, node: ir.Node) -> SparsePattern | None:
        """The pattern of a convolution that runs on its kept weights alone, else None."""
        if self._kernels != BACKEND or not isinstance(node.stage, ir.Conv):
            return None
        if id(node) not in self._patterns:
            conv, inputs = node.stage, self._alive[id(node.inputs[0])].vary + node.stage.first
            kept = self._weights.kept(conv.weight, self._alive[id(node)].vary, inputs)
            self._patterns[id(node)] = sparse_pattern(conv, kept)
        return self._patterns[id(node)]

    @property
    def sparse(self) -> set[int]:
        """See the class."""
        return {key for key, pattern in self._patterns.items() if pattern is not None}

    def _normalised(self, node: ir.Node) -> bool:
        """Whether a batch norm alone reads it: it subtracts whatever is added to a channel."""
        reader = self._graph.sole_user(node)
        return reader is not None and isinstance(reader.stage, ir.Norm) and reader.stage.of_batch

    def _folds_into_conv(self, node: ir.Node) -> bool:
        """Zero padding that the convolution can do itself."""
        if not isinstance(node.stage, ir.Pad) or node.stage.mode != "zeros":
            return False
        left, right, top, bottom = node.stage.amount
        same = torch.equal(self._alive[id(node)].vary, self._alive[id(node.inputs[0])].vary)
        reader = self._graph.sole_user(node)
        if left != right or top != bottom or not same or reader is None or id(reader) in self._chained:
            return False
        if isinstance(reader.stage, ir.UpConv):
            crop, factor = reader.stage.crop, reader.stage.factor
            return crop[0] >= top * factor and crop[1] >= left * factor
        return isinstance(reader.stage, ir.Conv) and self._pattern(reader) is None

    # ---- channel by channel

    def _norm(self, node: ir.Node) -> Run:
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        alive, source = self._alive[id(node)], self._alive[id(node.inputs[0])]
        run = NormRun(norm, source, alive, self._weights, self._device)
        act = norm.act
        take = positions(source.vary, alive.vary, self._device)

        def result(context: Context, values: list[Value]) -> Value:
            (value,) = values
            x, offset = select(value.x, take, 1), value.offset
            offset = None if offset is None else select(offset, take, 0)
            x, const = run(
                x,
                offset,
                value.const,
                context.blocks,
                context.buffers,
                context.update_stats,
                context.counted,
            )
            if act is None:
                return Value(x, const)
            return Value(activate(x, act, fresh=True), None if const is None else activate(const, act))

        return result

    def _act(self, node: ir.Node) -> Run:
        act = node.stage
        assert isinstance(act, ir.Act)
        # Constants that are zero are not carried; an activation that lifts zero makes them constants here.
        return self._each(node, lambda x: activate(x, act), lambda k: activate(k, act))

    def _pad(self, node: ir.Node) -> Run:
        pad = node.stage
        assert isinstance(pad, ir.Pad)
        if self._folds_into_conv(node):
            return self._each(node, lambda x: x, lambda k: k)
        mode = PAD_MODES[pad.mode]
        if pad.mode == "zeros":
            assemble = self._assembled(node.inputs[0], self._alive[id(node)].vary)
            return lambda context, values: Value(F.pad(assemble(context, values).x, pad.amount))
        return self._each(node, lambda x: F.pad(x, pad.amount, mode=mode), lambda k: k)

    def _box(self, node: ir.Node) -> Run:
        assert isinstance(node.stage, ir.Box)
        size = node.stage.size

        def box(x: Tensor) -> Tensor:
            for dim in (2, 3):
                length = x.shape[dim] - size + 1
                pieces = [x.narrow(dim, start, length) for start in range(size)]
                x = pieces[0] + pieces[1]
                for piece in pieces[2:]:
                    x = x + piece
            return x

        return self._each(node, box, lambda k: k * size**2)

    def _pool(self, node: ir.Node) -> Run:
        pool = node.stage
        assert isinstance(pool, ir.Pool)
        if pool.kind == "avg":
            return self._each(
                node, lambda x: F.avg_pool2d(x, pool.kernel, pool.stride, 0, pool.ceil), lambda k: k
            )
        return self._each(
            node, lambda x: F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil), lambda k: k
        )

    def _upsample(self, node: ir.Node) -> Run:
        up = node.stage
        assert isinstance(up, ir.Upsample)

        def interpolate(x: Tensor) -> Tensor:
            return F.interpolate(x, size=up.size, mode=up.mode, align_corners=up.align_corners)

        return self._each(node, interpolate, lambda k: k)

    def _crop(self, node: ir.Node) -> Run:
        c = node.stage
        assert isinstance(c, ir.Crop)
        return self._each(
            node, lambda x: x[..., c.top : c.top + c.height, c.left : c.left + c.width], lambda k: k
        )

    def _each(
        self, node: ir.Node, vary: Callable[[Tensor], Tensor], const: Callable[[Tensor], Tensor]
    ) -> Run:
        """A stage that works channel by channel and keeps constants constant."""
        alive, source = self._alive[id(node)], self._alive[id(node.inputs[0])]
        take = positions(source.vary, alive.vary, self._device)
        vector = self._vector(source, alive.const)
        n, _, h, w = node.shape

        def run(context: Context, values: list[Value]) -> Value:
            (value,) = values
            x = select(value.x, take, 1)
            x = vary(x) if x.shape[1] else x.new_zeros(n, 0, h, w)
            return Value(x, None if vector is None else const(vector(value, x)))

        return run

    # ---- several inputs

    def _cat(self, node: ir.Node) -> Run:
        alive = self._alive[id(node)]
        takes, vectors, first = [], [], 0
        for source in node.inputs:
            channels = source.shape[1]
            vary, const = (
                index[(index >= first) & (index < first + channels)] - first
                for index in (alive.vary, alive.const)
            )
            takes.append(positions(self._alive[id(source)].vary, vary, self._device))
            vectors.append(self._vector(self._alive[id(source)], const))
            first += channels

        def run(context: Context, values: list[Value]) -> Value:
            x = torch.cat([select(v.x, take, 1) for v, take in zip(values, takes, strict=True)], 1)
            const = [vector(v, x) for v, vector in zip(values, vectors, strict=True) if vector is not None]
            return Value(x, torch.cat(const) if const else None)

        return run

    def _add(self, node: ir.Node) -> Run:
        alive = self._alive[id(node)]
        assemble = [self._assembled(source, alive.vary) for source in node.inputs]
        vectors = [self._vector(self._alive[id(source)], alive.const) for source in node.inputs]

        def run(context: Context, values: list[Value]) -> Value:
            left, right = (a(context, [v]).x for a, v in zip(assemble, values, strict=True))
            const = [vector(v, left) for v, vector in zip(values, vectors, strict=True) if vector is not None]
            return Value(left + right, const[0] + const[1] if const else None)

        return run

    def _opaque(self, node: ir.Node) -> Run:
        stage = node.stage
        assert isinstance(stage, ir.Opaque)
        assemble = [
            self._assembled(i, torch.arange(i.shape[1], device="cpu"))
            if len(i.shape) == 4
            else (lambda _, v: v[0])
            for i in node.inputs
        ]
        call = self._call(stage)

        def run(context: Context, values: list[Value]) -> Value:
            tensors = [a(context, [v]).x for a, v in zip(assemble, values, strict=True)]
            args = _fill(stage.args, tensors)
            return Value(call(context, args, _fill(stage.kwargs, tensors)))

        return run

    def _call(self, stage: ir.Opaque) -> Callable[[Context, Any, Any], Any]:
        if stage.kind == "call_function":
            return lambda context, args, kwargs: stage.target(*args, **kwargs)
        if stage.kind == "call_method":
            return lambda context, args, kwargs: getattr(args[0], stage.target)(*args[1:], **kwargs)
        # A module of its own runs on the plan's weights and buffers.
        original = self._net.get_submodule(stage.target)
        module = copy_network(original)
        names = {id(p): name for name, p in [*self._net.named_parameters(), *self._net.named_buffers()]}
        blocks = {name: self._weights.request(names[id(p)]) for name, p in original.named_parameters()}
        buffers = {name: names[id(b)] for name, b in original.named_buffers()}

        def call(context: Context, args: Any, kwargs: Any) -> Any:
            state = {name: context.blocks[block] for name, block in blocks.items()}
            for name, full in buffers.items():
                buffer = context.buffers[full]
                state[name] = buffer if context.update_stats else buffer.clone()
            return functional_call(module, state, args, kwargs)

        return call

    # ---- putting channels together

    def _vector(self, source: Alive, wanted: Tensor) -> Callable[[Value, Tensor], Tensor] | None:
        """The constants of the given channels, zero where the source's channel is exactly zero."""
        if len(wanted) == 0:
            return None
        here = torch.isin(wanted, source.const)
        take = positions(source.const, wanted[here], self._device)
        place = torch.nonzero(here).flatten().to(self._device)

        def vector(value: Value, like: Tensor) -> Tensor:
            if value.const is None or len(place) == 0:
                return like.new_zeros(len(here))
            found = select(value.const, take, 0)
            return found if len(place) == len(here) else like.new_zeros(len(here)).index_copy(0, place, found)

        return vector

    def _assembled(self, source: ir.Node, wanted: Tensor) -> Run:
        """The given channels as one tensor [N, wanted, H, W]: computed, constant or zero."""
        alive = self._alive[id(source)]
        if torch.equal(alive.vary, wanted):
            return lambda context, values: Value(values[0].x)
        here = torch.isin(wanted, alive.vary)
        take = positions(alive.vary, wanted[here], self._device)
        place = torch.nonzero(here).flatten().to(self._device)
        constant = wanted[~here]
        vector = self._vector(alive, constant)
        rest = torch.nonzero(~here).flatten().to(self._device)
        n, _, h, w = source.shape

        def assemble(context: Context, values: list[Value]) -> Value:
            (value,) = values
            full = value.x.new_zeros(n, len(wanted), h, w).index_copy(1, place, select(value.x, take, 1))
            if vector is not None:
                planes = vector(value, value.x).view(1, -1, 1, 1).expand(n, -1, h, w)
                full = full.index_copy(1, rest, planes)
            return Value(full)

        return assemble


_BUILDERS: dict[type, Callable[[Builder, ir.Node], Run]] = {
    ir.Input: Builder._input,
    ir.Constant: Builder._constant,
    ir.Parameter: Builder._parameter,
    ir.Conv: Builder._conv,
    ir.UpConv: Builder._up_conv,
    ir.Norm: Builder._norm,
    ir.Act: Builder._act,
    ir.Pad: Builder._pad,
    ir.Box: Builder._box,
    ir.Pool: Builder._pool,
    ir.Upsample: Builder._upsample,
    ir.Crop: Builder._crop,
    ir.Cat: Builder._cat,
    ir.Add: Builder._add,
    ir.Opaque: Builder._opaque,
}


def spread(kernel: Tensor, factor: int) -> Tensor:
    """Full convolution of [O, I, kH, kW] with factor x factor ones: [O, I, kH + f - 1, kW + f - 1]."""
    last = factor - 1
    inside = min(last, factor // 2)  # zeros that the sum adds around the kernel by itself
    if last > inside:
        kernel = F.pad(kernel, [last - inside] * 4)
    return F.avg_pool2d(kernel, factor, 1, inside, divisor_override=1)


def activate(x: Tensor, act: ir.Act, *, fresh: bool = False) -> Tensor:
    """The activation of ``x``; in place where ``x`` is ``fresh``, read by nobody else."""
    if act.kind == "leaky_relu":
        return F.leaky_relu(x, act.value, inplace=fresh and act.value > 0)
    if act.kind == "relu":
        return F.relu(x, inplace=fresh)
    if act.kind == "elu":
        return F.elu(x, act.value)
    if act.kind == "silu":
        return F.silu(x)
    if act.kind == "sigmoid":
        return torch.sigmoid(x)
    if act.kind == "tanh":
        return torch.tanh(x)
    return x


def positions(have: Tensor, wanted: Tensor, device: torch.device) -> Tensor | None:
    """Where the channels ``wanted`` lie among ``have``; None where they are the same."""
    return None if torch.equal(have, wanted) else torch.searchsorted(have, wanted).to(device)


def select(x: Tensor, take: Tensor | None, dim: int) -> Tensor:
    """``x`` at the given places of a dimension; all of it for None."""
    return x if take is None else x.index_select(dim, take)


def _fill(arguments: Any, tensors: list[Tensor]) -> Any:
    if isinstance(arguments, ir.Slot):
        return tensors[arguments.index]
    if isinstance(arguments, tuple | list):
        return type(arguments)(_fill(a, tensors) for a in arguments)
    if isinstance(arguments, dict):
        return {key: _fill(a, tensors) for key, a in arguments.items()}
    return arguments
