"""Objectives of any forward operator and loss: what an inverse problem makes small.

What comes from the caller, an operator or a loss, is called here alone; what it does wrong is said by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import described
from oes_fast.errors import InputError, OESError
from oes_fast.ops.total_variation import total_variation
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.differences import describe_image
from oes_fast.pipelines.fingerprints import name_of, of_loss, of_operator

_MOST_CHANNELS = 8  # of an image whose channels are held against flat ones each for itself


class Measurement:
    """loss(forward(image), noisy) + tv * total variation of the image.

    Args:
        target: what was measured, of any shape, real or complex.
        dtype: of the image, and of the loss.
        forward: operator from image to measurement, or None for the image itself.
        loss: of (measured, target), or None for the mean squared absolute error.
        weight: real, of the target's shape, or None: of each squared error.
        tv: weight of the total variation, >= 0.
        clean_shape: of the clean image, which the network's is to have; None for any.

    Attributes:
        target: as given.

    Raises:
        InputError: ``forward`` or ``loss`` is nothing to call.
    """

    def __init__(
        self,
        target: Tensor,
        dtype: torch.dtype,
        *,
        forward: object = None,
        loss: object = None,
        weight: Tensor | None = None,
        tv: float = 0.0,
        clean_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.target = target
        self._dtype = dtype
        self._operator = None if forward is None else operator_of(forward)
        self._forward, self._own_loss = forward, None if loss is None else _callable("loss", loss)
        self._loss, self._weight, self._tv, self._clean_shape = loss, weight, tv, clean_shape
        self._tried = False  # whether values were looked at, for which a GPU is waited for
        self._fingerprints: dict[str, Any] = {}

    @property
    def weight(self) -> Tensor | None:
        """Of each squared error, or None."""
        return self._weight

    @property
    def has_own_loss(self) -> bool:
        """Whether another loss than the squared error was given."""
        return self._own_loss is not None

    def weighted(self, weight: Tensor) -> Measurement:
        """The same with these weights of the squared errors."""
        other = copy.copy(self)
        other._weight, other._fingerprints = weight, dict(self._fingerprints)
        return other

    def measured(self, image: Tensor) -> Tensor:
        """What the operator gives for ``image``, of the target's shape, dtype and device.

        Raises:
            InputError: naming ``forward``, if it gives something else, fails, or loses the gradient.
        """
        if self._operator is None:
            if image.shape != self.target.shape or image.dtype != self.target.dtype:
                raise InputError(
                    f"net: expected an output of the noisy image's shape {tuple(self.target.shape)} and "
                    f"{self.target.dtype}, got {tuple(image.shape)} and {image.dtype}; a forward operator "
                    "would lead from one to the other"
                )
            return image
        version = image._version
        wanted = f"forward: expected a measurement of noisy's shape {tuple(self.target.shape)}"
        measured = _call("forward", "the network's image", self._operator, self._forward, image)
        if not isinstance(measured, Tensor):
            raise InputError(f"{wanted}, one tensor, got {described(measured, of_network=False)}")
        if measured.shape != self.target.shape:
            raise InputError(f"{wanted}, got {tuple(measured.shape)} of an image {tuple(image.shape)}")
        if measured.dtype != self.target.dtype:
            raise InputError(f"{wanted} and {self.target.dtype}, got {measured.dtype}")
        if measured.device != self.target.device:
            raise InputError(
                f"{wanted} on {self.target.device}, where the image is, got one on {measured.device}"
            )
        if image._version != version:
            raise InputError(
                "forward: expected to leave the image as it is, got one that changes it in place; "
                "let it begin with image.clone()"
            )
        if torch.is_grad_enabled() and image.requires_grad and not measured.requires_grad:
            raise InputError(
                "forward: expected a measurement with a gradient to the image, got one without: it may "
                "detach, or compute outside of torch"
            )
        return measured

    def check(self, output: object) -> Tensor:
        """``output``, if it is one real tensor of the network's dtype and of the clean image's shape."""
        wanted = f"net: expected an image of {self._dtype} as output"
        if not isinstance(output, Tensor):
            raise InputError(f"{wanted}, got {described(output)}")
        if output.dtype != self._dtype:
            raise InputError(f"{wanted}, got {output.dtype}")
        if self._clean_shape is not None and output.shape != self._clean_shape:
            raise InputError(
                f"clean: expected the shape of the network's image {tuple(output.shape)}, got "
                f"{tuple(self._clean_shape)}"
            )
        return output

    def loss(self, image: Tensor) -> Tensor:
        """Scalar of the image's dtype; the first time, what the caller's code gives is checked for NaN.

        Raises:
            InputError: naming ``forward`` or ``loss``.
        """
        measured = self.measured(image)
        loss = self._of(measured)
        if not self._tried:
            self._tried = True
            self._check_finite(image.detach(), measured.detach(), loss.detach())
        return loss if self._tv == 0.0 else loss + self._tv * total_variation(image)

    def fused_loss(self) -> None:
        """None: no layer takes it along."""

    def prepare(self, image: Tensor) -> None:
        """Take the fingerprints of operator and loss that :meth:`settings` is to have.

        Args:
            image: of the network, any values.
        """
        if self._operator is not None:
            found = of_operator(self._operator, image)
            self._fingerprints["forward"] = name_of(self._forward) if found is None else found
        if self._own_loss is not None:
            found = of_loss(self._of, self.target)
            self._fingerprints["loss"] = name_of(self._loss) if found is None else found

    def settings(self) -> dict[str, Any]:
        """Hashes of measurement and weight, and the fingerprints, which :meth:`prepare` takes."""
        return {
            "noisy": digest(self.target),
            **self._fingerprints,
            **({} if self._weight is None else {"weight": digest(self._weight)}),
            **({} if self._tv == 0.0 else {"tv": self._tv}),
        }

    def words(self) -> dict[str, str]:
        """The measurement's size, and the names of operator and loss."""
        return {
            "noisy": describe_image(self.target),
            **({} if self._forward is None else {"forward": name_of(self._forward)}),
            **({} if self._loss is None else {"loss": name_of(self._loss)}),
            **({} if self._weight is None else {"weight": describe_image(self._weight)}),
        }

    def spreads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """How far the measurements of ``image``, and the target, are from those of any flat image.

        Of all together, [1]: root mean square of what is left of each when the measurements of flat images,
        of one value in each channel, are fitted to it: of the operator that changes nothing, the standard
        deviation.
        """
        scale = None if self._weight is None else self._weight.sqrt()
        with torch.no_grad():
            measured, target = (
                _real(each if scale is None else scale * each) for each in (self.measured(image), self.target)
            )
            try:
                flat = [self.measured(each) for each in _flat_images(image)]
                basis = torch.stack([_real(each if scale is None else scale * each) for each in flat], 1)
                inverse = torch.linalg.pinv(basis.T @ basis, hermitian=True)
                left = [each - basis @ (inverse @ (basis.T @ each)) for each in (measured, target)]
            except Exception:  # an operator that takes no such image is no reason to lose a result
                left = [each - each.mean() for each in (measured, target)]
        first, second = (each.square().mean().sqrt().unsqueeze(0) for each in left)
        return first, second

    def _of(self, measured: Tensor) -> Tensor:
        if self._own_loss is None:
            error = measured - self.target
            squares = error.real.square() + error.imag.square() if error.is_complex() else error.square()
            return (squares if self._weight is None else self._weight * squares).mean()
        # Until a call was looked at, a copy: the caller's tensor is not to change before that is refused.
        target = self.target if self._tried else self.target.clone()
        version = target._version, measured._version
        loss = _call("loss", "measured and noisy", self._own_loss, self._loss, measured, target)
        if (target._version, measured._version) != version:
            raise InputError(
                "loss: expected to leave measured and noisy as they are, got one that changes them"
            )
        if not isinstance(loss, Tensor):
            raise InputError(f"loss: expected a scalar, one tensor, got {described(loss, of_network=False)}")
        if loss.numel() != 1:
            raise InputError(
                f"loss: expected a scalar, got a tensor of shape {tuple(loss.shape)}; take its mean"
            )
        if not loss.is_floating_point():
            raise InputError(f"loss: expected a real scalar, got one of {loss.dtype}")
        if loss.device != measured.device:
            raise InputError(f"loss: expected a scalar on {measured.device}, got one on {loss.device}")
        if torch.is_grad_enabled() and measured.requires_grad and not loss.requires_grad:
            raise InputError("loss: expected a scalar with a gradient to what is measured, got one without")
        return loss.reshape(()).to(self._dtype)

    def _check_finite(self, image: Tensor, measured: Tensor, loss: Tensor) -> None:
        if not bool(torch.isfinite(image).all()):
            return  # it is the network's fault, which the loop says
        bad = measured.numel() - int(torch.isfinite(measured).sum())
        if bad:
            raise InputError(
                f"forward: expected a finite measurement of a finite image, got {bad} NaN or infinite of "
                f"{measured.numel()}"
            )
        if self._own_loss is not None and not bool(torch.isfinite(loss)):
            raise InputError(f"loss: expected a finite number of a finite measurement, got {float(loss)}")


