"""Rows of convolutions and batch norms that the C++ kernels run as one.

A chain is a part of the graph without branches: convolutions with batch norm and activation behind them.
Inside it nothing but the convolutions' own results is kept: each convolution normalises and activates what it
reads, forward and backward (csrc/cpu/chain/). What does not fit ends the chain and runs stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive

_ACTIVATIONS = (None, "identity", "relu", "leaky_relu", "elu", "silu")
_OUTPUTS = ("identity", "relu", "leaky_relu", "sigmoid")


@dataclass
class ConvBlock:
    """A convolution with what belongs to it.

    Attributes:
        nodes: of the graph, in order; the last one's result is the block's.
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
    """Blocks, each reading the result of the one before it.

    Attributes:
        source: node that the first block reads.
        blocks: one or more.
    """

    source: ir.Node
    blocks: list[ConvBlock]

    @property
    def end(self) -> ir.Node:
        """Node whose result is the chain's."""
        return self.blocks[-1].nodes[-1]

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes it runs."""
        return [node for block in self.blocks for node in block.nodes]


def find_chains(
    graph: ir.Graph,
    alive: dict[ir.Node, Alive],
    input_only: set[ir.Node],
    takes: Callable[[ConvBlock], bool],
) -> list[Chain]:
    """The chains of a graph, the longest there are, none overlapping.

    Args:
        graph: rewritten.
        alive: channels by node.
        input_only: nodes that depend on the input alone.
        takes: whether the engine that is to run them has what a block computes.
    """
    taken: set[ir.Node] = set(input_only)
    chains = []
    for node in graph.nodes:
        if node in taken or not node.inputs:
            continue
        source = node.inputs[0]
        if len(alive[source].constant):
            continue
        blocks: list[ConvBlock] = []
        first: ir.Node | None = node
        while first is not None and first not in taken:
            block = _block(graph, alive, first)
            if block is None or not takes(block):
                break
            blocks.append(block)
            first = graph.sole_user(block.nodes[-1]) if block.norms else None
        if blocks:
            chains.append(Chain(source, blocks))
            taken.update(n for n in chains[-1].nodes)
    return chains


def _block(graph: ir.Graph, alive: dict[ir.Node, Alive], node: ir.Node) -> ConvBlock | None:
    """The block whose first node is ``node``, or None where there is none."""
    source = alive[node.inputs[0]]
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
        if not _same(alive[between], source):
            return None
    channels = alive[reader].varying
    if len(channels) == 0 or len(source.varying) == 0:
        return None
    block = ConvBlock([*nodes, reader], pad, box, reader)
    following = graph.sole_user(reader)
    while (
        following is not None
        and len(block.norms) < 2
        and _normalises(following, alive, channels, block.norms)
    ):
        block.norms.append(following)
        block.nodes.append(following)
        following = graph.sole_user(following)
    if block.norms:
        return block
    if len(alive[reader].constant):
        return None
    if following is not None and isinstance(following.stage, ir.Act) and following.stage.kind in _OUTPUTS:
        if not _same(alive[following], alive[reader]):
            return None
        block.act = following
        block.nodes.append(following)
    return block


def _convolves(node: ir.Node, pad: ir.Node | None, box: ir.Node | None) -> bool:
    stage = node.stage
    if isinstance(stage, ir.UpConv):
        if pad is None or box is not None or stage.factor != 2 or stage.conv.kernel != (3, 3):
            return False
        assert isinstance(pad.stage, ir.Pad)
        modes = ("replicate", "zeros")
        return stage.crop == (3, 3) and pad.stage.amount == (1, 1, 1, 1) and pad.stage.mode in modes
    if not isinstance(stage, ir.Conv) or stage.dilation != (1, 1) or stage.transposed:
        return False
    return stage.stride in ((1, 1), (2, 2))


def _normalises(node: ir.Node, alive: dict[ir.Node, Alive], channels: Tensor, before: list[ir.Node]) -> bool:
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
    return n * h * w > 1 and torch.equal(alive[node].varying, channels)


def _same(one: Alive, other: Alive) -> bool:
    return torch.equal(one.varying, other.varying) and torch.equal(one.constant, other.constant)
