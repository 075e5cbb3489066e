"""Rule: fuse an activation into the batch norm or group norm before it.

Condition: the activation is the norm's only reader.
Proof: act(norm(x)) is the same expression, evaluated in one stage.
"""

from __future__ import annotations

from dataclasses import replace

from oes_fast.rewrite.ir import Act, Graph, GroupNorm, Norm


def apply(graph: Graph) -> int:
    """Rewrite every match in place; returns how many there were."""
    count = 0
    for node in graph:
        if not isinstance(node.stage, Act) or node.stage.kind == "identity":
            continue
        (source,) = node.inputs
        norm = source.stage
        if not isinstance(norm, Norm | GroupNorm):
            continue
        if norm.act is None and graph.sole_user(source) is node:
            node.stage = replace(norm, act=node.stage)
            node.inputs = source.inputs
            node.name = source.name
            graph.nodes.remove(source)
            count += 1
    return count
