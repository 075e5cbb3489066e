"""How each stage runs on plain PyTorch operations, on the channels that are alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from oes_fast.copies import copy_network
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.bilinear import upsample_bilinear_2x
from oes_fast.rewrite.run.context import Context, StageFunction, Value, activate, index_among, select
from oes_fast.rewrite.run.conv_ops import ConvBuilder
from oes_fast.rewrite.run.norm_ops import GroupNormFunction, NormFunction

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Builder(ConvBuilder):
    """Binds the stages of a graph to their channels and weights: see :class:`ConvBuilder`."""

    def build(self, node: ir.Node) -> StageFunction:
        """The function that runs ``node``."""
        run = _BUILDERS[type(node.stage)](self, node)
        if not isinstance(node.stage, ir.Constant | ir.Parameter | ir.Opaque) or len(node.shape) != 4:
            return run
        # These make all channels; their readers expect the ones that are alive.
        index = index_among(
            torch.arange(node.shape[1], device="cpu"), self._alive[node].varying, self._device
        )
        return (
            run if index is None else lambda context, values: Value(select(run(context, values).x, index, 1))
        )

    def output(self) -> StageFunction:
        """The function that puts the output's channels together."""
        return self._assembled(self._graph.output, torch.arange(self._graph.output.shape[1], device="cpu"))

    # ---- leaves

    def _input(self, node: ir.Node) -> StageFunction:
        index = index_among(
            torch.arange(node.shape[1], device="cpu"), self._alive[node].varying, self._device
        )
        return lambda context, _: Value(select(context.z, index, 1))

    def _constant(self, node: ir.Node) -> StageFunction:
        assert isinstance(node.stage, ir.Constant)
        value = node.stage.value.to(self._device)
        return lambda context, _: Value(value)

    def _parameter(self, node: ir.Node) -> StageFunction:
        assert isinstance(node.stage, ir.Parameter)
        name = node.stage.name
        if name in dict(self._net.named_buffers()):
            # A function that reads it may update it, as torch.nn.functional.batch_norm does.
            return lambda context, _: Value(
                context.buffers[name] if context.update_stats else context.buffers[name].clone()
            )
        block = self._weights.request(name)
        return lambda context, _: Value(context.blocks[block])

    # ---- channel by channel

    def _norm(self, node: ir.Node) -> StageFunction:
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        alive, source = self._alive[node], self._alive[node.inputs[0]]
        run = NormFunction(norm, source, alive, self._weights, self._device)
        act = norm.act
        index = index_among(source.varying, alive.varying, self._device)

        def result(context: Context, values: list[Value]) -> Value:
            (value,) = values
            x, shift = select(value.x, index, 1), value.shift
            shift = None if shift is None else select(shift, index, 0)
            x, constant = run(
                x,
                shift,
                value.constant,
                context.blocks,
                context.buffers,
                context.update_stats,
                context.counted,
            )
            if act is None:
                return Value(x, constant)
            return Value(activate(x, act, fresh=True), None if constant is None else activate(constant, act))

        return result

    def _group_norm(self, node: ir.Node) -> StageFunction:
        norm, source = node.stage, node.inputs[0]
        assert isinstance(norm, ir.GroupNorm)
        run = GroupNormFunction(norm, self._alive[node], self._weights, self._device)
        assemble = self._assembled(source, run.read)
        act = norm.act

        def result(context: Context, values: list[Value]) -> Value:
            x = run(assemble(context, values).x, context.blocks)
            constant = run.constants(context.blocks, x)
            if act is None:
                return Value(x, constant)
            return Value(activate(x, act, fresh=True), None if constant is None else activate(constant, act))

        return result

    def _prelu(self, node: ir.Node) -> StageFunction:
        prelu = node.stage
        assert isinstance(prelu, ir.PReLU)
        alive = self._alive[node]
        single = len(self._weights.shape(prelu.weight)) == 0 or self._weights.shape(prelu.weight).numel() == 1
        slopes = [
            self._weights.request(prelu.weight, *(() if single else (channels,)))
            for channels in (alive.varying, alive.constant)
        ]

        def of(number: int, context: Context, x: Tensor) -> Tensor:
            return F.prelu(x, context.blocks[slopes[number]].view(-1)) if x.numel() else x

        return self._each(
            node, lambda context, x: of(0, context, x), lambda context, k: of(1, context, k[None])[0]
        )

    def _pixel_shuffle(self, node: ir.Node) -> StageFunction:
        stage, source = node.stage, node.inputs[0]
        assert isinstance(stage, ir.PixelShuffle)
        if self._done_by_source(node):
            return lambda context, values: values[0]
        alive, size = self._alive[node], stage.factor**2
        channels = (alive.varying[:, None] * size + torch.arange(size, device="cpu")).flatten()
        assemble = self._assembled(source, channels)
        # A channel is constant here where all its parts are one constant.
        vector = self._vector(self._alive[source], alive.constant * size)

        def run(context: Context, values: list[Value]) -> Value:
            x = assemble(context, values).x
            constant = None if vector is None else vector(values[0], x)
            return Value(F.pixel_shuffle(x, stage.factor), constant)

        return run

    def _act(self, node: ir.Node) -> StageFunction:
        act = node.stage
        assert isinstance(act, ir.Act)
        # Constants that are zero are not carried; an activation that lifts zero makes them constants here.
        return self._each(node, lambda _, x: activate(x, act), lambda _, k: activate(k, act))

    def _pad(self, node: ir.Node) -> StageFunction:
        pad = node.stage
        assert isinstance(pad, ir.Pad)
        if self._folds_into_conv(node):
            return self._assembled(node.inputs[0], self._alive[node].varying)
        mode = PAD_MODES[pad.mode]
        if pad.mode == "zeros":
            assemble = self._assembled(node.inputs[0], self._alive[node].varying)
            return lambda context, values: Value(F.pad(assemble(context, values).x, pad.amount))
        return self._each(node, lambda _, x: F.pad(x, pad.amount, mode=mode), lambda _, k: k)

    def _box(self, node: ir.Node) -> StageFunction:
        assert isinstance(node.stage, ir.Box)
        size = node.stage.size

        def box(_: Context, x: Tensor) -> Tensor:
            for dim in (2, 3):
                length = x.shape[dim] - size + 1
                pieces = [x.narrow(dim, start, length) for start in range(size)]
                x = pieces[0] + pieces[1]
                for piece in pieces[2:]:
                    x = x + piece
            return x

        return self._each(node, box, lambda _, k: k * size**2)

    def _pool(self, node: ir.Node) -> StageFunction:
        pool = node.stage
        assert isinstance(pool, ir.Pool)
        if pool.kind == "avg":
            return self._each(
                node, lambda _, x: F.avg_pool2d(x, pool.kernel, pool.stride, 0, pool.ceil), lambda _, k: k
            )
        return self._each(
            node,
            lambda _, x: F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil),
            lambda _, k: k,
        )

    def _upsample(self, node: ir.Node) -> StageFunction:
        up = node.stage
        assert isinstance(up, ir.Upsample)

        doubles = up.mode == "bilinear" and up.factor == 2 and not up.align_corners

        def interpolate(_: Context, x: Tensor) -> Tensor:
            if doubles and x.device.type == "cpu":
                return upsample_bilinear_2x(x)
            return F.interpolate(x, size=up.size, mode=up.mode, align_corners=up.align_corners)

        return self._each(node, interpolate, lambda _, k: k)

    def _crop(self, node: ir.Node) -> StageFunction:
        c = node.stage
        assert isinstance(c, ir.Crop)
        if self._done_by_source(node):
            return lambda context, values: values[0]
        return self._each(
            node, lambda _, x: x[..., c.top : c.top + c.height, c.left : c.left + c.width], lambda _, k: k
        )

    def _each(
        self,
        node: ir.Node,
        varying: Callable[[Context, Tensor], Tensor],
        constant: Callable[[Context, Tensor], Tensor],
    ) -> StageFunction:
        """A stage that works channel by channel and keeps constants constant."""
        alive, source = self._alive[node], self._alive[node.inputs[0]]
        index = index_among(source.varying, alive.varying, self._device)
        vector = self._vector(source, alive.constant)
        n, _, h, w = node.shape

        def run(context: Context, values: list[Value]) -> Value:
            (value,) = values
            x = select(value.x, index, 1)
            x = varying(context, x) if x.shape[1] else x.new_zeros(n, 0, h, w)
            return Value(x, None if vector is None else constant(context, vector(value, x)))

        return run

    # ---- several inputs

    def _cat(self, node: ir.Node) -> StageFunction:
        alive = self._alive[node]
        indices, vectors, first = [], [], 0
        for source in node.inputs:
            channels = source.shape[1]
            varying, constant = (
                index[(index >= first) & (index < first + channels)] - first
                for index in (alive.varying, alive.constant)
            )
            indices.append(index_among(self._alive[source].varying, varying, self._device))
            vectors.append(self._vector(self._alive[source], constant))
            first += channels

        def run(context: Context, values: list[Value]) -> Value:
            x = torch.cat([select(v.x, index, 1) for v, index in zip(values, indices, strict=True)], 1)
            constant = [vector(v, x) for v, vector in zip(values, vectors, strict=True) if vector is not None]
            return Value(x, torch.cat(constant) if constant else None)

        return run

    def _add(self, node: ir.Node) -> StageFunction:
        alive = self._alive[node]
        assemble = [self._assembled(source, alive.varying) for source in node.inputs]
        vectors = [self._vector(self._alive[source], alive.constant) for source in node.inputs]

        def run(context: Context, values: list[Value]) -> Value:
            left, right = (a(context, [v]).x for a, v in zip(assemble, values, strict=True))
            constant = [
                vector(v, left) for v, vector in zip(values, vectors, strict=True) if vector is not None
            ]
            return Value(left + right, constant[0] + constant[1] if constant else None)

        return run

    def _channels(self, node: ir.Node) -> StageFunction:
        stage = node.stage
        assert isinstance(stage, ir.Channels)
        alive, source = self._alive[node], self._alive[node.inputs[0]]
        index = index_among(source.varying, alive.varying + stage.first, self._device)
        vector = self._vector(source, alive.constant + stage.first)

        def run(context: Context, values: list[Value]) -> Value:
            x = select(values[0].x, index, 1)
            return Value(x, None if vector is None else vector(values[0], x))

        return run

    def _opaque(self, node: ir.Node) -> StageFunction:
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
        if "inplace" in vars(module):  # what it would change may be read by others here
            vars(module)["inplace"] = False
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
        here = torch.isin(wanted, source.constant)
        index = index_among(source.constant, wanted[here], self._device)
        target = torch.nonzero(here).flatten().to(self._device)

        def vector(value: Value, like: Tensor) -> Tensor:
            if value.constant is None or len(target) == 0:
                return like.new_zeros(len(here))
            found = select(value.constant, index, 0)
            return (
                found if len(target) == len(here) else like.new_zeros(len(here)).index_copy(0, target, found)
            )

        return vector

    def _assembled(self, source: ir.Node, wanted: Tensor) -> StageFunction:
        """The given channels as one tensor [N, wanted, H, W]: computed, constant or zero."""
        alive = self._alive[source]
        if torch.equal(alive.varying, wanted):
            return lambda context, values: Value(values[0].x)
        here = torch.isin(wanted, alive.varying)
        index = index_among(alive.varying, wanted[here], self._device)
        target = torch.nonzero(here).flatten().to(self._device)
        constant = wanted[~here]
        vector = self._vector(alive, constant)
        rest = torch.nonzero(~here).flatten().to(self._device)
        n, _, h, w = source.shape

        def assemble(context: Context, values: list[Value]) -> Value:
            (value,) = values
            full = value.x.new_zeros(n, len(wanted), h, w).index_copy(1, target, select(value.x, index, 1))
            if vector is not None:
                planes = vector(value, value.x).view(1, -1, 1, 1).expand(n, -1, h, w)
                full = full.index_copy(1, rest, planes)
            return Value(full)

        return assemble


