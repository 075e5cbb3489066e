"""The stages that a layer becomes, whether it is called as a module or as a function."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.fx
from torch import Tensor, nn

from oes_fast.rewrite import ir

PAD_MODES = {
    "constant": "zeros",
    "zeros": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


class AsItIsError(Exception):
    """There is no stage for it: the call is made as it was recorded."""


class Stages:
    """Makes stages; each method gives the node whose result is that of the call ``node``.

    Args:
        net: traced network.

    Raises:
        AsItIsError: by every method, where the vocabulary has no such thing.
    """

    def __init__(self, net: nn.Module) -> None:
        self.graph = ir.Graph()
        self._nodes: dict[torch.fx.Node, ir.Node] = {}
        # The name under which parameters() knows a parameter, also where modules share one.
        self._parameters = {id(p): name for name, p in net.named_parameters()}
        self._names = self._parameters | {id(b): name for name, b in net.named_buffers()}
        self._reads: Counter[str] = Counter()  # how many calls are given a buffer, by its name

    # ---- what calls are given

    def image(self, value: Any) -> ir.Node:
        """The node of an argument that is an image."""
        node = self._nodes[value] if isinstance(value, torch.fx.Node) else None
        if node is None or len(node.shape) != 4:
            raise AsItIsError
        return node

    def parameter(self, value: Any) -> str | None:
        """The name of a parameter that a layer holds or a function is given; None for none."""
        if value is None:
            return None
        if isinstance(value, torch.fx.Node):
            stage = self._nodes[value].stage
            name = stage.name if isinstance(stage, ir.Parameter) else None
            known = name in self._parameters.values()
        else:
            name = self._parameters.get(id(value))
            known = name is not None
        if not known:
            raise AsItIsError
        return name

    def weight(self, value: Any) -> str:
        """:meth:`parameter` that has to be there."""
        name = self.parameter(value)
        if name is None:
            raise AsItIsError
        return name

    def buffer(self, value: Any) -> str | None:
        """The name of a buffer that a layer holds, or that a function alone is given; None for none."""
        if value is None:
            return None
        if isinstance(value, torch.fx.Node):
            stage = self._nodes[value].stage
            name = stage.name if isinstance(stage, ir.Parameter) and len(value.users) == 1 else None
        else:
            name = self._names.get(id(value))
        if name is None or name in self._parameters.values() or self._reads[name] > 1:
            raise AsItIsError  # one stage alone may hold running statistics
        return name

    def shape_of(self, value: Any) -> tuple[int, ...]:
        """Of a parameter, by layer or by function."""
        tensor = value.meta["value"] if isinstance(value, torch.fx.Node) else value
        return tuple(tensor.shape)

    def add(self, node: torch.fx.Node, stage: ir.Stage, inputs: list[ir.Node]) -> ir.Node:
        """A stage whose result is that of the call."""
        value = node.meta["value"]
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        return self.graph.add(stage, inputs, shape, name_of(node))

    # ---- convolutions

    def conv(
        self,
        node: torch.fx.Node,
        source: ir.Node,
        weight: Any,
        bias: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        mode: str = "zeros",
    ) -> ir.Node:
        """Pad and convolution."""
        outputs, inputs, *kernel = self.shape_of(weight)
        if groups != 1 or len(kernel) != 2:
            raise AsItIsError
        stage = ir.Conv(
            weight=self.weight(weight),
            bias=self.parameter(bias),
            kernel=(kernel[0], kernel[1]),
            stride=pair(stride),
            dilation=pair(dilation),
            channels=(inputs, outputs),
        )
        if padding == "same":
            totals = [d * (k - 1) for d, k in zip(stage.dilation, kernel, strict=True)]
            top, left = (total // 2 for total in totals)
            amount = (left, totals[1] - left, top, totals[0] - top)
        else:
            rows, columns = pair(0 if padding == "valid" else padding)
            amount = (columns, columns, rows, rows)
        if any(amount):
            source = self._padded(node, source, PAD_MODES[mode], amount)
        return self.add(node, stage, [source])

    def conv_transpose(
        self,
        node: torch.fx.Node,
        source: ir.Node,
        weight: Any,
        bias: Any,
        stride: Any = 1,
        padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
    ) -> ir.Node:
        """Pad, convolution at the resolution of the input, pixel shuffle and crop."""
        n, inputs, *size = source.shape
        _, outputs, *kernels = self.shape_of(weight)
        strides, result = pair(stride), tuple(node.meta["value"].shape)
        if groups != 1 or pair(dilation) != (1, 1) or strides[0] != strides[1] or len(kernels) != 2:
            raise AsItIsError
        factor = strides[0]
        taps, before, after, first, pixels = [], [], [], [], []
        for length, kernel, cut, wanted in zip(size, kernels, pair(padding), result[2:], strict=True):
            last = -(-kernel // factor) - 1  # tap: the first of the convolution's kernel
            skipped = min(cut // factor, last)  # groups of pixels that the padding cuts off
            groups = (cut + wanted - 1) // factor + 1 - skipped
            taps.append(last + 1)
            before.append(last - skipped)
            after.append(max(groups + skipped - length, 0))
            first.append(cut - skipped * factor)
            pixels.append(length + before[-1] + after[-1] - last)
        conv = ir.Conv(
            weight=self.weight(weight),
            bias=self.parameter(bias),
            kernel=(taps[0], taps[1]),
            stride=(1, 1),
            dilation=(1, 1),
            channels=(inputs, outputs * factor**2),
            transposed=factor,
        )
        name = name_of(node)
        if any(before) or any(after):
            source = self._padded(node, source, "zeros", (before[1], after[1], before[0], after[0]))
        shape: tuple[int, ...] = (n, outputs * factor**2, *pixels)
        done = self.graph.add(conv, [source], shape, f"{name}.conv")
        if factor > 1:
            shape = (n, outputs, *(p * factor for p in pixels))
            done = self.graph.add(ir.PixelShuffle(factor), [done], shape, f"{name}.shuffle")
        if any(first) or shape != result:
            crop = ir.Crop(first[0], first[1], result[2], result[3])
            done = self.graph.add(crop, [done], result, name)
        done.name = name
        return done

    # ---- norms

    def batch_norm(
        self,
        node: torch.fx.Node,
        source: ir.Node,
        weight: Any,
        bias: Any,
        mean: Any,
        var: Any,
        count: Any,
        eps: float,
        momentum: float | None,
        *,
        training: bool,
    ) -> ir.Node:
        """Batch norm."""
        if (mean is None) != (var is None) or (not training and mean is None and node.op != "call_module"):
            raise AsItIsError
        stage = ir.Norm(
            module=name_of(node),
            weight=self.parameter(weight),
            bias=self.parameter(bias),
            mean=self.buffer(mean),
            var=self.buffer(var),
            count=self.buffer(count),
            eps=eps,
            momentum=momentum,
            channels=source.shape[1],
            training=training,
        )
        return self.add(node, stage, [source])

    def group_norm(
        self, node: torch.fx.Node, source: ir.Node, groups: int, weight: Any, bias: Any, eps: float
    ) -> ir.Node:
        """Group norm."""
        channels = source.shape[1]
        stage = ir.GroupNorm(self.parameter(weight), self.parameter(bias), groups, eps, channels)
        return self.add(node, stage, [source])

    def instance_norm(
        self, node: torch.fx.Node, source: ir.Node, weight: Any, bias: Any, eps: float
    ) -> ir.Node:
        """Instance norm without running statistics: a batch norm of one image, a group norm of several."""
        if source.shape[0] != 1:
            return self.group_norm(node, source, source.shape[1], weight, bias, eps)
        weights = self.parameter(weight), self.parameter(bias)
        stage = ir.Norm(name_of(node), *weights, None, None, None, eps, None, source.shape[1])
        return self.add(node, stage, [source])

    # ---- channel by channel

    def act(self, node: torch.fx.Node, source: ir.Node, kind: str, value: float = 0.0) -> ir.Node:
        """An elementwise activation."""
        return self.add(node, ir.Act(kind, float(value)), [source])

    def prelu(self, node: torch.fx.Node, source: ir.Node, weight: Any) -> ir.Node:
        """Leaky ReLU whose slope is a parameter."""
        return self.add(node, ir.PReLU(self.weight(weight)), [source])

    def pad(self, node: torch.fx.Node, source: ir.Node, mode: str, amount: tuple[int, ...]) -> ir.Node:
        """Padding by (left, right, top, bottom); cropping where a number is negative."""
        left, right, top, bottom = (int(a) for a in (*amount, *(0,) * (4 - len(amount))))
        if mode not in PAD_MODES:
            raise AsItIsError
        if min(left, right, top, bottom) < 0:
            if mode not in ("constant", "zeros"):
                raise AsItIsError
            n, c, h, w = source.shape
            rows, columns = h + min(top, 0) + min(bottom, 0), w + min(left, 0) + min(right, 0)
            crop = ir.Crop(-min(top, 0), -min(left, 0), rows, columns)
            source = self.graph.add(crop, [source], (n, c, rows, columns), f"{name_of(node)}.crop")
            left, right, top, bottom = (max(a, 0) for a in (left, right, top, bottom))
        if not any((left, right, top, bottom)):
            return source
        return self.add(node, ir.Pad(PAD_MODES[mode], (left, right, top, bottom)), [source])

    def _padded(
        self, node: torch.fx.Node, source: ir.Node, mode: str, amount: tuple[int, int, int, int]
    ) -> ir.Node:
        n, c, h, w = source.shape
        left, right, top, bottom = amount
        shape = (n, c, h + top + bottom, w + left + right)
        return self.graph.add(ir.Pad(mode, amount), [source], shape, f"{name_of(node)}.pad")

    def pool(
        self, node: torch.fx.Node, source: ir.Node, kind: str, kernel: Any, stride: Any, ceil: bool
    ) -> ir.Node:
        """Average or maximum over windows."""
        size = pair(kernel)
        steps = size if stride is None or stride == [] else pair(stride)
        return self.add(node, ir.Pool(kind, size, steps, bool(ceil)), [source])

    def upsample(
        self,
        node: torch.fx.Node,
        source: ir.Node,
        mode: str,
        scales: Any,
        align_corners: bool | None,
        recomputed: bool | None,
    ) -> ir.Node:
        """Nearest or bilinear interpolation, to a size or, with ``scales``, by factors."""
        if mode not in ("nearest", "bilinear"):
            raise AsItIsError
        size, before = tuple(node.meta["value"].shape[-2:]), source.shape[-2:]
        if scales is not None and not recomputed:  # given as a number that need not be the ratio of the sizes
            given = scales if isinstance(scales, tuple | list) else (scales, scales)
            for scale, large, small in zip(given, size, before, strict=True):
                if large != small * scale or (large % small and small % large):
                    raise AsItIsError
        factor = size[0] // before[0]
        whole = size == (factor * before[0], factor * before[1])
        stage = ir.Upsample(mode, (size[0], size[1]), factor if whole else 0, align_corners)
        return self.add(node, stage, [source])

    def pixel_shuffle(self, node: torch.fx.Node, source: ir.Node, factor: int) -> ir.Node:
        """Channels to pixels."""
        return source if factor == 1 else self.add(node, ir.PixelShuffle(factor), [source])

    # ---- several inputs, parts

    def cat(self, node: torch.fx.Node, parts: Any, dim: Any) -> ir.Node:
        """Concatenation of channels."""
        if dim not in (1, -3) or not isinstance(parts, list | tuple):
            raise AsItIsError
        return self.add(node, ir.Cat(), [self.image(part) for part in parts])

    def sum(self, node: torch.fx.Node, one: Any, other: Any) -> ir.Node:
        """Sum of two images of one shape and type."""
        left, right = self.image(one), self.image(other)
        same_type = one.meta["value"].dtype == other.meta["value"].dtype
        if left.shape != right.shape or not same_type:
            raise AsItIsError
        return self.add(node, ir.Add(), [left, right])

    def part(self, node: torch.fx.Node, source: ir.Node, index: Any) -> ir.Node:
        """A range of channels, of rows or of columns, or several of these."""
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (5 - len(index)) + index[at + 1 :]
        index = index + (slice(None),) * (4 - len(index))
        if len(index) != 4 or not all(isinstance(i, slice) for i in index):
            raise AsItIsError
        ranges = [range(*i.indices(n)) for i, n in zip(index, source.shape, strict=True)]
        if any(r.step != 1 or not len(r) for r in ranges) or len(ranges[0]) != source.shape[0]:
            raise AsItIsError
        _, channels, rows, columns = ranges
        if len(channels) != source.shape[1]:
            source = self.channels(node, source, channels.start, len(channels))
        if (len(rows), len(columns)) == source.shape[2:]:
            return source
        crop = ir.Crop(rows.start, columns.start, len(rows), len(columns))
        return self.add(node, crop, [source])

    def channels(self, node: torch.fx.Node, source: ir.Node, first: int, count: int) -> ir.Node:
        """Some channels."""
        n, _, h, w = source.shape
        return self.graph.add(ir.Channels(first), [source], (n, count, h, w), name_of(node))


def name_of(node: torch.fx.Node) -> str:
    """The module's name in the network, whose trace's root holds it as ``net``; else the call's own."""
    if node.op != "call_module":
        return node.name
    return str(node.target).removeprefix("net").removeprefix(".")


def pair(value: Any) -> tuple[int, int]:
    """A number for both sides, or one for each."""
    if isinstance(value, int):
        return value, value
    if len(value) not in (1, 2):
        raise AsItIsError
    return int(value[0]), int(value[-1])
