"""Rows of convolutions and batch norms that the C++ kernels run as one.

A chain is a part of the graph without branches: convolutions with batch norm and activation behind them.
Inside it nothing but the convolutions' own results is kept: each convolution normalises and activates what it
reads, forward and backward (csrc/cpu/chain.h). What does not fit ends the chain and runs stage by stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive

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

    nodes: list[ir.Node]
    pad: ir.Node | None
    box: ir.Node | None
    conv: ir.Node
    norms: list[ir.Node] = field(default_factory=list)
    act: ir.Node | None = None


@dataclass
class Chain:
    """Links, each reading the result of the one before it.

    Attributes:
        source: node that the first link reads.
        links: one or more.
    """

    source: ir.Node
    links: list[Link]

    @property
    def end(self) -> ir.Node:
        """Node whose result is the chain's."""
        return self.links[-1].nodes[-1]

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes it runs."""
        return [node for link in self.links for node in link.nodes]


def find_chains(graph: ir.Graph, alive: dict[int, Alive], fixed: set[int]) -> list[Chain]:
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
        first: ir.Node | None = node
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


def _link(graph: ir.Graph, alive: dict[int, Alive], node: ir.Node) -> Link | None:
    """The link whose first node is ``node``, or None where there is none."""
    source = alive[id(node.inputs[0])]
    nodes: list[ir.Node] = []
    pad = box = None
    reader: ir.Node | None = node
    if reader is not None and isinstance(reader.stage, ir.Pad):
        pad = reader
        nodes.append(reader)
        reader = graph.sole_user(reader)
    if reader is not None and isinstance(reader.stage, ir.Box) and reader.stage.size == 2:
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
    if following is not None and isinstance(following.stage, ir.Act) and following.stage.kind in _OUTPUTS:
        if not _same(alive[id(following)], alive[id(reader)]):
            return None
        link.act = following
        link.nodes.append(following)
    return link


def _convolves(node: ir.Node, pad: ir.Node | None, box: ir.Node | None) -> bool:
    stage = node.stage
    if isinstance(stage, ir.UpConv):
        if pad is None or box is not None or stage.factor != 2 or stage.conv.kernel != (3, 3):
            return False
        assert isinstance(pad.stage, ir.Pad)
        modes = ("replicate", "zeros")
        return stage.crop == (3, 3) and pad.stage.amount == (1, 1, 1, 1) and pad.stage.mode in modes
    if not isinstance(stage, ir.Conv) or stage.dilation != (1, 1):
        return False
    return stage.stride in ((1, 1), (2, 2))


def _normalises(node: ir.Node, alive: dict[int, Alive], channels: Tensor, before: list[ir.Node]) -> bool:
    norm = node.stage
    if (
        len(before) == 2
        or not isinstance(norm, ir.Norm)
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
