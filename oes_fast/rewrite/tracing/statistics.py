"""Which recorded calls update running statistics, and how often a network's buffers are used."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch.fx
from torch import nn

_NAMES = ("batch_norm", "instance_norm", "native_batch_norm", "native_batch_norm_legit", "cudnn_batch_norm")


def updates(node: torch.fx.Node, root: nn.Module) -> bool:
    """Whether a call may update running statistics.

    Args:
        node: recorded call.
        root: of the trace.
    """
    if node.op == "call_module":
        return any(map(tracks, root.get_submodule(str(node.target)).modules()))
    if node.op != "call_function" or getattr(node.target, "__name__", "").lstrip("_") not in _NAMES:
        return False
    parameters = {id(p) for p in root.parameters()}
    given = (n for n in node.all_input_nodes if n.op == "get_attr")
    return any(id(attribute(root, str(n.target))) not in parameters for n in given)


def tracks(module: nn.Module) -> bool:
    """Whether a layer updates running statistics in its present mode."""
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return norm and module.training and module.running_mean is not None


def unread(fx_graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The calls whose results the output does not depend on."""
    needed: set[torch.fx.Node] = set()
    for node in reversed(fx_graph.nodes):
        if node.op == "output" or node in needed:
            needed.update((node, *node.all_input_nodes))
    return set(fx_graph.nodes) - needed


def reads_of_buffers(root: nn.Module, fx_graph: torch.fx.Graph, names: dict[int, str]) -> Counter[str]:
    """How many calls of layers, or accesses in the network's own code, each buffer has.

    Args:
        root: of the trace.
        fx_graph: recorded calls.
        names: of the network's buffers, by id.
    """
    reads: Counter[str] = Counter()
    for node in fx_graph.nodes:
        if node.op == "call_module":
            tensors = list(root.get_submodule(str(node.target)).buffers())
        elif node.op == "get_attr":
            tensors = [attribute(root, str(node.target))]
        else:
            continue
        reads.update(names[id(tensor)] for tensor in tensors if id(tensor) in names)
    return reads


def attribute(root: nn.Module, path: str) -> Any:
    """The parameter, buffer or other attribute at a dotted path."""
    owner_path, _, name = path.rpartition(".")
    owner = root.get_submodule(owner_path)
    # Not by getattr, which torch.fx patches while it traces.
    return next(store[name] for store in (owner._parameters, owner._buffers, vars(owner)) if name in store)
