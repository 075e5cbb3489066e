"""Rule: convolve before you up-sample.

Condition: a convolution of stride 1 and dilation 1 is the only reader of a nearest up-sampling by a whole
factor s, directly or through symmetric padding by p pixels a side: of zeros, replicated or circular, or
reflected with p < s.
Proof: in one dimension, nearest up-sampling is the transposed convolution of stride s with s ones. Convolving
it with w (as cross-correlation) is the transposed convolution of stride s with K = ones(s) * flip(w), of
length k + s - 1; s^2 k^2 taps a pixel become (k + s - 1)^2. Padding by p pixels is padding in the same way by
q = ceil(p / s) pixels at low resolution, but for reflection: that repeats, for p < s, the border pixel's own
copies, u[-j] = u[j] = x[0] for j <= p, so it is replication. q s - p + k - 1 pixels are cut from each end. A
1 x 1 convolution simply commutes.
Gain: 16 taps in place of 36 for 3 x 3 and s = 2, and the up-sampled tensor never exists. Bilinear up-sampling
is left alone: reflected padding of it is no padding of the low resolution, and (3 + 4 - 1)^2 = 36 taps gain
nothing.
"""

from __future__ import annotations

from oes_fast.rewrite.ir import Conv, Graph, Node, Pad, UpConv, Upsample


def apply(graph: Graph) -> int:
    """Rewrite every match in place; returns how many there were."""
    count = 0
    for node in graph:
        conv = node.stage
        if not isinstance(conv, Conv) or conv.transposed or conv.stride != (1, 1) or conv.dilation != (1, 1):
            continue
        source = node.inputs[0]
        pad: Node | None = None
        if isinstance(source.stage, Pad) and graph.sole_user(source) is node:
            pad, source = source, source.inputs[0]
        up = source.stage
        if not isinstance(up, Upsample) or up.mode != "nearest" or up.factor < 2:
            continue
        if graph.sole_user(source) is not (node if pad is None else pad):
            continue
        new = _rewritten(node, conv, source, up, pad)
        if new is None:
            continue
        graph.nodes.remove(source)
        if pad is not None:
            graph.nodes.remove(pad)
        graph.replace(node, new)
        count += 1
    return count


def _rewritten(node: Node, conv: Conv, source: Node, up: Upsample, pad: Node | None) -> list[Node] | None:
    low = source.inputs[0]
    n, c, h, w = low.shape
    if pad is None and conv.kernel == (1, 1):
        small = Node(conv, [low], (n, conv.channels[1], h, w), node.name)
        return [small, Node(up, [small], node.shape, source.name)]
    new: list[Node] = []
    crop: list[int] = []
    ring = [0, 0]
    mode = "zeros"
    amounts = (0, 0, 0, 0)
    if pad is not None:
        assert isinstance(pad.stage, Pad)
        mode, amounts = pad.stage.mode, pad.stage.amount
    left, right, top, bottom = amounts
    if left != right or top != bottom:
        return None
    for axis, (amount, kernel) in enumerate(zip((top, left), conv.kernel, strict=True)):
        if mode == "reflect" and amount >= up.factor:
            return None
        ring[axis] = -(-amount // up.factor)
        crop.append(ring[axis] * up.factor - amount + kernel - 1)
    rows, columns = ring
    if mode == "circular" and (rows > h or columns > w):
        return None
    if rows or columns:
        # One reflected pixel of the up-sampled image is a copy of the border pixel, hence replication.
        low_mode = "replicate" if mode == "reflect" else mode
        stage = Pad(low_mode, (columns, columns, rows, rows))
        low = Node(stage, [low], (n, c, h + 2 * rows, w + 2 * columns), f"{node.name}.pad")
        new.append(low)
    new.append(Node(UpConv(conv, up.factor, (crop[0], crop[1])), [low], node.shape, node.name))
    return new