_BUILDERS: dict[type, Callable[[Builder, ir.Node], StageFunction]] = {
    ir.Input: Builder._input,
    ir.Constant: Builder._constant,
    ir.Parameter: Builder._parameter,
    ir.Conv: Builder._conv,
    ir.UpConv: Builder._up_conv,
    ir.Norm: Builder._norm,
    ir.GroupNorm: Builder._group_norm,
    ir.Act: Builder._act,
    ir.PReLU: Builder._prelu,
    ir.PixelShuffle: Builder._pixel_shuffle,
    ir.Pad: Builder._pad,
    ir.Box: Builder._box,
    ir.Pool: Builder._pool,
    ir.Upsample: Builder._upsample,
    ir.Crop: Builder._crop,
    ir.Channels: Builder._channels,
    ir.Cat: Builder._cat,
    ir.Add: Builder._add,
    ir.Opaque: Builder._opaque,
}


def _fill(arguments: Any, tensors: list[Tensor]) -> Any:
    if isinstance(arguments, ir.Slot):
        return tensors[arguments.index]
    if isinstance(arguments, tuple | list):
        return type(arguments)(_fill(a, tensors) for a in arguments)
    if isinstance(arguments, dict):
        return {key: _fill(a, tensors) for key, a in arguments.items()}
    return arguments
