"""Parts of a graph that the C++ kernels run as one.

A chain is a directed graph of blocks: a convolution, or a join of results (a sum, a concatenation, a map that
changes the size), with the batch norm and the activation behind it. Inside it nothing but the blocks' own
values is kept: whoever reads a result normalises and activates it on the way, forward and backward
(csrc/cpu/chain/). What does not fit ends the chain and runs stage by stage. An engine without joins takes
rows of convolutions in which each reads the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive

_ACTIVATIONS = (None, "identity", "relu", "leaky_relu", "elu", "silu")
_OUTPUTS = ("identity", "relu", "leaky_relu", "sigmoid")
_MOST_WINDOW = 256  # pixels of a pooling


@dataclass(eq=False)
class Block:
    """A value with what belongs to it.

    Attributes:
        nodes: of the graph, in order; the last one's result is the block's.
        core: node of the value.
        value: channels of the value.
        sources: nodes whose results it reads.
        norms: nodes of one or two norms, the first with an activation perhaps.
        act: node of the activation of a value that no norm is behind, or only one behind the activation; or
            None.
    """

    nodes: list[ir.Node]
    core: ir.Node
    value: Alive
    sources: list[ir.Node]
    norms: list[ir.Node] = field(default_factory=list)
    act: ir.Node | None = None

    @property
    def end(self) -> ir.Node:
        """Node whose result is the block's."""
        return self.nodes[-1]


@dataclass(eq=False)
class ConvBlock(Block):
    """A block whose value is a convolution.

    Attributes:
        pad, box: before the convolution, or None.
    """

    pad: ir.Node | None = None
    box: ir.Node | None = None

    @property
    def conv(self) -> ir.Node:
        """Node of the convolution."""
        return self.core

    @property
    def reads_zeros(self) -> bool:
        """Whether it reads zeros beyond the edge: then a constant channel is an image like others."""
        pad = None if self.pad is None else self.pad.stage
        return isinstance(pad, ir.Pad) and pad.mode == "zeros" and any(pad.amount)


@dataclass(eq=False)
class JoinBlock(Block):
    """A block whose value is a sum, a concatenation or a map; of a norm or activation alone, its source's."""

    @property
    def copies(self) -> bool:
        """Whether the value is that of a result that others read too."""
        return self.core not in self.nodes


@dataclass
class Chain:
    """Blocks, each reading results of blocks before it and of sources.

    Attributes:
        sources: nodes outside that blocks read.
        blocks: one or more; the last one's result is the chain's.
    """

    sources: list[ir.Node]
    blocks: list[Block]

    @property
    def source(self) -> ir.Node:
        """Node that a row of convolutions reads."""
        (source,) = self.sources
        return source

    @property
    def convolutions(self) -> list[ConvBlock]:
        """The blocks of a chain without joins, or those that are convolutions."""
        return [block for block in self.blocks if isinstance(block, ConvBlock)]

    @property
    def norms(self) -> list[ir.Node]:
        """Nodes of all norms, in the order that they are evaluated."""
        return [node for block in self.blocks for node in block.norms]

    @property
    def end(self) -> ir.Node:
        """Node whose result is the chain's."""
        return self.blocks[-1].end

    @property
    def nodes(self) -> list[ir.Node]:
        """All nodes it runs."""
        return [node for block in self.blocks for node in block.nodes]


def find_chains(
    graph: ir.Graph,
    alive: dict[ir.Node, Alive],
    input_only: set[ir.Node],
    takes: Callable[[ConvBlock], bool],
    *,
    joins: bool = False,
) -> list[Chain]:
    """The chains of a graph, the largest there are, none overlapping.

    Args:
        graph: rewritten.
        alive: channels by node.
        input_only: nodes that depend on the input alone.
        takes: whether the engine that is to run them has what a convolution with its norms computes.
        joins: whether it takes joins, several readers and sources; else chains are rows of convolutions, all
            but the last with a norm.
    """
    finder = _Finder(graph, alive, input_only, joins=joins)
    blocks = [b for b in finder.blocks() if not isinstance(b, ConvBlock) or takes(b)]
    by_end = {block.end: block for block in blocks}
    reading: dict[ir.Node, list[Block | None]] = {block.end: [] for block in blocks}
    owner = {node: block for block in blocks for node in block.nodes}
    for node in graph.nodes:
        for source in dict.fromkeys(node.inputs):
            if source in reading and owner.get(node) is not by_end[source]:
                reading[source].append(owner.get(node))
    chains: list[Chain] = []
    taken: set[Block] = set()
    for end in reversed(blocks):
        if end in taken or not finder.may_end(end):
            continue
        region = [end]
        for block in reversed(blocks[: blocks.index(end)]):
            readers = reading[block.end]
            if block in taken or block.end is graph.output or not readers or not finder.may_be_read(block):
                continue
            inside = all(reader in region for reader in readers)
            row = len(readers) == 1 and readers[0] is region[-1]
            if inside and (joins or row):
                region.append(block)
        region = _without_constants(region, alive)
        chain = _chain(region[::-1])
        varies = any(len(alive[source].varying) for source in chain.sources)
        if region[:1] == [end] and chain.convolutions and varies:
            taken.update(region)
            chains.append(chain)
    return chains[::-1]


