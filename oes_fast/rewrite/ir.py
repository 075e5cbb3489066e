"""The vocabulary of a rewritten generator: what a stage computes, and the graph they form.

A stage is plain data; :mod:`oes_fast.rewrite.run.torch_ops` runs it. Parameters and buffers are named as in
the network that was traced. Convolutions carry no padding of their own: a :class:`Pad` stage precedes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Stage:
    """Base of all stages."""


@dataclass(frozen=True)
class Input(Stage):
    """The fixed input z."""


@dataclass(frozen=True)
class Constant(Stage):
    """A tensor that belongs to neither parameters nor buffers."""

    value: torch.Tensor


@dataclass(frozen=True)
class Parameter(Stage):
    """A parameter or buffer that the network's own code reads."""

    name: str


@dataclass(frozen=True)
class Pad(Stage):
    """Add pixels around the image.

    Attributes:
        mode: zeros, reflect, replicate or circular.
        amount: (left, right, top, bottom).
    """

    mode: str
    amount: tuple[int, int, int, int]


@dataclass(frozen=True)
class Conv(Stage):
    """Cross-correlation without padding, with the channels ``first`` .. of the weight's inputs.

    Attributes:
        weight: name of a parameter [O, I, kH, kW].
        bias: name of a parameter [O], or None.
        kernel: (kH, kW).
        stride: (rows, columns).
        dilation: (rows, columns).
        channels: (in, out) that this stage reads and writes.
        first: index of the weight's first input channel it reads: not 0 where a concatenation was split.
        scale: factor on the weight: 1 / s^2 after a box sum.
        transposed: 0; or s > 0 for a transposed convolution of stride s, computed at the resolution of what
            it reads. Its ``weight`` is [I, O, kH, kW], seen as that of a convolution of stride 1 with
            s s O outputs, as :func:`oes_fast.rewrite.weights.phases` lays it out; ``channels``, ``kernel``
            and ``stride`` are that convolution's. Output o s s + i s + j is pixel (i, j) of every s x s
            pixels of output o, and has its bias. A :class:`Pad` of zeros stands before it,
            :class:`PixelShuffle` and :class:`Crop` behind it.
    """

    weight: str
    bias: str | None
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    channels: tuple[int, int]
    first: int = 0
    scale: float = 1.0
    transposed: int = 0

    def bias_of(self, outputs: torch.Tensor) -> torch.Tensor:
        """Index of the bias of each of these outputs, int64."""
        return outputs // self.transposed**2 if self.transposed > 1 else outputs


@dataclass(frozen=True)
class UpConv(Stage):
    """:class:`Conv` of the nearest up-sampling of the input, at the input's resolution.

    Attributes:
        conv: the convolution, stride 1 and dilation 1.
        factor: of the up-sampling.
        crop: pixels cut from each side of the transposed convolution that computes it.
    """

    conv: Conv
    factor: int
    crop: tuple[int, int]


@dataclass(frozen=True)
class Norm(Stage):
    """Batch normalisation of the channels ``first`` .. of a module, then an activation.

    An instance norm without running statistics, of a single image, is one too.

    Attributes:
        module: name of the torch.nn.BatchNorm2d or torch.nn.InstanceNorm2d; of the function's call, where
            the network's code normalises by a function.
        weight, bias: names of gamma and beta, or None.
        mean, var, count: names of the running statistics and num_batches_tracked, or None.
        eps, momentum: of the module.
        channels: how many.
        first: index of the module's first channel: not 0 where a concatenation was split.
        copies: pixels that stand for each pixel seen: s^2 before an up-sampling it was moved over.
        counts: this stage increments num_batches_tracked (one does where a module was split).
        training: the module is in training mode (a network may hold one in evaluation mode, frozen).
        act: activation that follows, or None.
    """

    module: str
    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    count: str | None
    eps: float
    momentum: float | None
    channels: int
    first: int = 0
    copies: int = 1
    counts: bool = True
    training: bool = True
    act: Act | None = None

    @property
    def of_batch(self) -> bool:
        """It takes the statistics of its input, not the running ones."""
        return self.training or self.mean is None

    @property
    def tracks(self) -> bool:
        """It updates running statistics."""
        return self.training and self.mean is not None


@dataclass(frozen=True)
class GroupNorm(Stage):
    """Normalisation by the statistics of each image's groups of channels, then an activation.

    An instance norm of several images is one with as many groups as channels.

    Attributes:
        weight, bias: names of gamma and beta [channels], or None.
        groups: of ``channels / groups`` neighbouring channels.
        eps: of the module.
        channels: how many.
        act: activation that follows, or None.
    """

    weight: str | None
    bias: str | None
    groups: int
    eps: float
    channels: int
    act: Act | None = None


