"""What a run makes small: how the images that a generator gives are compared with what was measured.

A pipeline asks for a generator's image and its loss by :func:`evaluate` alone. What it compares with what is
an :class:`Objective`: :class:`SquaredError` of the image itself, with or without weights, which the kernels'
last layer takes along, or :class:`oes_fast.pipelines.measurement.Measurement` for any operator and loss.
:func:`make_objective` chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast._checks import check_scale, described
from oes_fast.errors import InputError
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.differences import describe_image
from oes_fast.pipelines.functions import GeneratorFunction
from oes_fast.pipelines.measurement import Measurement
from oes_fast.rewrite.run.context import FusedLoss


class HasOperator(Protocol):
    """An object with a forward operator, such as deepinv's physics."""

    def A(self, x: Tensor) -> Any:
        """What is measured of an image."""


Forward = Callable[[Tensor], Any] | HasOperator
Loss = Callable[[Tensor, Tensor], Tensor]


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

    def spreads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """How much vary what is measured of each image, and each target: [N], 0 for flat images."""


@dataclass(frozen=True, eq=False)
class SquaredError:
    """mean(weight * (image - target)^2), as published without weight: the image itself is what was measured.

    Attributes:
        target: noisy image [1, C, H, W].
        weight: of each pixel, >= 0, shape [1, C, H, W], contiguous; None for 1.
    """

    target: Tensor
    weight: Tensor | None = None

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
        """Mean squared error to the target, over all pixels, those of weight 0 too."""
        if self.weight is None:
            return F.mse_loss(image, self.target)
        return (self.weight * (image - self.target).square()).mean()

    def fused_loss(self) -> FusedLoss:
        """The mean squared error, which the kernels' last layer takes along."""
        return FusedLoss(self.target, self.weight)

    def settings(self) -> dict[str, Any]:
        """Hashes of the noisy image and of the weights."""
        weight = {} if self.weight is None else {"weight": digest(self.weight)}
        return {"noisy": digest(self.target), **weight}

    def words(self) -> dict[str, str]:
        """Their sizes."""
        weight = {} if self.weight is None else {"weight": describe_image(self.weight)}
        return {"noisy": describe_image(self.target), **weight}

    def spreads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations within each image, pixels of weight 0 left out, mean over its channels: [N]."""
        first, second = (self._deviation(each.detach()) for each in (image, self.target))
        return first, second

    def _deviation(self, images: Tensor) -> Tensor:
        images = images.flatten(2)  # the pixels, however many dimensions they have
        if self.weight is None:
            return images.std(dim=2, correction=0).mean(dim=1)  # 0, not NaN, for a single pixel
        weight = self.weight.flatten(2)
        total = weight.sum(dim=2)
        seen = total > 0
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        mean = (weight * images).sum(dim=2) / total
        squares = (weight * (images - mean[..., None]).square()).sum(dim=2) / total
        return (squares.sqrt() * seen).sum(dim=1) / seen.sum(dim=1).clamp_min(1)


def make_objective(
    noisy: Tensor,
    *,
    forward: object = None,
    loss: object = None,
    weight: object = None,
    tv: float = 0.0,
    clean: Tensor | None = None,
) -> Objective:
    """What a run makes small; see :func:`oes_fast.train_sparse` for the arguments.

    Args:
        noisy: what was measured, checked.
        forward: operator from image to measurement, or None.
        loss: of (measured, noisy), or None.
        weight: of each squared error, or None.
        tv: weight of the image's total variation.
        clean: image to check the network's against, or None.

    Raises:
        InputError: an argument does not fit, with its name.
    """
    tv = check_scale("tv", tv, noisy.real.dtype, minimum=0.0)
    if loss is not None and weight is not None:
        raise InputError("weight: expected none beside loss, which may weigh what it compares, got both")
    scale = None if weight is None else _weights(weight, noisy)
    target = noisy.detach().resolve_conj().resolve_neg()
    if forward is not None and loss is None and tv == 0.0:
        known = _known_pixels(forward, target)
        if known is not None:
            return SquaredError(target, known if scale is None else known * scale)
    if forward is None and loss is None and tv == 0.0:
        return SquaredError(target, scale)
    return Measurement(
        target,
        target.real.dtype,
        forward=forward,
        loss=loss,
        weight=scale,
        tv=tv,
        clean_shape=None if clean is None else tuple(clean.shape),
    )


def _weights(weight: object, noisy: Tensor) -> Tensor:
    """``weight`` of the shape of ``noisy`` and of its real dtype, contiguous.

    Raises:
        InputError: no such weights.
    """
    dtype = noisy.real.dtype
    if not isinstance(weight, Tensor):
        raise InputError(f"weight: expected a torch.Tensor, got {type(weight).__name__}")
    if weight.dtype not in (dtype, torch.bool):
        raise InputError(f"weight: expected {dtype} as noisy, or torch.bool, got {weight.dtype}")
    if weight.device != noisy.device:
        raise InputError(f"weight: expected a tensor on {noisy.device}, got one on {weight.device}")
    try:
        fits = torch.broadcast_shapes(weight.shape, noisy.shape) == noisy.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"weight: expected a shape that expands to noisy's {tuple(noisy.shape)}, got "
            f"{tuple(weight.shape)}"
        )
    values = weight.detach().to(dtype)
    bad = values.numel() - int((torch.isfinite(values) & (values >= 0)).sum())
    if bad:
        raise InputError(
            f"weight: expected finite numbers >= 0, got {bad} negative, NaN or infinite of {values.numel()}"
        )
    if not bool((values > 0).any()):
        raise InputError("weight: expected one above 0 at least, got zeros alone")
    # Memory of its own: what the caller does to his tensor later is not to reach the run.
    return values.expand(noisy.shape).clone(memory_format=torch.contiguous_format)


def _known_pixels(forward: object, target: Tensor) -> Tensor | None:
    """0 and 1 by pixel, where ``forward`` is deepinv's operator of inpainting, and does nothing else."""
    if getattr(forward, "__name__", None) == "A":
        forward = getattr(forward, "__self__", forward)
    physics = sys.modules.get("deepinv.physics")  # who has such an operator has imported it
    kinds = tuple(kind for name in ("Inpainting", "Demosaicing") if (kind := getattr(physics, name, None)))
    if type(forward) not in kinds or target.is_complex():
        return None
    mask = getattr(forward, "mask", None)
    if (
        not isinstance(mask, Tensor)
        or mask.device != target.device
        or not bool(((mask == 0) | (mask == 1)).all())
    ):
        return None
    try:
        known = mask.to(target.dtype).expand(target.shape).clone(memory_format=torch.contiguous_format)
        probe = torch.linspace(0.5, 1.0, target.numel(), dtype=target.dtype, device=target.device)
        probe = probe.view(target.shape)
        with torch.no_grad():
            same = torch.equal(forward.A(probe), known * probe)  # type: ignore[attr-defined]
    except (RuntimeError, TypeError, ValueError):
        return None  # another shape, dtype or device: the run says it
    return known if same and bool(known.any()) else None


def prepare(objective: Objective, image: Callable[[], object], device: torch.device) -> None:
    """Let an objective take the fingerprints that its settings need.

    Args:
        objective: to prepare.
        image: gives what the network does; called where it is needed, without gradients, and the random
            numbers that it draws are drawn again later.
        device: of the network.
    """
    if isinstance(objective, Measurement):
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            objective.prepare(objective.check(image()))


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
    """What stands for the loss before the first evaluation: 0 of the target's precision and device."""
    return torch.zeros((), dtype=objective.target.real.dtype, device=objective.target.device)
