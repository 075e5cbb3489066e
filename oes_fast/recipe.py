"""What a network was made from: kept with it, with its masks and in checkpoints, to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What a network was made from: its name in :data:`oes_fast.models.MODELS`, and the options given.

    Attributes:
        name: of the model.
        options: JSON values by argument.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """ "unet", or "unet with feature_scale=8, pad=zero"."""
        words = ", ".join(f"{name}={_words(value)}" for name, value in self.options.items())
        return f"{self.name} with {words}" if words else self.name


def _words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
