"""Which channels of a network a mask leaves alive."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast.analysis.layers import flat_mask, row_names
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, check_entry
from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout
from oes_fast.mask import Mask
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import alive_channels
from oes_fast.rewrite.tracing.trace import trace

_SIDE = 32  # pixels of the image that is traced: what is alive does not depend on it


@dataclass(frozen=True)
class LiveChannels:
    """What becomes of the output channels of one convolution.

    Attributes:
        name: of the layer, as :attr:`Layer.name`.
        channels: output channels there are.
        alive: that depend on the input and change the image.
        constant: that change the image, by one number each: nothing that they read depends on the input.
        empty: of those that are dead, filters of which the mask keeps no weight at all, bias included.
    """

    name: str
    channels: int
    alive: int
    constant: int
    empty: int

    @property
    def dead(self) -> int:
        """Channels that do not change the image: zero, or read by nothing that reaches it."""
        return self.channels - self.alive - self.constant


@torch.no_grad()
def dead_channels(
    net: nn.Module, mask: Mask | None = None, z: Tensor | None = None, *, entry: Entry | None = None
) -> list[LiveChannels]:
    """Channels that are alive, constant and dead in every convolution, as the rewriting finds them.

    A channel is dead where its filter is empty, but also where the mask drops the scale of the batch norm
    behind it, where nothing reads it, or where all that it reads is dead: what is left out of the network
    without changing it (:mod:`oes_fast.rewrite.liveness`). In training mode a batch norm makes a channel that
    is constant dead, as it subtracts the mean.

    Args:
        net: generator of standard layers, as :func:`oes_fast.sparsify` takes; on any device, "meta" too.
        mask: which weights are kept, None for all.
        z: an input [N, C, H, W], of which only the shape counts; None for an image of 32 x 32 with the
            channels that the first convolution reads.
        entry: which of several results of the network is the image.

    Returns:
        The convolutions in parameters() order. What is not traced as a convolution (a grouped one,
        MaskedConv2d, a linear layer) is run as it is and has no entry.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        TraceError: the network's code cannot be traced.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> keep = torch.arange(sum(p.numel() for p in net.parameters())) % 50 == 0
        >>> first = oes.analysis.dead_channels(net, oes.Mask.from_flat(net, keep))[0]
        >>> first.channels, first.alive + first.constant + first.dead
        (8, 8)
    """
    check_entry(entry)
    flat = flat_mask(net, mask)
    kept = FlatLayout.of(net).views(flat)
    if z is None:
        first = next((m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), None)
        if first is None:
            raise InputError("z: expected an input for a network without a Conv2d, got None")
        weight = next(net.parameters())
        z = torch.zeros(
            1, first.in_channels, _SIDE, _SIDE, dtype=weight.dtype, device=weight.device, requires_grad=False
        )
    graph = trace(copy_network(net).train(), z, entry=entry)
    alive = alive_channels(graph, None if mask is None else kept)
    varying: dict[str, Tensor] = {}
    constant: dict[str, Tensor] = {}
    empty: dict[str, int] = {}
    for node in graph.nodes:
        stage = node.stage
        if not isinstance(stage, ir.Conv):
            continue
        filters = kept[stage.weight]
        if stage.transposed:  # [I, O, kH, kW], and every channel is computed pixel by pixel of s x s
            filters = filters.transpose(0, 1)
        for found, indices in ((varying, alive[node].varying), (constant, alive[node].constant)):
            flags = found.setdefault(stage.weight, torch.zeros(len(filters), dtype=torch.bool, device="cpu"))
            flags[stage.bias_of(indices)] = True  # a layer that is called twice is alive if one call is
        nothing = ~filters.flatten(1).any(1)
        empty[stage.weight] = int((nothing if stage.bias is None else nothing & ~kept[stage.bias]).sum())
    return [
        LiveChannels(
            name,
            len(varying[weight]),
            int(varying[weight].sum()),
            int((constant[weight] & ~varying[weight]).sum()),
            empty[weight],
        )
        for weight, name in row_names(net).items()
        if weight in varying
    ]
