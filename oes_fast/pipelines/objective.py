"""What a run makes small: how the images that a generator gives are compared with what was measured.

A pipeline asks for a generator's image and its loss by :func:`evaluate` alone. What it compares with what is
an :class:`Objective`: another forward operator, or another loss, is another implementation of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast._checks import described
from oes_fast.errors import InputError
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.differences import describe_image
from oes_fast.pipelines.functions import GeneratorFunction
from oes_fast.rewrite.run.context import FusedLoss


class Objective(Protocol):
    """A scalar of the image [1, C, H, W] that a generator gives, by which its weights are differentiated."""

    @property
    def target(self) -> Tensor:
        """What was measured; of the dtype and on the device of the image."""

    def measured(self, image: Tensor) -> Tensor:
        """The forward operator: what would be measured of ``image``, in the shape of the target."""

    def check(self, output: object) -> Tensor:
        """``output`` of a network, if it is an image that the objective takes.

        Raises:
            InputError: saying what came and what to do.
        """

    def loss(self, image: Tensor) -> Tensor:
        """Scalar, differentiable in ``image``, without waiting for the device: CUDA graphs record it."""

    def fused_loss(self) -> FusedLoss | None:
        """The same loss as one that the last layer may take along, new in every call; None where none can."""

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON values: a checkpoint of another one is refused."""

    def words(self) -> dict[str, str]:
        """What to say of settings that are hashes, by their key."""


@dataclass(frozen=True, eq=False)
class SquaredError:
    """mean((image - target)^2), as published: the image itself is what was measured.

    Attributes:
        target: noisy image [1, C, H, W].
    """

    target: Tensor

    def measured(self, image: Tensor) -> Tensor:
        """``image``."""
        return image

    def check(self, output: object) -> Tensor:
        """``output``, if it is a tensor of the shape and dtype of the noisy image."""
        target = self.target
        wanted = (
            f"net: expected an output of the noisy image's shape {tuple(target.shape)} and {target.dtype}"
        )
        if not isinstance(output, Tensor):
            raise InputError(f"{wanted}, got {described(output)}")
        if output.shape != target.shape:
            raise InputError(f"{wanted}, got {tuple(output.shape)}")
        if output.dtype != target.dtype:
            raise InputError(f"{wanted}, got {output.dtype}")
        return output

    def loss(self, image: Tensor) -> Tensor:
        """Mean squared error to the target."""
        return F.mse_loss(image, self.target)

    def fused_loss(self) -> FusedLoss:
        """The mean squared error, which the kernels' last layer takes along."""
        return FusedLoss(self.target)

    def settings(self) -> dict[str, Any]:
        """A hash of the noisy image."""
        return {"noisy": digest(self.target)}

    def words(self) -> dict[str, str]:
        """Its size."""
        return {"noisy": describe_image(self.target)}


def evaluate(
    objective: Objective, function: GeneratorFunction, weights: Tensor, *, update_stats: bool
) -> tuple[Tensor, Tensor]:
    """The generator's image and its loss, which the last layer takes along where both can.

    Args:
        objective: what to make small.
        function: the generator.
        weights: its weights; the loss is differentiable in them if they require a gradient.
        update_stats: move the running statistics.

    Returns:
        (image [1, C, H, W], scalar). The image may be without a gradient where the loss was taken along.

    Raises:
        InputError: the network's output is no image that fits, or has no gradient to the parameters.
    """
    fused = objective.fused_loss()
    image = objective.check(function(weights, update_stats=update_stats, fused_loss=fused))
    loss = objective.loss(image) if fused is None or fused.loss is None else fused.loss
    if weights.requires_grad and torch.is_grad_enabled() and not loss.requires_grad:
        raise InputError("net: expected an output with a gradient to the parameters, got one without")
    return image, loss


def zero_loss(objective: Objective) -> Tensor:
    """What stands for the loss before the first evaluation: 0 of the target's dtype and device."""
    return torch.zeros((), dtype=objective.target.dtype, device=objective.target.device)
