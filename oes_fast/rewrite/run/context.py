"""What the stages of a plan hand to one another, and what one pass of a plan shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from oes_fast.ops.running_stats import LayerStats
from oes_fast.rewrite import ir


@dataclass(frozen=True)
class Value:
    """Result of a stage.

    Attributes:
        x: the channels that vary, [N, varying, H, W]; any tensor where the result is no image.
        constant: one number for each constant channel, [constant], or None where there are none.
        shift: [varying], still to be added to ``x``; only between a convolution and a batch norm.
    """

    x: Tensor
    constant: Tensor | None = None
    shift: Tensor | None = None


@dataclass
class FusedLoss:
    """The loss to take along with the last layer.

    Attributes:
        target: image to compare the output with.
        weight: of each squared error, of the target's shape and contiguous; None for 1.
        loss: mean (weighted) squared error, where the last layer took it along; else None.
    """

    target: Tensor
    weight: Tensor | None = None
    loss: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What one pass of a plan shares.

    Attributes:
        z: input.
        weights: kept weights, flat.
        blocks: weights, as :class:`CompactWeights` gives them.
        buffers: running statistics by name.
        update_stats: update them in place.
        fused_loss: the loss to take along, if one is asked for.
        counted: names of the batch counts to add one to when all stages have run.
        moved: running statistics to move then.
    """

    z: Tensor
    weights: Tensor
    blocks: list[Tensor]
    buffers: Mapping[str, Tensor]
    update_stats: bool
    fused_loss: FusedLoss | None = None
    counted: list[str] = field(default_factory=list)
    moved: list[LayerStats] = field(default_factory=list)


_UNITS = WeakTensorKeyDictionary()  # what unit_gradient has made and somebody still holds


def unit_gradient(loss: Tensor) -> Tensor:
    """Ones like ``loss``, to be kept and handed to :func:`torch.autograd.grad` in every step.

    Whoever finds that the gradient of its result is this very tensor, by :func:`is_unit_gradient`, need not
    multiply by it; and autograd, which would fill a tensor with ones in every step, does not.
    """
    ones = torch.ones_like(loss, requires_grad=False)
    _UNITS[ones] = True
    return ones


def is_unit_gradient(grad: Tensor) -> bool:
    """Whether a gradient is known to be ones, without reading it."""
    return grad in _UNITS


StageFunction = Callable[[Context, list[Value]], Value]


def activate(x: Tensor, act: ir.Act, *, fresh: bool = False) -> Tensor:
    """The activation of ``x``; in place where ``x`` is ``fresh``, read by nobody else."""
    if act.kind == "leaky_relu":
        return F.leaky_relu(x, act.value, inplace=fresh and act.value > 0)
    if act.kind == "relu":
        return F.relu(x, inplace=fresh)
    if act.kind == "elu":
        return F.elu(x, act.value)
    if act.kind == "silu":
        return F.silu(x)
    if act.kind in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="none" if act.kind == "gelu" else "tanh")
    if act.kind == "sigmoid":
        return torch.sigmoid(x)
    if act.kind == "tanh":
        return torch.tanh(x)
    return x


def index_among(have: Tensor, wanted: Tensor, device: torch.device) -> Tensor | None:
    """Index of each of the channels ``wanted`` among ``have``; None where they are the same."""
    return None if torch.equal(have, wanted) else torch.searchsorted(have, wanted).to(device)


def select(x: Tensor, index: Tensor | None, dim: int) -> Tensor:
    """``x`` at the given indices of a dimension; all of it for None."""
    return x if index is None else x.index_select(dim, index)
