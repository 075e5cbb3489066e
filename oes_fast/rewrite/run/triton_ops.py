"""The stages that run on Triton kernels; the others run as in :mod:`oes_fast.rewrite.run.torch_ops`.

Convolutions of few kept weights run on these alone, the ones after an up-sampling at the low resolution with
few weights or all, a batch norm takes its activation, a reflected padding after it and its running statistics
along, and the last layer takes the loss along where one without weights is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast.ops.batch_norm_act import batch_norm_act_with_statistics
from oes_fast.ops.output_head import MOST_OUTPUTS, output_head
from oes_fast.ops.running_stats import LayerStats
from oes_fast.ops.sparse_conv2d import SparsePattern
from oes_fast.ops.sparse_up_conv2d import sparse_up_conv2d
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.context import Context, StageFunction, Value, activate, index_among, select
from oes_fast.rewrite.run.norm_ops import NormFunction
from oes_fast.rewrite.run.sparse_ops import sparse_convolve, sparse_pattern
from oes_fast.rewrite.run.torch_ops import Builder

BACKEND = "triton"
# Share of kept weights among live channels up to which the sparse kernels are taken: where, by the loads a
# device can make, they meet the dense ones. The share itself has not been measured; a fixed number, so that a
# resumed run takes the same kernels.
MOST_KEPT = 0.5

# Activations that the batch norm takes along: name in the operation, and what stands for a missing slope.
_ACTIVATIONS = {
    "identity": "none",
    "leaky_relu": "leaky_relu",
    "relu": "leaky_relu",
    "elu": "elu",
    "silu": "silu",
}


class TritonBuilder(Builder):
    """:class:`Builder` with kernels where there are some.

    Attributes:
        kernel_names: what runs a stage and why, by node, where that is a kernel.
    """

    def build(self, node: ir.Node) -> StageFunction:
        """The function that runs ``node``."""
        build = _BUILDERS.get(type(node.stage))
        run = None if build is None else build(self, node)
        if run is not None and type(node.stage) in _NAMES:
            self.kernel_names[node] = _NAMES[type(node.stage)]
        if self._is_head(node) or (run is not None and isinstance(node.stage, ir.Pad)):
            self.kernel_names[node] = "none: a stage beside it does it"
        return super().build(node) if run is None else run

    @functools.cached_property
    def kernel_names(self) -> dict[ir.Node, str]:
        """See the class."""
        return {}

    # ---- convolutions

    def _pattern(self, node: ir.Node) -> SparsePattern | None:
        if node not in self._patterns:
            self._patterns[node] = self._new_pattern(node)
        return self._patterns[node]

    def _new_pattern(self, node: ir.Node) -> SparsePattern | None:
        stage = node.stage
        conv = stage.conv if isinstance(stage, ir.UpConv) else stage
        if not isinstance(conv, ir.Conv) or conv.transposed or self._is_head(node):
            return None
        if isinstance(stage, ir.UpConv) and not self._is_published_up_conv(node):
            return None
        inputs = self._alive[node.inputs[0]].varying + conv.first
        kept = self._weights.kept(conv.weight, self._alive[node].varying, inputs)
        return sparse_pattern(conv, kept, most_kept=MOST_KEPT)

    def _is_published_up_conv(self, node: ir.Node) -> bool:
        """A 3 x 3 convolution of an image twice as large with one reflected pixel around it."""
        up, (source,) = node.stage, node.inputs
        assert isinstance(up, ir.UpConv)
        pad = source.stage
        return (
            (up.factor, up.crop, up.conv.kernel) == (2, (3, 3), (3, 3))
            and isinstance(pad, ir.Pad)
            and (pad.mode, pad.amount) == ("replicate", (1, 1, 1, 1))
            and self._graph.sole_user(source) is node
        )

    def _sparse_conv(self, node: ir.Node) -> StageFunction | None:
        conv, pattern = node.stage, self._pattern(node)
        assert isinstance(conv, ir.Conv)
        if self._is_head(node):  # the stage after it does all
            return lambda context, values: values[0]
        if pattern is None:
            return None
        constant_input = node.inputs[0] in self._input_only
        convolve = sparse_convolve(pattern, conv.stride[0], constant_input=constant_input, backend=BACKEND)
        return self._convolution(node, conv, convolve)

    def _sparse_up_conv(self, node: ir.Node) -> StageFunction | None:
        up, pattern = node.stage, self._pattern(node)
        assert isinstance(up, ir.UpConv)
        if not self._takes_up_conv(node):
            return None
        shape = len(self._alive[node].varying), len(self._alive[node.inputs[0]].varying), 3, 3
        taken = SparsePattern.of(torch.ones(shape, dtype=torch.bool)) if pattern is None else pattern

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            # Of all weights or of the kept ones, in either case in the order of the pattern.
            y = sparse_up_conv2d(x, weight.flatten(), taken, backend=BACKEND)
            return y if bias is None else y + bias.view(-1, 1, 1)

        return self._convolution(node, up.conv, convolve)

    def _takes_up_conv(self, node: ir.Node) -> bool:
        """Whether the kernels take a convolution after an up-sampling: the published form, of any density."""
        alive = self._alive[node].varying, self._alive[node.inputs[0]].varying
        return self._is_published_up_conv(node) and all(len(channels) > 0 for channels in alive)

    def _taken_pad(self, node: ir.Node) -> StageFunction | None:
        """Padding that a kernel beside it does: the convolution after it, or the batch norm before it."""
        reader = self._graph.sole_user(node)
        of_conv = reader is not None and isinstance(reader.stage, ir.UpConv) and self._takes_up_conv(reader)
        if of_conv or self._padding_of_norm(node.inputs[0]) is node:
            return self._each(node, lambda _, x: x, lambda _, k: k)
        return None

    # ---- channel by channel

    def _padding_of_norm(self, node: ir.Node) -> ir.Node | None:
        """The reflected padding that a batch norm takes along, if there is one."""
        reader = self._graph.sole_user(node)
        if not isinstance(node.stage, ir.Norm) or reader is None or not isinstance(reader.stage, ir.Pad):
            return None
        amount = set(reader.stage.amount)
        fits = reader.stage.mode == "reflect" and len(amount) == 1 and max(amount) < min(node.shape[2:])
        return reader if fits and self._is_fused(node) else None

    def _is_fused(self, node: ir.Node) -> bool:
        """A batch norm that the kernel takes: of channels there are, with statistics there are."""
        n, _, rows, columns = node.shape
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        return _operation(norm) is not None and len(self._alive[node].varying) > 0 and n * rows * columns > 1

    def _fused_norm(self, node: ir.Node) -> StageFunction | None:
        norm = node.stage
        assert isinstance(norm, ir.Norm)
        operation = _operation(norm)
        alive, source = self._alive[node], self._alive[node.inputs[0]]
        if operation is None or not self._is_fused(node):
            return None
        padding = self._padding_of_norm(node)
        pad = padding.stage.amount[0] if padding is not None and isinstance(padding.stage, ir.Pad) else 0
        run = FusedNormFunction(norm, source, alive, self._weights, self._device)
        index, act = index_among(source.varying, alive.varying, self._device), norm.act

        def result(context: Context, values: list[Value]) -> Value:
            (value,) = values
            x, shift = select(value.x, index, 1), value.shift
            shift = None if shift is None else select(shift, index, 0)
            y, constant = run.fused(x, shift, value.constant, context, operation, pad)
            return Value(y, constant if act is None or constant is None else activate(constant, act))

        return result

    def _plain_box(self, node: ir.Node) -> StageFunction:
        box = node.stage
        assert isinstance(box, ir.Box)
        # One pass in either direction, where sums of slices make many.
        if self._averages(node):
            return self._each(node, lambda _, x: F.avg_pool2d(x, box.size, 1), lambda _, k: k)
        return self._each(
            node,
            lambda _, x: F.avg_pool2d(x, box.size, 1, divisor_override=1),
            lambda _, k: k * box.size**2,
        )

    def _averages(self, node: ir.Node) -> bool:
        """A box that divides by its size, so that the convolution after it need not scale its weights."""
        box, reader = node.stage, self._graph.sole_user(node)
        return (
            isinstance(box, ir.Box)
            and reader is not None
            and isinstance(reader.stage, ir.Conv)
            and reader.stage.scale * box.size**2 == 1.0
        )

    def _convolution(
        self, node: ir.Node, conv: ir.Conv, convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    ) -> StageFunction:
        if self._averages(node.inputs[0]):
            conv = dataclasses.replace(conv, scale=1.0)
        return super()._convolution(node, conv, convolve)

    # ---- the last layer

    def _is_head(self, node: ir.Node) -> bool:
        """A 1 x 1 convolution that a sigmoid, the output, alone reads, all of whose channels vary."""
        conv, output = node.stage, self._graph.output
        return (
            isinstance(conv, ir.Conv)
            and conv.transposed == 0
            and conv.kernel == (1, 1)
            and conv.stride == (1, 1)
            and self._graph.sole_user(node) is output
            and output.stage == ir.Act("sigmoid")
            and node.shape[1] <= MOST_OUTPUTS
            and len(self._alive[output].varying) == output.shape[1]
            and len(self._alive[node].varying) == node.shape[1]
            and len(self._alive[node.inputs[0]].varying) > 0
        )

    def _head(self, node: ir.Node) -> StageFunction | None:
        conv_node = node.inputs[0]
        if node is not self._graph.output or not self._is_head(conv_node):
            return None
        conv = conv_node.stage
        assert isinstance(conv, ir.Conv)
        inputs, outputs = self._alive[conv_node.inputs[0]], self._alive[conv_node]
        weight = self._weights.request(conv.weight, outputs.varying, inputs.varying + conv.first)
        shift_of = self._shift(conv, inputs, outputs.varying)

        def run(context: Context, values: list[Value]) -> Value:
            (value,) = values
            kernel = context.blocks[weight]
            kernel = kernel if conv.scale == 1.0 else kernel * conv.scale
            bias = None if shift_of is None else shift_of(context, value.constant)
            fused_loss = context.fused_loss
            taken = fused_loss is not None and fused_loss.weight is None
            if fused_loss is None or not taken or fused_loss.target.shape != node.shape:
                return Value(F.conv2d(value.x, kernel, bias).sigmoid())
            output, fused_loss.loss = output_head(value.x, kernel, bias, fused_loss.target, backend=BACKEND)
            return Value(output)

        return run


class FusedNormFunction(NormFunction):
    """:class:`NormFunction` on the kernels."""

    def fused(
        self,
        x: Tensor,
        shift: Tensor | None,
        constants: Tensor | None,
        context: Context,
        operation: tuple[str, float],
        pad: int,
    ) -> tuple[Tensor, Tensor | None]:
        """(activated, padded channels [N, varying, H + 2 pad, W + 2 pad], constants before activation)."""
        norm, blocks, buffers = self._norm, context.blocks, context.buffers
        gamma = None if self._gamma is None else blocks[self._gamma]
        beta = None if self._beta is None else blocks[self._beta]
        activation, slope = operation
        given = (None, None) if norm.of_batch else self._running(buffers)
        y, mean, var = batch_norm_act_with_statistics(
            x, gamma, beta, *given, eps=norm.eps, activation=activation, slope=slope, pad=pad, backend=BACKEND
        )
        if not norm.of_batch:
            return y, self._normalised_constants(constants, blocks, buffers)
        if context.update_stats and norm.tracks:
            self._move(x, mean, var, shift, constants, context)
        return y, self._constants_in_training(x, blocks)

    def _move(
        self,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        shift: Tensor | None,
        constants: Tensor | None,
        context: Context,
    ) -> None:
        norm, buffers = self._norm, context.buffers
        assert norm.mean is not None
        assert norm.var is not None
        momentum = self._momentum(buffers, context.counted)
        self._track_constants(constants, buffers, momentum)
        pixels = x.numel() // x.shape[1] * norm.copies
        # Moved after the pass, together with those of other layers: nothing in it reads them.
        context.moved.append(
            LayerStats(
                buffers[norm.mean],
                buffers[norm.var],
                mean,
                var,
                self._varying,
                None if shift is None else shift.detach().contiguous(),
                momentum,
                pixels / (pixels - 1),
            )
        )


def _operation(norm: ir.Norm) -> tuple[str, float] | None:
    """(activation, slope) of the operation that does a batch norm with its activation; None for none."""
    act = norm.act or ir.Act("identity")
    name = _ACTIVATIONS.get(act.kind)
    return None if name is None else (name, act.value if act.kind in ("leaky_relu", "elu") else 0.0)


_NAMES: dict[type, str] = {
    ir.Conv: f"Triton sparse_conv2d: density up to {100 * MOST_KEPT:.0f} %",
    ir.UpConv: "Triton sparse_up_conv2d",
    ir.Norm: "Triton batch_norm_act",
    ir.Act: "Triton output_head, with the convolution before it",
}
_BUILDERS: dict[type, Callable[[TritonBuilder, ir.Node], StageFunction | None]] = {
    ir.Conv: TritonBuilder._sparse_conv,
    ir.UpConv: TritonBuilder._sparse_up_conv,
    ir.Norm: TritonBuilder._fused_norm,
    ir.Box: TritonBuilder._plain_box,
    ir.Pad: TritonBuilder._taken_pad,
    ir.Act: TritonBuilder._head,
}
