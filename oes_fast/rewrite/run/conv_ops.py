"""How convolutions run, on the channels that are alive: by PyTorch, or on their kept weights alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast.ops.sparse_conv2d import SparsePattern
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.context import Context, StageFunction, Value
from oes_fast.rewrite.run.sparse_ops import BACKEND, sparse_convolve, sparse_pattern
from oes_fast.rewrite.weights import CompactWeights


class ConvBuilder:
    """Binds the convolutions of a graph to their channels and weights.

    Args:
        graph: to build.
        net: the traced network.
        alive: channels by node.
        weights: where blocks of weights are asked for.
        device: of the weights.
        input_only: nodes that depend on the input alone.
        chained: nodes that run as part of a chain.
        kernels: "cpu" for the C++ kernels where they are the better choice; with others, outside chains all
            is PyTorch's.

    Attributes:
        sparse: convolutions that run on their kept weights alone, once they are built.
    """

    def __init__(
        self,
        graph: ir.Graph,
        net: nn.Module,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        device: torch.device,
        *,
        input_only: set[ir.Node],
        chained: set[ir.Node],
        kernels: str,
    ) -> None:
        self._input_only = input_only
        self._chained = chained
        self._patterns: dict[ir.Node, SparsePattern | None] = {}
        self._kernels = kernels
        self._graph = graph
        self._net = net
        self._alive = alive
        self._weights = weights
        self._device = device

    def _conv(self, node: ir.Node) -> StageFunction:
        conv = node.stage
        assert isinstance(conv, ir.Conv)
        (source,) = node.inputs
        shuffle = self._shuffled(node)
        if shuffle is not None:
            return self._conv_transpose(node, shuffle)
        pattern = self._pattern(node)
        if pattern is not None:
            constant_input = source in self._input_only
            return self._convolution(
                node, conv, sparse_convolve(pattern, conv.stride[0], constant_input=constant_input)
            )
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

    def _conv_transpose(self, node: ir.Node, shuffle: ir.Node) -> StageFunction:
        """All of padding, convolution, pixel shuffle and crop, by PyTorch's transposed convolution.

        The value is that of the pixel shuffle, or of the crop behind it: they hand it on.
        """
        conv = node.stage
        assert isinstance(conv, ir.Conv)
        (source,) = node.inputs
        stride, result = conv.transposed, shuffle
        pixels = [0, 0]  # of the padding, at the resolution of the result, then of padding and crop
        if self._folds_into_conv(source):
            assert isinstance(source.stage, ir.Pad)
            pixels = [source.stage.amount[2], source.stage.amount[0]]
        # The last tap reaches back so far: what a transposed convolution has, and this one needs padding for.
        pixels = [(k - 1 - p) * stride for k, p in zip(conv.kernel, pixels, strict=True)]
        crop = self._cropped(shuffle)
        if crop is not None:
            assert isinstance(crop.stage, ir.Crop)
            result, pixels = crop, [pixels[0] + crop.stage.top, pixels[1] + crop.stage.left]
        assert min(pixels) >= 0
        size = result.shape[2:]
        inputs, outputs = self._alive[source], self._alive[shuffle]
        read = torch.cat([inputs.varying, inputs.constant]).sort().values
        assemble = self._assembled(source, read)
        weight = self._weights.request(conv.weight, read + conv.first, outputs.varying)
        bias = constant = None
        if conv.bias is not None:
            if self._weights.nonzeros(conv.bias, outputs.varying):
                bias = self._weights.request(conv.bias, outputs.varying)
            if len(outputs.constant):
                constant = self._weights.request(conv.bias, outputs.constant)

        def run(context: Context, values: list[Value]) -> Value:
            x, blocks = assemble(context, values).x, context.blocks
            constants = None if constant is None else blocks[constant]
            if len(outputs.varying) == 0:
                return Value(x.new_zeros(x.shape[0], 0, *size), constants)
            kernel = blocks[weight]
            ends = [
                (n - 1) * stride + k - before - wanted
                for n, k, before, wanted in zip(x.shape[2:], kernel.shape[2:], pixels, size, strict=True)
            ]
            # Cut the same from both sides. What lacks at the end is added there; what is more is cut off.
            both = [
                before if before - end < stride else max(end, 0)
                for before, end in zip(pixels, ends, strict=True)
            ]
            more = [max(0, cut - end) for cut, end in zip(both, ends, strict=True)]
            if max(more) >= stride:  # more than PyTorch adds
                x = F.pad(x, (0, more[1] // stride, 0, more[0] // stride))
                more = [m % stride for m in more]
            shift = None if bias is None else blocks[bias]
            y = F.conv_transpose2d(x, kernel, shift, (stride, stride), both, more)
            rows, columns = (before - cut for before, cut in zip(pixels, both, strict=True))
            if rows or columns or y.shape[2:] != size:
                y = y[..., rows : rows + size[0], columns : columns + size[1]]
            return Value(y, constants)

        return run

    def _shuffled(self, node: ir.Node) -> ir.Node | None:
        """The pixel shuffle that belongs to a transposed convolution, if PyTorch may do both in one.

        With stride 1 there is none: then it is the convolution itself.
        """
        conv = node.stage
        if not isinstance(conv, ir.Conv) or conv.transposed == 0 or node in self._chained:
            return None
        if conv.transposed == 1:
            return None if len(self._alive[node.inputs[0]].constant) else node
        reader = self._graph.sole_user(node)
        fits = reader is not None and isinstance(reader.stage, ir.PixelShuffle)
        return reader if fits and reader not in self._chained else None

    def _cropped(self, shuffle: ir.Node) -> ir.Node | None:
        """The crop that a transposed convolution does itself."""
        reader = self._graph.sole_user(shuffle)
        fits = reader is not None and isinstance(reader.stage, ir.Crop) and reader not in self._chained
        return reader if fits else None

    def _done_by_source(self, node: ir.Node) -> bool:
        """Whether a pixel shuffle or a crop is done by the transposed convolution before it."""
        shuffle = node.inputs[0] if isinstance(node.stage, ir.Crop) else node
        if node is not shuffle and self._cropped(shuffle) is not node:
            return False
        return any(self._shuffled(conv) is shuffle for conv in (shuffle, *shuffle.inputs))

    def _up_conv(self, node: ir.Node) -> StageFunction:
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
    ) -> StageFunction:
        (source,) = node.inputs
        inputs, outputs = self._alive[source], self._alive[node]
        read = inputs.varying + conv.first
        if self._pattern(node) is None:
            weight = self._weights.request(conv.weight, outputs.varying, read, transposed=conv.transposed)
        else:
            weight = self._weights.request_values(conv.weight, outputs.varying, read)
        shift_of = self._shift(conv, inputs, outputs.varying)
        constant_of = self._shift(conv, inputs, outputs.constant)
        defer = self._normalised(node)
        empty = len(outputs.varying) == 0
        n, _, h, w = node.shape

        def run(context: Context, values: list[Value]) -> Value:
            (value,) = values
            constant = None if constant_of is None else constant_of(context, value.constant)
            if empty:
                return Value(value.x.new_zeros(n, 0, h, w), constant)
            kernel = context.blocks[weight]
            if conv.scale != 1.0:
                kernel = kernel * conv.scale
            shift = None if shift_of is None else shift_of(context, value.constant)
            if defer:
                return Value(convolve(value.x, kernel, None), constant, shift)
            return Value(convolve(value.x, kernel, shift), constant)

        return run

    def _assembled(self, source: ir.Node, wanted: Tensor) -> StageFunction:
        """The given channels as one tensor [N, wanted, H, W]: computed, constant or zero."""
        raise NotImplementedError

    def _shift(
        self, conv: ir.Conv, inputs: Alive, outputs: Tensor
    ) -> Callable[[Context, Tensor | None], Tensor] | None:
        """Bias plus what constant input channels add, for the given outputs; None where it is nothing."""
        if len(outputs) == 0:
            return None
        constants, transposed = inputs.constant + conv.first, conv.transposed
        block = bias = None
        if len(constants) and self._weights.nonzeros(conv.weight, outputs, constants, transposed=transposed):
            block = self._weights.request(conv.weight, outputs, constants, transposed=transposed)
        biased = conv.bias_of(outputs)
        if conv.bias is not None and self._weights.nonzeros(conv.bias, biased):
            bias = self._weights.request(conv.bias, biased)
        if block is None and bias is None:
            return None

        def shift_of(context: Context, constant: Tensor | None) -> Tensor:
            shift = None if bias is None else context.blocks[bias]
            if block is not None:
                assert constant is not None
                added = (context.blocks[block].flatten(2).sum(2) * conv.scale) @ constant
                shift = added if shift is None else shift + added
            assert shift is not None
            return shift

        return shift_of

    def _pattern(self, node: ir.Node) -> SparsePattern | None:
        """The pattern of a convolution that runs on its kept weights alone, else None."""
        if self._kernels != BACKEND or not isinstance(node.stage, ir.Conv) or node.stage.transposed:
            return None
        if node not in self._patterns:
            conv, inputs = node.stage, self._alive[node.inputs[0]].varying + node.stage.first
            kept = self._weights.kept(conv.weight, self._alive[node].varying, inputs)
            self._patterns[node] = sparse_pattern(conv, kept)
        return self._patterns[node]

    @property
    def sparse(self) -> set[ir.Node]:
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
        reader = self._graph.sole_user(node)
        if reader is not None and self._shuffled(reader) is not None:
            return True
        if left != right or top != bottom or reader is None or reader in self._chained:
            return False
        if isinstance(reader.stage, ir.UpConv):
            crop, factor = reader.stage.crop, reader.stage.factor
            return crop[0] >= top * factor and crop[1] >= left * factor
        return isinstance(reader.stage, ir.Conv) and self._pattern(reader) is None


def spread(kernel: Tensor, factor: int) -> Tensor:
    """Full convolution of [O, I, kH, kW] with factor x factor ones: [O, I, kH + f - 1, kW + f - 1]."""
    last = factor - 1
    inside = min(last, factor // 2)  # zeros that the sum adds around the kernel by itself
    if last > inside:
        kernel = F.pad(kernel, [last - inside] * 4)
    return F.avg_pool2d(kernel, factor, 1, inside, divisor_override=1)
