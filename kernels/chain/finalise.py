"""What the last program of a launch does with the sums that all programs have left in memory.

They are added in a fixed order, so that every run gives the same bits, and no launch of its own is needed.
From the partial sums on everything is float64, as in csrc/cuda/norm/finalise.h. One program works alone here:
it takes many channels and chunks at once, and the fewer chunks there are, the sooner it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from oes_fast.kernels.chain.finalise_norm import norm_backward, norm_forward
from oes_fast.kernels.chain.finalise_shift import shift_backward
from oes_fast.kernels.chain.finalise_sums import (
    CHANNELS,
    CHUNKS,
    PIXELS,
    at_once,
    channel_sums,
    partials_at,
    size_of,
)
from oes_fast.kernels.chain.kinds import LOSS, NORM_BACKWARD, NORM_FORWARD, SHIFT_BACKWARD
from torch import Tensor


class NormForward(NamedTuple):
    """Arguments of ``norm_forward``: N networks, T the dtype of the weights.

    All but ``running_mean`` and ``running_var`` are tensors in any case, of one element where there is none.
    """

    partials: Tensor  # float64 [N, channels, chunks, 3]: pixels, their mean, sum of squares about it
    sizes: Tensor  # see finalise_sizes
    settings: Tensor  # see finalise_settings; its slope is that of the activation behind this norm
    weights: Tensor  # T [N, weights]
    gamma: Tensor  # int32 [channels]: index of a weight or -1
    beta: Tensor  # the same
    prologue: Tensor  # T [N, channels, 6], written
    rstd: Tensor  # float64 [N, channels], written
    running_mean: Tensor | None  # T [N, running_stride], updated; None: left alone
    running_var: Tensor | None  # the same
    running_stride: int  # 0 where N is 1
    stats_index: Tensor  # int32 [channels]: of the channels in the running statistics
    tracked: Tensor  # int32 [tracked]: constants whose statistics are kept; -1 for zero
    tracked_stats_index: Tensor  # int32 [tracked]
    betas: Tensor  # int32 [constants]: of the constant channels of the result
    constants: Tensor  # T [N, constants], written
    constants_before: Tensor  # T [N, constants of the first norm]; of a second norm
    shift_bias: Tensor  # as Loss has them, of the convolution before the first norm
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor


class NormBackward(NamedTuple):
    """Arguments of ``norm_backward``."""

    partials: (
        Tensor  # float64 [N, channels, chunks, 3]: sums of v and of v * (x - mean); the third is not used
    )
    sizes: Tensor
    gamma: Tensor
    beta: Tensor
    prologue: Tensor  # as norm_forward has left it
    grads: Tensor  # T [N, channels, 4], written
    rstd: Tensor  # as norm_forward has left it
    grad_weights: Tensor  # T [N, weights], added to


class Loss(NamedTuple):
    """Arguments of :func:`mean_loss`, and of ``shift_of`` where there is no loss."""

    partials: Tensor | None  # float64 [N, channels, chunks, 3]: sum of squared errors; two are not used
    sizes: Tensor
    settings: Tensor
    weights: Tensor  # T [N, weights]
    loss: Tensor | None  # T [N], written
    shift_bias: Tensor  # see shift_tables
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor  # T [N, constants]: of the image that the convolution reads


class ShiftBackward(NamedTuple):
    """Arguments of ``shift_backward``."""

    partials: Tensor  # float64 [N, channels, chunks, 3]: sum of the gradient; two are not used
    sizes: Tensor
    settings: Tensor  # its slope is that of the constants' activation
    weights: Tensor  # T [N, weights]
    grad_weights: Tensor  # T [N, weights], added to
    shift_bias: Tensor
    shift_first: Tensor
    shift_taps: Tensor
    shift_constants: Tensor
    shift_betas: Tensor  # int32 [constants]: index of the beta that each is the activation of


def finalise_sizes(
    *,
    channels: int,
    chunks: int,
    pixels: int,
    weights: int,
    device: torch.device | str,
    tracked: int = 0,
    constants: int = 0,
    constants_before: int = 0,
    shift_outputs: int = 0,
    shift_constants: int = 0,
    shift_taps: int = 0,
) -> Tensor:
    """The int32 tensor ``sizes`` of any of the above.

    Args:
        channels: that vary, of the image that the sums are of.
        chunks: partial sums of a channel.
        pixels: of a channel.
        weights: length of a network's flat vector.
        device: of the tensor.
        tracked: constant channels whose running statistics are kept.
        constants: constant channels of the result of this norm.
        constants_before: of a second norm: those of the first.
        shift_outputs: length of the bias, as :func:`shift_tables` takes it.
        shift_constants: constant channels of the image that the convolution reads.
        shift_taps: taps of those, of all outputs.
    """
    numbers = (
        channels, chunks, pixels, weights, tracked, constants, constants_before,
        shift_outputs, shift_constants, shift_taps,
    )  # fmt: skip
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def finalise_settings(
    *,
    device: torch.device | str,
    eps: float = 0.0,
    momentum: float = 0.0,
    copies: float = 1.0,
    factor: float = 1.0,
    slope: float = 1.0,
) -> Tensor:
    """The float64 tensor ``settings`` of any of the above: a kernel's own arguments would round them.

    Args:
        device: of the tensor.
        eps: of a norm.
        momentum: of its running statistics.
        copies: pixels that stand for each.
        factor: of the weights of constant channels: the convolution's scale, times 4 where it has a box.
        slope: of the activation of constant channels: of those written, or of those read.
    """
    return torch.tensor((eps, momentum, copies, factor, slope), dtype=torch.float64, device=device)


def shift_tables(
    bias: Sequence[int], constant_taps: Sequence[int], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """What a convolution adds to all pixels of an output: its bias, and what constant input channels add.

    Args:
        bias: of every output, those that vary first: index of a weight or -1.
        constant_taps: (output, index of the weight, number of the constant) of every kept weight, flat.
        device: of the tensors.

    Returns:
        int32 (shift_bias [outputs], shift_first [outputs + 1]: of each output's taps, shift_taps [taps, 3]:
        index of the weight, number of the constant, output; one row where there are none).
    """
    taps = torch.tensor(constant_taps, dtype=torch.int32).reshape(-1, 3)
    taps = taps[torch.sort(taps[:, 0], stable=True).indices][:, [1, 2, 0]].contiguous()
    counts = torch.bincount(taps[:, 2].long(), minlength=len(bias))
    first = torch.zeros(len(bias) + 1, dtype=torch.int32)
    first[1:] = counts.cumsum(0)
    if not constant_taps:
        taps = torch.zeros(1, 3, dtype=torch.int32)
    return torch.tensor(bias, dtype=torch.int32, device=device), first.to(device), taps.to(device)


@triton.jit
def is_last(ticket_ptr, count):
    """Whether this program is the last of ``count`` to ask; then the ticket, an int32, is 0 again.

    What the programs have stored before is there for the last one to load, with ``cache_modifier=".cg"``. All
    of a program's threads must take part.
    """
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def mean_loss(f, network, COUNT: tl.constexpr):
    """Mean squared error of all channels; ``f`` is a Loss, COUNT how many to take at once if not too many."""
    AT_ONCE: tl.constexpr = at_once(COUNT)
    channels, chunks = size_of(f, CHANNELS), size_of(f, CHUNKS)
    total = tl.zeros((AT_ONCE,), tl.float64)
    for begin in range(0, channels, AT_ONCE):
        channel = begin + tl.arange(0, AT_ONCE)
        at = partials_at(network, channel, channels, chunks)
        total += channel_sums(f, at, chunks, channel < channels)
    elements = channels.to(tl.float64) * size_of(f, PIXELS).to(tl.float64)
    tl.store(f.loss + network, (tl.sum(total) / elements).to(f.loss.dtype.element_ty))


@triton.jit
def finalise(
    f,
    network,
    first_channel,
    COUNT: tl.constexpr,
    KIND: tl.constexpr,
    SECOND: tl.constexpr,
    ACT: tl.constexpr,
):
    """What KIND of :mod:`kinds` says, for COUNT channels from ``first_channel`` on.

    Called where :func:`is_last` holds: of all programs that add to these channels for a norm; of all programs
    of the network for the loss and the shift, which take all channels.

    Args:
        f: the arguments above that belong to KIND.
        network: int32.
        first_channel: int32; who has 0 also does what is not a channel's own.
        COUNT: a power of two; channels that there are not are left out.
        KIND: NORM_FORWARD, NORM_BACKWARD, LOSS or SHIFT_BACKWARD.
        SECOND: of the second norm behind a convolution.
        ACT: of the constants: those written of a norm forward, those read of the shift.
    """
    if KIND == NORM_FORWARD:
        norm_forward(f, network, first_channel, COUNT, SECOND, ACT)
    elif KIND == NORM_BACKWARD:
        norm_backward(f, network, first_channel, COUNT, SECOND)
    elif KIND == LOSS:
        mean_loss(f, network, COUNT)
    elif KIND == SHIFT_BACKWARD:
        shift_backward(f, network, COUNT, ACT)