def _without_constants(region: list[Block], alive: dict[ir.Node, Alive]) -> list[Block]:
    """A region, in reverse order, without blocks that read constant channels from outside.

    With such a block goes everything that it reads, so that the region keeps its one end.
    """
    while True:
        inside = {block.end for block in region}
        bad = [
            block
            for block in region
            if any(node not in inside and len(alive[node].constant) for node in block.sources)
        ]
        if not bad:
            return region
        gone = set(bad)
        for block in region:
            readers = [other for other in region if block.end in other.sources]
            if any(reader in gone for reader in readers):
                gone.add(block)
        region = [block for block in region if block not in gone]


def _chain(blocks: list[Block]) -> Chain:
    inside = {block.end for block in blocks}
    sources = [node for block in blocks for node in block.sources if node not in inside]
    return Chain(list(dict.fromkeys(sources)), blocks)


class _Finder:
    """The blocks of a graph; see :func:`find_chains`."""

    def __init__(
        self, graph: ir.Graph, alive: dict[ir.Node, Alive], input_only: set[ir.Node], *, joins: bool
    ) -> None:
        self._graph = graph
        self._alive = alive
        self._input_only = input_only
        self._joins = joins
        users: dict[ir.Node, list[ir.Node]] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for source in dict.fromkeys(node.inputs):
                users[source].append(node)
        self._users = users

    def blocks(self) -> list[Block]:
        """All blocks, in the order of their ends; none overlapping."""
        found: list[Block] = []
        taken: set[ir.Node] = set(self._input_only)
        for node in self._graph.nodes:
            if node in taken or len(node.shape) != 4 or node.shape[0] != 1:
                continue
            block = self._conv(node)
            if block is None and self._joins:
                block = self._join(node)
            if block is not None:
                found.append(block)
                taken.update(block.nodes)
        order = {node: number for number, node in enumerate(self._graph.nodes)}
        return sorted(found, key=lambda block: order[block.end])

    def may_end(self, block: Block) -> bool:
        """Whether the block's result may be a chain's: an image that varies."""
        return bool(len(self._alive[block.end].varying))

    def may_be_read(self, block: Block) -> bool:
        """Whether the block's result may be read inside a chain."""
        if not self._joins:
            return bool(block.norms)
        return block.act is None or _kind(block.act) in _ACTIVATIONS

    def _sole_user(self, node: ir.Node) -> ir.Node | None:
        users = self._users[node]
        return users[0] if len(users) == 1 and node is not self._graph.output else None

    def _conv(self, node: ir.Node) -> Block | None:
        """The block whose convolution is ``node``, or None where there is none."""
        if not isinstance(node.stage, ir.Conv | ir.UpConv):
            return None
        before: list[ir.Node] = []
        source = node.inputs[0]
        pad = box = None
        if self._belongs(source) and isinstance(source.stage, ir.Box) and source.stage.size == 2:
            box = source
            before.insert(0, box)
            source = box.inputs[0]
        if self._belongs(source) and isinstance(source.stage, ir.Pad):
            pad = source
            before.insert(0, pad)
            source = pad.inputs[0]
        # A border of zeros makes an image of a constant channel: an engine with joins takes it for one.
        while (
            before and not self._joins and not all(_same(self._alive[n], self._alive[source]) for n in before)
        ):
            source = before.pop(0)
            pad, box = (None, box) if source is pad else (None, None)
        if not _convolves(node, pad, box, transposed=self._joins):
            return None
        varying, constant = self._alive[node].varying, self._alive[node].constant
        if not self._joins and (len(varying) == 0 or len(self._alive[source].varying) == 0):
            return None
        block = ConvBlock([*before, node], node, self._alive[node], [source], pad=pad, box=box)
        self._behind(block)
        if not self._joins and not block.norms and len(constant):
            return None
        return block

    def _belongs(self, node: ir.Node) -> bool:
        """Whether it is a stage of its one reader."""
        return node not in self._input_only and self._sole_user(node) is not None

    def _join(self, node: ir.Node) -> Block | None:
        """The block of a join, or of a norm or an activation that belongs to no other."""
        stage = node.stage
        if isinstance(stage, ir.Norm | ir.GroupNorm | ir.Act):
            source = node.inputs[0]
            if len(source.shape) != 4:
                return None
            value = replace(self._alive[source], varying=self._alive[node].varying)
            block = JoinBlock([], source, value, [source])
            if not self._absorb(block, node):
                return None
            self._behind(block)
            return block
        if isinstance(stage, ir.Upsample):
            fits = stage.mode in ("nearest", "bilinear")
        elif isinstance(stage, ir.Pool):
            fits = stage.kernel[0] * stage.kernel[1] <= _MOST_WINDOW
        else:
            fits = isinstance(stage, ir.Add | ir.Cat | ir.Crop | ir.PixelShuffle | ir.PReLU)
        if not fits or any(len(source.shape) != 4 or source.shape[0] != 1 for source in node.inputs):
            return None
        block = JoinBlock([node], node, self._alive[node], list(node.inputs))
        self._behind(block)
        return block

    def _behind(self, block: Block) -> None:
        """Add the norms and the activation that follow to a block, as far as an engine takes them."""
        following = self._sole_user(block.nodes[-1])
        while following is not None and self._absorb(block, following):
            following = self._sole_user(following)

    def _absorb(self, block: Block, node: ir.Node) -> bool:
        """Make ``node`` part of the block where it is a norm or an activation that fits."""
        if node in self._input_only:
            return False
        if self._normalises(block, node):
            block.norms.append(node)
        elif self._activates(block, node):
            block.act = node
        else:
            return False
        block.nodes.append(node)
        return True

    def _activates(self, block: Block, node: ir.Node) -> bool:
        if not isinstance(node.stage, ir.Act) or block.norms or block.act is not None:
            return False
        ends = isinstance(block, ConvBlock) and not len(block.value.constant)
        if not (self._joins or ends) or not torch.equal(self._alive[node].varying, block.value.varying):
            return False
        if _kind(node) == "sigmoid" and len(self._alive[node].constant):  # it lifts what is zero
            return False
        return (ends and _kind(node) in _OUTPUTS) or (self._joins and _kind(node) in _ACTIVATIONS)

    def _normalises(self, block: Block, node: ir.Node) -> bool:
        norm = node.stage
        already = len(block.norms) + (block.act is not None)
        if already == 2 or (block.act is not None and _kind(block.act) not in _ACTIVATIONS):
            return False
        if not self._joins and block.act is not None:
            return False
        if isinstance(norm, ir.GroupNorm):
            # The statistics of a group are those of channels that are all there.
            whole = len(block.value.varying) == len(self._alive[node].varying) == norm.channels
            if not self._joins or not whole:
                return False
        elif not isinstance(norm, ir.Norm) or not norm.of_batch or (norm.tracks and norm.momentum is None):
            return False
        kind = None if norm.act is None else norm.act.kind
        if kind not in (_ACTIVATIONS if not already else (None, "identity")):
            return False
        _, _, h, w = node.shape
        return h * w > 1 and torch.equal(self._alive[node].varying, block.value.varying)


def _convolves(node: ir.Node, pad: ir.Node | None, box: ir.Node | None, *, transposed: bool) -> bool:
    stage = node.stage
    if isinstance(stage, ir.UpConv):
        if pad is None or box is not None or stage.factor != 2 or stage.conv.kernel != (3, 3):
            return False
        assert isinstance(pad.stage, ir.Pad)
        modes = ("replicate", "zeros")
        return stage.crop == (3, 3) and pad.stage.amount == (1, 1, 1, 1) and pad.stage.mode in modes
    if not isinstance(stage, ir.Conv) or stage.dilation != (1, 1) or (stage.transposed and not transposed):
        return False
    return stage.stride in ((1, 1), (2, 2))


def _kind(act: ir.Node) -> str:
    assert isinstance(act.stage, ir.Act)
    return act.stage.kind


def _same(one: Alive, other: Alive) -> bool:
    return torch.equal(one.varying, other.varying) and torch.equal(one.constant, other.constant)
