"""Which network a command is to take: --model and --model-option, and what the mask's file says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oes_fast.errors import InputError
from oes_fast.mask import MODEL, MODEL_OPTIONS, Mask
from oes_fast.models.registry import MODELS, find_model, network, parsed_options
from oes_fast.recipe import Recipe

OURS = ".safetensors"  # mask files of our own, the only ones that say what they are for
DEFAULT = "skip"
NAMES = tuple(name for name, model in MODELS.items() if model.dims == 2)  # those that images go with
_SIDE = 256  # of the image that options are tried for


@dataclass(frozen=True)
class ModelChoice:
    """The options --model and --model-option, as given.

    Attributes:
        name: of the model, None where it was not given.
        options: each "KEY=VALUE".
    """

    name: str | None = None
    options: tuple[str, ...] = ()

    def resolve(self, mask: Path | None = None) -> Recipe:
        """The model to take: that of the mask, else the one named, else the default.

        Args:
            mask: file of the mask that the command reads, None for none.

        Raises:
            InputError: no such model or option, or the mask was made with others.
        """
        made = None if mask is None or mask.suffix != OURS else Mask.load(mask).recipe
        if self.name is not None and self.name not in NAMES:
            raise InputError(f"--model: expected one of {', '.join(NAMES)}, got {self.name!r}")
        if made is None:
            name = DEFAULT if self.name is None else self.name
            return checked(Recipe(name, self._parsed(name)))
        if made.name not in NAMES:
            raise InputError(
                f"{mask}: expected a mask for one of {', '.join(NAMES)}, got one for {made.name}"
            )
        if self.name not in (None, made.name):
            raise InputError(f"--model: expected {made.name}, which {mask} was made for, got {self.name}")
        known = {**find_model(made.name).options, **made.options}
        for key, value in self._parsed(made.name).items():
            if _plain(known[key]) != value:
                raise InputError(
                    f"--model-option {key}: expected {known[key]}, which {mask} was made for, got {value}"
                )
        return checked(made)

    def _parsed(self, name: str) -> dict[str, Any]:
        try:
            return parsed_options(name, self.options)
        except InputError as error:
            raise InputError(_of_option(error)) from None


def checked(recipe: Recipe) -> Recipe:
    """``recipe``, if it makes a network.

    Raises:
        InputError: an option is out of range.
    """
    try:
        network(recipe.name, (3, _SIDE, _SIDE), device="meta", **recipe.options)
    except InputError as error:
        raise InputError(_of_option(error)) from None
    return recipe


def describe(recipe: Recipe) -> dict[str, Any]:
    """For JSON results and masks."""
    return {MODEL: recipe.name, MODEL_OPTIONS: dict(recipe.options)}


def _of_option(error: InputError) -> str:
    """The message with what the user wrote in the place of the argument."""
    name, _, rest = str(error).partition(":")
    return f"--model-option{'' if name == 'options' else f' {name}'}:{rest}"


def _plain(value: Any) -> Any:
    """As an option is parsed: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value
