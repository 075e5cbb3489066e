"""Rule: batch norm and convolution act on the parts of a concatenation.

Condition: a concatenation, one part of which is a nearest up-sampling, is read by a batch norm alone, or by a
convolution alone (through padding or not).
Proof: batch norm works channel by channel, so norm([a, b]) = [norm(a), norm(b)]. A convolution sums over its
input channels, so K * [a, b] = K_a * a + K_b * b with the weights' input channels split in the same way.
Padding works channel by channel.
Gain: the up-sampled part becomes a match of the rules that work before an up-sampling.
"""

from __future__ import annotations

from dataclasses import replace

from oes_fast.rewrite.ir import Add, Cat, Conv, Graph, Node, Norm, Pad, Upsample


def apply(graph: Graph) -> int:
    """Rewrite every match in place; returns how many there were."""
    count = 0
    for node in graph:
        if not isinstance(node.stage, Cat) or not any(_upsampled(i) for i in node.inputs):
            continue
        reader = graph.sole_user(node)
        if reader is not None and isinstance(reader.stage, Norm):
            node = _split_norm(graph, node, reader)
            reader = graph.sole_user(node)
            count += 1
        if reader is not None and isinstance(reader.stage, Pad):
            conv = graph.sole_user(reader)
            if conv is not None and _splits(conv):
                _split_conv(graph, node, conv, reader)
                count += 1
        elif reader is not None and _splits(reader):
            _split_conv(graph, node, reader, None)
            count += 1
    return count


def _splits(node: Node) -> bool:
    """A sum of two transposed convolutions would have its pixels shuffled once, which PyTorch does not."""
    return isinstance(node.stage, Conv) and not node.stage.transposed


def _upsampled(node: Node) -> bool:
    if isinstance(node.stage, Norm):
        return _upsampled(node.inputs[0])
    return isinstance(node.stage, Upsample) and node.stage.mode == "nearest" and node.stage.factor > 1


def _split_norm(graph: Graph, cat: Node, reader: Node) -> Node:
    norm = reader.stage
    assert isinstance(norm, Norm)
    parts: list[Node] = []
    first = norm.first
    for part in cat.inputs:
        stage = replace(norm, channels=part.shape[1], first=first, counts=norm.counts and not parts)
        parts.append(Node(stage, [part], part.shape, reader.name))
        first += part.shape[1]
    joined = Node(Cat(), list(parts), cat.shape, cat.name)
    graph.nodes.remove(cat)
    graph.replace(reader, [*parts, joined])
    return joined


def _split_conv(graph: Graph, cat: Node, reader: Node, pad: Node | None) -> None:
    conv = reader.stage
    assert isinstance(conv, Conv)
    new: list[Node] = []
    total: Node | None = None
    first = conv.first
    for part in cat.inputs:
        channels = part.shape[1]
        source = part
        if pad is not None:
            shape = (part.shape[0], channels, *pad.shape[2:])
            source = Node(pad.stage, [part], shape, pad.name)
            new.append(source)
        stage = replace(
            conv,
            bias=conv.bias if total is None else None,
            channels=(channels, conv.channels[1]),
            first=first,
        )
        piece = Node(stage, [source], reader.shape, reader.name)
        new.append(piece)
        if total is not None:
            piece = Node(Add(), [total, piece], reader.shape, f"{reader.name}.sum")
            new.append(piece)
        total = piece
        first += channels
    graph.nodes.remove(cat)
    if pad is not None:
        graph.nodes.remove(pad)
    graph.replace(reader, new)