@dataclass(frozen=True)
class Act(Stage):
    """An elementwise activation.

    Attributes:
        kind: leaky_relu, relu, elu, silu, gelu, gelu_tanh, sigmoid, tanh or identity.
        value: slope of leaky_relu, alpha of elu.
    """

    kind: str
    value: float = 0.0


@dataclass(frozen=True)
class PReLU(Stage):
    """Leaky ReLU whose slope is a parameter.

    Attributes:
        weight: name of a parameter of one element, or of one for each channel.
    """

    weight: str


@dataclass(frozen=True)
class PixelShuffle(Stage):
    """Every ``factor**2`` neighbouring channels become one of ``factor`` times as many rows and columns.

    As :func:`torch.nn.functional.pixel_shuffle`.
    """

    factor: int


@dataclass(frozen=True)
class Box(Stage):
    """Sum over every window of ``size`` x ``size`` pixels, at stride 1."""

    size: int


@dataclass(frozen=True)
class Pool(Stage):
    """Average or maximum over windows, without padding.

    Attributes:
        kind: avg or max.
        kernel, stride: (rows, columns).
        ceil: count windows that reach over the border.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    ceil: bool = False


@dataclass(frozen=True)
class Upsample(Stage):
    """Interpolation to ``size``.

    Attributes:
        mode: nearest or bilinear.
        size: (rows, columns) of the result.
        factor: the whole factor on both sides; 0 where there is none.
        align_corners: as torch.nn.functional.interpolate.
    """

    mode: str
    size: tuple[int, int]
    factor: int
    align_corners: bool | None = None


@dataclass(frozen=True)
class Cat(Stage):
    """Concatenation along the channels."""


@dataclass(frozen=True)
class Add(Stage):
    """Sum of two stages' results of one shape."""


@dataclass(frozen=True)
class Crop(Stage):
    """A rectangle of the image: rows top .. top + height, columns left .. left + width."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Channels(Stage):
    """The channels ``first`` .. of the input, as many as the node's shape has."""

    first: int


@dataclass(frozen=True)
class Opaque(Stage):
    """Anything else, run as it is on all channels.

    Attributes:
        kind: call_module, call_function or call_method.
        target: name of the module, the function, or name of the method.
        args, kwargs: with :class:`Slot` where an input goes.
        updates: it changes buffers, so it runs even where nothing reads its result.
    """

    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    updates: bool = False


@dataclass(frozen=True)
class Slot:
    """Place of input number ``index`` among the arguments of an :class:`Opaque`."""

    index: int


@dataclass(eq=False)
class Node:
    """A stage with its inputs.

    Attributes:
        stage: what is computed.
        inputs: nodes it reads.
        shape: of its result, [N, C, H, W] for images.
        name: of the module it came from, for reports.
    """

    stage: Stage
    inputs: list[Node]
    shape: tuple[int, ...]
    name: str


@dataclass
class Graph:
    """Nodes in an order in which each comes after its inputs; the last is the output."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, stage: Stage, inputs: list[Node], shape: tuple[int, ...], name: str) -> Node:
        """Append a node."""
        node = Node(stage, inputs, shape, name)
        self.nodes.append(node)
        return node

    @property
    def output(self) -> Node:
        """The node whose result is the image."""
        return self.nodes[-1]

    def users(self, node: Node) -> list[Node]:
        """Nodes that read ``node``."""
        return [other for other in self.nodes if node in other.inputs]

    def sole_user(self, node: Node) -> Node | None:
        """The node that alone reads ``node``; None where there are several, or it is the output."""
        users = self.users(node)
        return users[0] if len(users) == 1 and node is not self.output else None

    def replace(self, old: Node, new: list[Node]) -> None:
        """Put ``new`` in the place of ``old``; readers of ``old`` read the last of them."""
        at = self.nodes.index(old)
        self.nodes[at : at + 1] = new
        for node in self.nodes:
            if node not in new[:-1]:
                node.inputs = [new[-1] if i is old and node is not new[-1] else i for i in node.inputs]

    def sweep(self) -> None:
        """Drop nodes that neither the output nor an update of buffers needs."""
        needed: set[Node] = set()
        for node in reversed(self.nodes):
            updates = isinstance(node.stage, Opaque) and node.stage.updates
            if node is self.output or updates or node in needed:
                needed.add(node)
                needed.update(node.inputs)
        self.nodes = [node for node in self.nodes if node in needed]

    def copy(self) -> Graph:
        """Nodes of their own with the same stages."""
        copies: dict[Node, Node] = {}
        for node in self.nodes:
            copies[node] = replace(node, inputs=[copies[i] for i in node.inputs])
        return Graph(list(copies.values()))

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self.nodes))
