"""From the calls that torch.fx recorded to stages."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from oes_fast.errors import OESError
from oes_fast.rewrite import ir


class TraceError(OESError):
    """The network's code cannot be traced; the pipelines run it as it is where the backend is "auto"."""


class Converter:
    """Turns the calls that torch.fx recorded into stages."""

    def __init__(self, net: nn.Module, root: nn.Module, fx_graph: torch.fx.Graph) -> None:
        self._root = root
        called = [root.get_submodule(str(n.target)) for n in fx_graph.nodes if n.op == "call_module"]
        self._calls = Counter(id(module) for module in called)
        self._fx_graph = fx_graph
        self._graph = ir.Graph()
        self._nodes: dict[torch.fx.Node, ir.Node] = {}
        # The name under which parameters() knows a parameter, also where modules share one.
        self._names = {id(p): name for name, p in [*net.named_parameters(), *net.named_buffers()]}

    def convert(self) -> ir.Graph:
        """The graph."""
        output: ir.Node | None = None
        for node in self._fx_graph.nodes:
            if node.op == "output":
                result = node.args[0]
                if not isinstance(result, torch.fx.Node):
                    raise TraceError("expected a network that returns one tensor")
                output = self._nodes[result]
            else:
                self._nodes[node] = self._convert(node)
        if output is None:
            raise TraceError("expected a network that returns one tensor")
        if len(output.shape) != 4:
            raise TraceError(f"expected a network that returns [N, C, H, W], got shape {output.shape}")
        if output is not self._graph.output:
            self._graph.add(ir.Act("identity"), [output], output.shape, "output")
        self._graph.sweep()
        return self._graph

    def _convert(self, node: torch.fx.Node) -> ir.Node:
        self._refuse_in_place(node)
        if node.op == "placeholder":
            return self._add(node, ir.Input(), [])
        if node.op == "get_attr":
            tensor = attribute(self._root, str(node.target))
            known = self._names.get(id(tensor))
            return self._add(node, ir.Constant(tensor) if known is None else ir.Parameter(known), [])
        if node.op == "call_module":
            module = self._root.get_submodule(str(node.target))
            convert = _MODULES.get(type(module))
            if self._calls[id(module)] > 1 and isinstance(module, nn.BatchNorm2d):
                convert = None  # its running statistics belong to several stages
            if convert is not None and len(node.args) == 1 and not node.kwargs and _plain(module):
                done = convert(self, node, module)
                if done is not None:
                    return done
        if node.op == "call_function" and node.target is operator.getitem:
            crop = self._crop(node)
            if crop is not None:
                return crop
        if node.op == "call_function" and node.target is torch.cat:
            done = self._cat(node)
            if done is not None:
                return done
        if (
            node.op == "call_function"
            and node.target in (operator.add, torch.add)
            and self._is_plain_sum(node)
        ):
            return self._add(node, ir.Add(), [self._nodes[a] for a in node.args])  # type: ignore[index]
        return self._opaque(node)

    def _add(self, node: torch.fx.Node, stage: ir.Stage, inputs: list[ir.Node]) -> ir.Node:
        value = node.meta["value"]
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        return self._graph.add(stage, inputs, shape, _path(node) if node.op == "call_module" else node.name)

    def _source(self, node: torch.fx.Node) -> ir.Node:
        return self._nodes[node.args[0]]  # type: ignore[index]

    def _refuse_in_place(self, node: torch.fx.Node) -> None:
        name = getattr(node.target, "__name__", str(node.target))
        called = node.op in ("call_method", "call_function")
        changes = called and name.endswith("_") and not name.endswith("__")
        if node.op == "call_function":
            changes = changes or bool(_arguments(node).get("inplace")) or node.kwargs.get("out") is not None
            changes = changes or name in ("setitem", "__setitem__")
        if isinstance(node.target, torch._ops.OpOverload):
            changes = node.target._schema.is_mutable
        if node.op == "call_module" and getattr(self._root.get_submodule(str(node.target)), "inplace", False):
            # Harmless where the result of a layer is overwritten that nobody else has.
            source = node.args[0] if node.args else None
            fresh = isinstance(source, torch.fx.Node) and len(source.users) == 1 and self._is_fresh(source)
            changes = not fresh or not node.users
        if changes:
            of_layer = node.op == "call_module"
            which = str(node.target).removeprefix("net.") if of_layer else node.name
            raise TraceError(f"{which} changes a tensor in place")

    def _is_fresh(self, node: torch.fx.Node) -> bool:
        """Whether a node's result is a tensor of its own, not another name or a view of one."""
        if node.op == "call_module":
            return isinstance(self._root.get_submodule(str(node.target)), _FRESH_LAYERS)
        return node.op == "call_function" and node.target in (torch.cat, torch.add, operator.add)

    def _opaque(self, node: torch.fx.Node) -> ir.Node:
        inputs: list[ir.Node] = []

        def slot(argument: torch.fx.Node) -> Any:
            inputs.append(self._nodes[argument])
            return ir.Slot(len(inputs) - 1)

        args = torch.fx.map_arg(node.args, slot)
        kwargs = torch.fx.map_arg(node.kwargs, slot)
        target = _path(node) if node.op == "call_module" else node.target
        return self._add(node, ir.Opaque(node.op, target, args, kwargs), inputs)

    def _crop(self, node: torch.fx.Node) -> ir.Node | None:
        source = node.args[0]
        index: Any = node.args[1]
        if not isinstance(source, torch.fx.Node) or not isinstance(index, tuple):
            return None
        shape = self._nodes[source].shape
        index = tuple(index)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index = index[:at] + (slice(None),) * (len(shape) + 1 - len(index)) + index[at + 1 :]
        if len(shape) != 4 or len(index) != 4 or not all(isinstance(i, slice) for i in index):
            return None
        ranges = [range(*i.indices(n)) for i, n in zip(index, shape, strict=True) if isinstance(i, slice)]
        if any(r.step != 1 for r in ranges) or len(ranges[0]) != shape[0] or len(ranges[1]) != shape[1]:
            return None
        rows, columns = ranges[2], ranges[3]
        return self._add(
            node, ir.Crop(rows.start, columns.start, len(rows), len(columns)), [self._nodes[source]]
        )

    def _cat(self, node: torch.fx.Node) -> ir.Node | None:
        parts = node.args[0]
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if dim not in (1, -3) or not isinstance(parts, list | tuple):
            return None
        inputs = [self._nodes[p] for p in parts if isinstance(p, torch.fx.Node)]
        if len(inputs) != len(parts) or any(len(i.shape) != 4 for i in inputs):
            return None
        return self._add(node, ir.Cat(), inputs)

    def _is_plain_sum(self, node: torch.fx.Node) -> bool:
        nodes = [a for a in node.args if isinstance(a, torch.fx.Node)]
        return (
            len(nodes) == 2
            and not node.kwargs
            and all(len(self._nodes[a].shape) == 4 for a in nodes)
            and self._nodes[nodes[0]].shape == self._nodes[nodes[1]].shape
        )

    def name_of(self, parameter: Tensor | None) -> str | None:
        """The name in parameters() or buffers() of a module's tensor."""
        return None if parameter is None else self._names[id(parameter)]

    def conv(self, node: torch.fx.Node, module: nn.Conv2d) -> ir.Node | None:
        """Pad and convolution; None where channels are grouped."""
        if module.groups != 1 or not isinstance(module.padding, tuple) or len(self._source(node).shape) != 4:
            return None
        source = self._source(node)
        rows, columns = module.padding
        if rows or columns:
            source = self._pad(node, source, module.padding_mode, (columns, columns, rows, rows))
        stage = ir.Conv(
            weight=str(self.name_of(module.weight)),
            bias=self.name_of(module.bias),
            kernel=_pair(module.kernel_size),
            stride=_pair(module.stride),
            dilation=_pair(module.dilation),
            channels=(module.in_channels, module.out_channels),
        )
        return self._add(node, stage, [source])

    def _pad(
        self, node: torch.fx.Node, source: ir.Node, mode: str, amount: tuple[int, int, int, int]
    ) -> ir.Node:
        n, c, h, w = source.shape
        left, right, top, bottom = amount
        shape = (n, c, h + top + bottom, w + left + right)
        return self._graph.add(ir.Pad(mode, amount), [source], shape, f"{_path(node)}.pad")

    def pad(self, node: torch.fx.Node, module: nn.Module) -> ir.Node | None:
        """A padding layer; None where it crops."""
        amount = tuple(module.padding)  # type: ignore[arg-type]
        if min(amount) < 0 or len(self._source(node).shape) != 4:
            return None
        if not any(amount):
            return self.identity(node, module)
        return self._add(node, ir.Pad(_PADS[type(module)], amount), [self._source(node)])

    def norm(self, node: torch.fx.Node, module: nn.BatchNorm2d) -> ir.Node:
        """Batch norm."""
        stage = ir.Norm(
            module=_path(node),
            weight=self.name_of(module.weight),
            bias=self.name_of(module.bias),
            mean=self.name_of(module.running_mean),
            var=self.name_of(module.running_var),
            count=self.name_of(module.num_batches_tracked),
            eps=module.eps,
            momentum=module.momentum,
            channels=module.num_features,
            training=module.training,
        )
        return self._add(node, stage, [self._source(node)])

    def act(self, node: torch.fx.Node, module: nn.Module) -> ir.Node | None:
        """An elementwise activation; None for what is no image."""
        if len(self._source(node).shape) != 4:
            return None
        kind, attribute = _ACTS[type(module)]
        value = float(getattr(module, attribute)) if attribute else 0.0
        return self._add(node, ir.Act(kind, value), [self._source(node)])

    def pool(self, node: torch.fx.Node, module: nn.AvgPool2d | nn.MaxPool2d) -> ir.Node | None:
        """A pooling layer; None with padding, dilation or a divisor of its own."""
        avg = isinstance(module, nn.AvgPool2d)
        if _pair(module.padding) != (0, 0) or len(self._source(node).shape) != 4:
            return None
        if isinstance(module, nn.AvgPool2d) and module.divisor_override is not None:
            return None
        if isinstance(module, nn.MaxPool2d) and (_pair(module.dilation) != (1, 1) or module.return_indices):
            return None
        stage = ir.Pool(
            "avg" if avg else "max", _pair(module.kernel_size), _pair(module.stride), module.ceil_mode
        )
        return self._add(node, stage, [self._source(node)])

    def upsample(self, node: torch.fx.Node, module: nn.Upsample) -> ir.Node | None:
        """Nearest or bilinear up-sampling."""
        source = self._source(node)
        if (
            module.mode not in ("nearest", "bilinear")
            or module.recompute_scale_factor
            or len(source.shape) != 4
        ):
            return None
        height, width = node.meta["value"].shape[-2:]
        in_height, in_width = source.shape[-2:]
        factor = height // in_height
        whole = (height, width) == (factor * in_height, factor * in_width)
        if module.scale_factor is not None:  # given as a number that need not be the ratio of the sizes
            scales = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,)
            whole = whole and all(scale == factor for scale in scales)
            if not whole:
                return None
        stage = ir.Upsample(module.mode, (height, width), factor if whole else 0, module.align_corners)
        return self._add(node, stage, [source])

    def conv_transpose(self, node: torch.fx.Node, module: nn.ConvTranspose2d) -> ir.Node | None:
        """Pad, convolution at the resolution of the input, pixel shuffle and crop; None with groups etc."""
        source = self._source(node)
        strides, output = set(_pair(module.stride)), node.meta["value"].shape
        if module.groups != 1 or _pair(module.dilation) != (1, 1) or len(strides) != 1:
            return None
        if len(source.shape) != 4 or len(node.args) != 1 or node.kwargs:
            return None
        (stride,) = strides
        n, inputs, *size = source.shape
        outputs = module.out_channels
        taps, before, after, first, pixels = [], [], [], [], []
        for length, kernel, padding, wanted in zip(
            size, _pair(module.kernel_size), _pair(module.padding), output[2:], strict=True
        ):
            last = -(-kernel // stride) - 1  # tap: the first of the convolution's kernel
            skipped = min(padding // stride, last)  # groups of pixels that the padding cuts off
            groups = (padding + wanted - 1) // stride + 1 - skipped
            taps.append(last + 1)
            before.append(last - skipped)
            after.append(max(groups + skipped - length, 0))
            first.append(padding - skipped * stride)
            pixels.append(length + before[-1] + after[-1] - last)
        if any(before) or any(after):
            amount = (before[1], after[1], before[0], after[0])
            source = self._pad(node, source, "zeros", amount)
        conv = ir.Conv(
            weight=str(self.name_of(module.weight)),
            bias=self.name_of(module.bias),
            kernel=(taps[0], taps[1]),
            stride=(1, 1),
            dilation=(1, 1),
            channels=(inputs, outputs * stride**2),
            transposed=stride,
        )
        name, shape = _path(node), (n, outputs * stride**2, *pixels)
        last_node = self._graph.add(conv, [source], shape, f"{name}.conv")
        if stride > 1:
            shape = (n, outputs, pixels[0] * stride, pixels[1] * stride)
            last_node = self._graph.add(ir.PixelShuffle(stride), [last_node], shape, f"{name}.shuffle")
        if first != [0, 0] or shape[2:] != tuple(output[2:]):
            crop = ir.Crop(first[0], first[1], output[2], output[3])
            last_node = self._graph.add(crop, [last_node], tuple(output), name)
        last_node.name = name
        return last_node

    def group_norm(self, node: torch.fx.Node, module: nn.GroupNorm) -> ir.Node | None:
        """Group norm of images."""
        if len(self._source(node).shape) != 4:
            return None
        stage = ir.GroupNorm(
            weight=self.name_of(module.weight),
            bias=self.name_of(module.bias),
            groups=module.num_groups,
            eps=module.eps,
            channels=module.num_channels,
        )
        return self._add(node, stage, [self._source(node)])

    def instance_norm(self, node: torch.fx.Node, module: nn.InstanceNorm2d) -> ir.Node | None:
        """A batch norm of one image, or a group norm of several; None with running statistics."""
        source = self._source(node)
        if module.track_running_stats or len(source.shape) != 4:
            return None
        weight, bias = self.name_of(module.weight), self.name_of(module.bias)
        channels = source.shape[1]
        stage: ir.Stage
        if source.shape[0] == 1:
            stage = ir.Norm(
                _path(node),
                weight,
                bias,
                None,
                None,
                None,
                module.eps,
                None,
                channels,
                training=module.training,
            )
        else:
            stage = ir.GroupNorm(weight, bias, channels, module.eps, channels)
        return self._add(node, stage, [source])

    def prelu(self, node: torch.fx.Node, module: nn.PReLU) -> ir.Node | None:
        """Leaky ReLU whose slope is a parameter."""
        if len(self._source(node).shape) != 4:
            return None
        return self._add(node, ir.PReLU(str(self.name_of(module.weight))), [self._source(node)])

    def pixel_shuffle(self, node: torch.fx.Node, module: nn.PixelShuffle) -> ir.Node | None:
        """Channels to pixels."""
        if len(self._source(node).shape) != 4:
            return None
        return self._add(node, ir.PixelShuffle(module.upscale_factor), [self._source(node)])

    def identity(self, node: torch.fx.Node, module: nn.Module) -> ir.Node:
        """Nothing to compute."""
        return self._source(node)


_PADS: dict[type, str] = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
    nn.CircularPad2d: "circular",
}
_ACTS: dict[type, tuple[str, str]] = {
    nn.LeakyReLU: ("leaky_relu", "negative_slope"),
    nn.ReLU: ("relu", ""),
    nn.ELU: ("elu", "alpha"),
    nn.SiLU: ("silu", ""),
    nn.Sigmoid: ("sigmoid", ""),
    nn.Tanh: ("tanh", ""),
}
_MODULES: dict[type, Callable[[Converter, torch.fx.Node, Any], ir.Node | None]] = {
    nn.Conv2d: Converter.conv,
    nn.ConvTranspose2d: Converter.conv_transpose,
    nn.BatchNorm2d: Converter.norm,
    nn.GroupNorm: Converter.group_norm,
    nn.InstanceNorm2d: Converter.instance_norm,
    nn.PReLU: Converter.prelu,
    nn.PixelShuffle: Converter.pixel_shuffle,
    nn.AvgPool2d: Converter.pool,
    nn.MaxPool2d: Converter.pool,
    nn.Upsample: Converter.upsample,
    nn.Identity: Converter.identity,
    **dict.fromkeys(_PADS, Converter.pad),
    **dict.fromkeys(_ACTS, Converter.act),
}


# Layers that always make a new tensor.
_FRESH_LAYERS = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.BatchNorm2d,
    nn.InstanceNorm2d,
    nn.GroupNorm,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Upsample,
    nn.Linear,
)


def _plain(module: nn.Module) -> bool:
    """No hooks that would see or change what passes."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks)


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments of a function call by name, as far as its signature tells them."""
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return dict(node.kwargs)


def _path(node: torch.fx.Node) -> str:
    """The module's name in the network: the trace's root holds the network as ``net``."""
    return str(node.target).removeprefix("net").removeprefix(".")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def attribute(root: nn.Module, path: str) -> Any:
    """The parameter, buffer or other attribute at a dotted path."""
    owner_path, _, name = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    # Not by getattr, which torch.fx patches while it traces.
    return next(store[name] for store in (owner._parameters, owner._buffers, vars(owner)) if name in store)