def operator_of(forward: object) -> Callable[[Tensor], Any]:
    """What to call for the measurement of an image: ``forward.A``, or ``forward`` itself.

    Raises:
        InputError: neither.
    """
    method = None if isinstance(forward, type) else getattr(forward, "A", None)
    return method if callable(method) else _callable("forward", forward)


def _callable(name: str, value: object) -> Callable[..., Any]:
    wanted = {
        "forward": "a function of the image, or an object with a method A such as deepinv's physics",
        "loss": "a function of (measured, noisy)",
    }[name]
    if isinstance(value, type):
        raise InputError(f"{name}: expected {wanted}, got the class {value.__name__}, not an object of it")
    if not callable(value):
        raise InputError(f"{name}: expected {wanted}, got {type(value).__name__}")
    return value


def _call(name: str, of_what: str, function: Callable[..., Any], given: object, *arguments: Tensor) -> Any:
    """What the caller's function gives.

    Raises:
        InputError: its code fails; where it is a module on another device, that is said.
    """
    try:
        return function(*arguments)
    except OESError:
        raise
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        shapes = " and ".join(str(tuple(each.shape)) for each in arguments)
        said = " ".join(str(error).split())
        device = arguments[0].device
        others = sorted({str(each.device) for each in _tensors(given) if each.device != device})
        where = f"; it has tensors on {', '.join(others)}, the image is on {device}" if others else ""
        raise InputError(
            f"{name}: expected a function that takes {of_what} of shape {shapes}, it raises "
            f"{type(error).__name__}: {said}{where}"
        ) from error


def _tensors(given: object) -> list[Tensor]:
    """Tensors that an operator or loss holds, as far as they are seen."""
    owner = getattr(given, "__self__", given)
    if isinstance(owner, nn.Module):
        return [*owner.parameters(), *owner.buffers()]
    cells = [cell.cell_contents for cell in getattr(given, "__closure__", None) or ()]
    held = [*cells, *getattr(owner, "__dict__", {}).values()]
    return [each for each in held if isinstance(each, Tensor)]


def _flat_images(image: Tensor) -> list[Tensor]:
    """Zeros, and images that are one in a channel and zero in the others."""
    channels = image.shape[1] if image.ndim > 1 else 1
    images = [torch.zeros_like(image)]
    if image.ndim < 2 or channels > _MOST_CHANNELS:
        return [*images, torch.ones_like(image)]
    for channel in range(channels):
        images.append(torch.zeros_like(image))
        images[-1][:, channel] = 1
    return images


def _real(tensor: Tensor) -> Tensor:
    """The values in a row, in double precision; of complex ones real and imaginary parts."""
    tensor = tensor.detach().resolve_conj()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten().double()
