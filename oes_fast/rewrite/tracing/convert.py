"""From the calls that torch.fx recorded to stages."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.fx
from torch import nn

from oes_fast.rewrite import ir
from oes_fast.rewrite.tracing.errors import TraceError
from oes_fast.rewrite.tracing.in_place import Changes, plain, without_change
from oes_fast.rewrite.tracing.layers import FUNCTIONS, LAYERS, METHODS, Function
from oes_fast.rewrite.tracing.stages import AsItIsError, Stages, name_of
from oes_fast.rewrite.tracing.statistics import attribute, reads_of_buffers, unread, updates


class Converter(Stages):
    """Turns the calls that torch.fx recorded into stages."""

    def __init__(self, net: nn.Module, root: nn.Module, fx_graph: torch.fx.Graph) -> None:
        super().__init__(net)
        self._root = root
        called = [root.get_submodule(str(n.target)) for n in fx_graph.nodes if n.op == "call_module"]
        self._calls = Counter(id(module) for module in called)
        self._fx_graph = fx_graph
        self._unread = unread(fx_graph)
        self._reads = reads_of_buffers(root, fx_graph, self._names)
        self._changes = Changes(root, fx_graph)

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
                same = self._refuse_in_place(node)
                self._nodes[node] = self._convert(node)
                for name in same or ():  # from here on, they hold the changed tensor
                    self._nodes[name] = self._nodes[node]
        if output is None:
            raise TraceError("expected a network that returns one tensor")
        if len(output.shape) != 4:
            raise TraceError(f"expected a network that returns [N, C, H, W], got shape {output.shape}")
        if output is not self.graph.output:
            self.graph.add(ir.Act("identity"), [output], output.shape, "output")
        self.graph.sweep()
        return self.graph

    def _refuse_in_place(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        return self._changes.check(node)

    def _convert(self, node: torch.fx.Node) -> ir.Node:
        if node.op == "placeholder":
            return self.add(node, ir.Input(), [])
        if node.op == "get_attr":
            tensor = attribute(self._root, str(node.target))
            known = self._names.get(id(tensor))
            return self.add(node, ir.Constant(tensor) if known is None else ir.Parameter(known), [])
        target, kwargs = without_change(node, self._root) or (node.target, dict(node.kwargs))
        try:
            if node in self._unread and updates(node, self._root):
                raise AsItIsError  # on all channels, for its running statistics alone
            if node.op == "call_module":
                return self._layer(node)
            function = METHODS.get(str(target)) if node.op == "call_method" else _looked_up(target)
            if function is not None:
                return function(self, node, *node.args, **kwargs)
        except (AsItIsError, TypeError):  # arguments that are others than it takes
            pass
        return self._opaque(node, target, kwargs)

    def _layer(self, node: torch.fx.Node) -> ir.Node:
        module = self._root.get_submodule(str(node.target))
        convert = LAYERS.get(type(module))
        if self._calls[id(module)] > 1 and isinstance(module, nn.BatchNorm2d):
            convert = None  # its running statistics belong to several stages
        if convert is None or len(node.args) != 1 or node.kwargs or not plain(module):
            raise AsItIsError
        return convert(self, node, module)

    def _opaque(self, node: torch.fx.Node, target: Any, kwargs: dict[str, Any]) -> ir.Node:
        inputs: list[ir.Node] = []

        def slot(argument: torch.fx.Node) -> Any:
            inputs.append(self._nodes[argument])
            return ir.Slot(len(inputs) - 1)

        args, kwargs = torch.fx.map_arg(node.args, slot), torch.fx.map_arg(kwargs, slot)
        if node.op == "call_module":
            target = name_of(node)
        stage = ir.Opaque(node.op, target, args, kwargs, updates(node, self._root))
        return self.add(node, stage, inputs)


def _looked_up(function: Any) -> Function | None:
    try:
        return FUNCTIONS.get(function)
    except TypeError:  # an object of the user's own that has no hash
        return None
