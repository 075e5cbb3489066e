"""Rule: dead channels. Which channels of every stage are computed, which are constants, which are nothing.

Forward, each channel of a result is one of
    ZERO      exactly 0 everywhere,
    CONSTANT  one value over the whole image, a function of parameters alone,
    VARYING   anything else.
A batch norm whose gamma the mask drops gives its beta: CONSTANT, or ZERO where beta is dropped too. In
training it gives its beta for a constant input as well, since it subtracts the mean; outside training it
gives gamma (k - running mean) / sqrt(running variance + eps) + beta. A convolution output that reads no
VARYING channel is CONSTANT. Activations, pooling, up-sampling, cropping and padding other than with zeros
keep a constant constant. A group norm mixes the channels of a group: those whose gamma is kept vary if one of
the group is not ZERO; where a group is one channel, as in an instance norm, if that one varies.

Backward, a channel is wanted if it changes the output: a convolution wants an input channel if the mask keeps
a weight from it to a wanted output channel; a batch norm wants the channels whose gamma is kept, a group norm
those that share a group with one.

What is VARYING and wanted is computed; what is CONSTANT and wanted is one number; all other channels, and
every weight that touches only them, are left out. Their gradients are exactly zero in the dense network too,
so this holds for a whole training. Running statistics of channels that are not wanted reach no output in
either mode; they stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.weights import phases

ZERO, CONSTANT, VARYING = 0, 1, 2


@dataclass(frozen=True)
class Alive:
    """Channels of one stage's result.

    Attributes:
        varying: indices of the channels computed, ascending.
        constant: indices of the channels kept as one number each, ascending.
        tracked: for a batch norm in training: channels whose input is constant and whose running
            statistics reach an output outside training.
    """

    varying: Tensor
    constant: Tensor
    tracked: Tensor


def alive_channels(graph: ir.Graph, kept: dict[str, Tensor] | None) -> dict[ir.Node, Alive]:
    """Analyse a graph of stages.

    Args:
        graph: to analyse.
        kept: bool mask of every parameter by name, or None where all are kept.

    Returns:
        :class:`Alive` by node. Nodes whose result is no image [N, C, H, W] have all their channels.
    """
    status: dict[ir.Node, Tensor] = {}
    for node in graph.nodes:
        status[node] = _status(node, status, kept)
    wanted = {node: torch.zeros(_channels(node), dtype=torch.bool, device="cpu") for node in graph.nodes}
    wanted[graph.output][:] = True
    for node in reversed(graph.nodes):
        for source, want in zip(node.inputs, _wants(node, wanted[node], kept), strict=True):
            wanted[source] |= want
    alive = {}
    for node in graph.nodes:
        want, state = wanted[node], status[node]
        tracked = torch.zeros_like(want)
        if isinstance(node.stage, ir.Norm) and node.stage.tracks:
            tracked = want & _kept(kept, node.stage.weight, node.stage) & (status[node.inputs[0]] != VARYING)
        alive[node] = Alive(
            _where(want & (state == VARYING)), _where(want & (state == CONSTANT)), _where(tracked)
        )
    return alive


def _status(node: ir.Node, status: dict[ir.Node, Tensor], kept: dict[str, Tensor] | None) -> Tensor:
    stage, inputs = node.stage, [status[i] for i in node.inputs]
    if isinstance(stage, ir.UpConv):
        stage = stage.conv
    if isinstance(stage, ir.Conv):
        links = _links(kept, stage)  # [O, I]
        varies = (links & (inputs[0] == VARYING)).any(1)
        constant = (links & (inputs[0] == CONSTANT)).any(1)
        if stage.bias is not None:
            biased = _of(kept, stage.bias, stage.channels[1])
            constant |= biased[stage.bias_of(torch.arange(len(constant), device="cpu"))]
        return _merge(varies, constant)
    if isinstance(stage, ir.Norm):
        gamma, beta = _kept(kept, stage.weight, stage), _kept(kept, stage.bias, stage, missing=False)
        varies = (inputs[0] == VARYING) & gamma
        return _activated(_merge(varies, beta if stage.of_batch else beta | gamma), stage.act)
    if isinstance(stage, ir.GroupNorm):
        gamma, beta = _kept(kept, stage.weight, stage), _kept(kept, stage.bias, stage, missing=False)
        # Constant channels of a group differ from its mean, but for a group of one.
        moves = inputs[0] == VARYING if stage.groups == stage.channels else inputs[0] != ZERO
        return _activated(_merge(_in_groups(moves, stage) & gamma, beta), stage.act)
    if isinstance(stage, ir.PixelShuffle):
        parts = inputs[0].view(-1, stage.factor**2)
        source = node.inputs[0]
        same = isinstance(source.stage, ir.Conv) and source.stage.transposed == stage.factor
        if same and not (status[source.inputs[0]] == CONSTANT).any():
            return parts.amax(1)  # its constants are biases, the same for all phases
        return torch.where((parts == ZERO).all(1), ZERO, VARYING)
    if isinstance(stage, ir.Act):
        return _activated(inputs[0], stage)
    if isinstance(stage, ir.Pad) and stage.mode == "zeros" and any(stage.amount):
        return torch.where(inputs[0] == CONSTANT, VARYING, inputs[0])
    if isinstance(stage, ir.Cat):
        return torch.cat(inputs)
    if isinstance(stage, ir.Channels):
        return inputs[0][stage.first : stage.first + _channels(node)]
    if isinstance(stage, ir.Add):
        return torch.maximum(*inputs)
    if isinstance(stage, ir.PReLU | ir.Pad | ir.Box | ir.Pool | ir.Upsample | ir.Crop):
        return inputs[0]
    return torch.full((_channels(node),), VARYING, device="cpu")


def _activated(status: Tensor, act: ir.Act | None) -> Tensor:
    """Sigmoid alone lifts zero."""
    return (
        torch.where(status == ZERO, CONSTANT, status) if act is not None and act.kind == "sigmoid" else status
    )


def _wants(node: ir.Node, wanted: Tensor, kept: dict[str, Tensor] | None) -> list[Tensor]:
    stage = node.stage
    if isinstance(stage, ir.UpConv):
        stage = stage.conv
    if isinstance(stage, ir.Conv):
        return [_links(kept, stage)[wanted].any(0)]
    if isinstance(stage, ir.Norm):
        return [wanted & _kept(kept, stage.weight, stage)]
    if isinstance(stage, ir.Cat):
        return list(wanted.split([_channels(i) for i in node.inputs]))
    if isinstance(stage, ir.Channels):
        source = torch.zeros(_channels(node.inputs[0]), dtype=torch.bool, device="cpu")
        source[stage.first : stage.first + len(wanted)] = wanted
        return [source]
    if isinstance(stage, ir.Add):
        return [wanted, wanted]
    if isinstance(stage, ir.GroupNorm):
        return [_in_groups(wanted & _kept(kept, stage.weight, stage), stage)]
    if isinstance(stage, ir.PixelShuffle):
        return [wanted.repeat_interleave(stage.factor**2)]
    if isinstance(stage, ir.Act | ir.PReLU | ir.Pad | ir.Box | ir.Pool | ir.Upsample | ir.Crop):
        return [wanted]
    return [torch.ones(_channels(i), dtype=torch.bool, device="cpu") for i in node.inputs]


def _links(kept: dict[str, Tensor] | None, conv: ir.Conv) -> Tensor:
    """Which output reads which input channel: bool [O, I]."""
    inputs, outputs = conv.channels
    if kept is None:
        return torch.ones(outputs, inputs, dtype=torch.bool, device="cpu")
    weight = phases(kept[conv.weight], conv.transposed, absent=False)
    return weight[:, conv.first : conv.first + inputs].flatten(2).any(2)


def _kept(
    kept: dict[str, Tensor] | None, name: str | None, norm: ir.Norm | ir.GroupNorm, *, missing: bool = True
) -> Tensor:
    """Which channels of a norm have the parameter ``name``; ``missing`` where it has none."""
    if name is None:
        return torch.full((norm.channels,), missing, device="cpu")
    if kept is None:
        return torch.ones(norm.channels, dtype=torch.bool, device="cpu")
    first = norm.first if isinstance(norm, ir.Norm) else 0
    return kept[name][first : first + norm.channels]


def _in_groups(flags: Tensor, norm: ir.GroupNorm) -> Tensor:
    """Channels in whose group any channel has its flag set."""
    size = norm.channels // norm.groups
    return flags.view(norm.groups, size).any(1).repeat_interleave(size)


def _of(kept: dict[str, Tensor] | None, name: str, channels: int) -> Tensor:
    return torch.ones(channels, dtype=torch.bool, device="cpu") if kept is None else kept[name]


def _merge(varies: Tensor, constant: Tensor) -> Tensor:
    return torch.where(varies, VARYING, torch.where(constant, CONSTANT, ZERO))


def _where(flags: Tensor) -> Tensor:
    return torch.nonzero(flags).flatten()


def _channels(node: ir.Node) -> int:
    return node.shape[1] if len(node.shape) == 4 else 0
