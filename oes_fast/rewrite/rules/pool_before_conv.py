"""Rule: pool before you convolve.

Condition: an s x s average pooling (stride s, no padding) is the only reader of a convolution of stride 1.
Proof: with B the sum over s x s windows and D the sub-sampling by s, pooling is D B / s^2. B and the
convolution K are both shift-invariant and linear, so they commute: D B K / s^2 = (D K) B / s^2. D K is the
convolution at stride s, and 1 / s^2 goes into its weights. A bias is added after both and is its own mean.
The last window of both ends within the image for the same outputs, so odd sizes agree too.
Gain: s^2 fewer multiply-accumulates, and the convolution at full resolution never exists.
"""

from __future__ import annotations

from dataclasses import replace

from oes_fast.rewrite.ir import Box, Conv, Graph, Node, Pool


def apply(graph: Graph) -> int:
    """Rewrite every match in place; returns how many there were."""
    count = 0
    for node in graph:
        pool = node.stage
        if not isinstance(pool, Pool) or pool.kind != "avg" or pool.ceil or pool.kernel != pool.stride:
            continue
        size, other = pool.kernel
        source = node.inputs[0]
        conv = source.stage
        if (
            not isinstance(conv, Conv)
            or conv.transposed
            or conv.stride != (1, 1)
            or graph.sole_user(source) is not node
        ):
            continue
        if size != other or size == 1:
            continue
        n, c, h, w = source.inputs[0].shape
        box = Node(Box(size), source.inputs, (n, c, h - size + 1, w - size + 1), f"{source.name}.box")
        strided = replace(conv, stride=(size, size), scale=conv.scale / size**2)
        graph.nodes.remove(source)
        graph.replace(node, [box, Node(strided, [box], node.shape, source.name)])
        count += 1
    return count
