"""A clean image to measure against, where it is not the network's whole image that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from oes_fast.errors import InputError


@dataclass(frozen=True, eq=False)
class CleanView:
    """A clean picture, and what of the network's image is held against it: a magnitude, a part.

    Whatever takes ``clean`` takes one in its place.

    Attributes:
        image: clean picture, of the shape and dtype that ``view`` gives.
        view: of the network's image [1, C, H, W], the picture; deterministic.
    """

    image: Tensor
    view: Callable[[Tensor], Tensor]


def compared(output: Tensor, clean: Tensor | CleanView) -> tuple[Tensor, Tensor]:
    """(what of ``output`` is measured, what it is measured against).

    Raises:
        InputError: the view has another shape than the clean picture.
    """
    if not isinstance(clean, CleanView):
        return output, clean
    seen = clean.view(output)
    if seen.shape != clean.image.shape:
        raise InputError(
            f"clean: expected a picture of the shape {tuple(seen.shape)} that its view gives, got "
            f"{tuple(clean.image.shape)}"
        )
    return seen, clean.image


def clean_pixels(clean: Tensor | CleanView) -> Tensor:
    """The clean picture."""
    return clean.image if isinstance(clean, CleanView) else clean
