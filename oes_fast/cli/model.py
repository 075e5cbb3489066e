"""Which network a command is to take: --model and --model-option, and what the mask's file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._memory import available_memory
from oes_fast.errors import InputError, one_line
from oes_fast.flat import FlatLayout
from oes_fast.mask import MODEL, MODEL_OPTIONS, Mask
from oes_fast.meta_device import QuickShapes
from oes_fast.models.registry import MODELS, find_model, network, parsed_options
from oes_fast.recipe import Recipe

OURS = ".safetensors"  # mask files of our own, the only ones that say what they are for
DEFAULT = "skip"
NAMES = tuple(name for name, model in MODELS.items() if model.dims == 2)  # those that images go with
_SIDE = 256  # of the image that options are tried for
_COPIES = 5  # of the weights, at least, while they are trained: with gradient, moments and those of the start
_TOO_LARGE = "sizes beyond what PyTorch can address"


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
        made = None if mask is None or mask.suffix != OURS else recipe_of(mask)
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
        try:
            network(made.name, (3, _SIDE, _SIDE), device="meta", **made.options)
        except Exception as error:  # whatever options lead to that no command has written
            raise InputError(f"{mask}: expected the options of a network, got {one_line(error)}") from error
        return made

    def _parsed(self, name: str) -> dict[str, Any]:
        try:
            return parsed_options(name, self.options)
        except InputError as error:
            raise InputError(_of_option(error)) from None


def checked(recipe: Recipe) -> Recipe:
    """``recipe``, if it makes a network that fits in memory.

    Raises:
        InputError: an option is out of range, or too large.
    """
    try:
        net = network(recipe.name, (3, _SIDE, _SIDE), device="meta", **recipe.options)
    except InputError as error:
        raise InputError(_of_option(error)) from None
    except (RuntimeError, TypeError, MemoryError) as error:  # PyTorch's, of sizes that overflow
        raise InputError(
            f"--model-option: expected a network that fits in memory, got {_TOO_LARGE}"
        ) from error
    weights = FlatLayout.of(net).numel
    _check_memory(f"--model-option: {weights:,} weights", weights * _COPIES, "to train", torch.device("cpu"))
    return recipe


def check_fits(recipe: Recipe, shape: Sequence[int], device: torch.device, name: str = "IN") -> None:
    """Refuse an image for which one layer of the network alone needs more memory than is free.

    Args:
        recipe: of the network, which makes one.
        shape: (C, H, W) of the image.
        device: where it is to run.
        name: of the image, for the message.

    Raises:
        InputError: it does.
    """
    net = network(recipe.name, shape, device="meta", **recipe.options).eval()
    channels, *size = find_model(recipe.name).input(net, tuple(shape[1:]))
    counts = [0]

    def count(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            counts.append(output.numel())

    for module in net.modules():
        module.register_forward_hook(count)
    pixels = f"{name}: {shape[-1]} x {shape[-2]} pixels"
    try:
        with torch.no_grad(), QuickShapes():
            net(torch.empty(1, channels, *size, device="meta"))
    except (RuntimeError, OverflowError) as error:
        if "overflow" in str(error).lower():
            raise InputError(
                f"{pixels}: expected a network {recipe.name} that fits in memory, got {_TOO_LARGE}"
            ) from error
        return  # what cannot run without numbers is tried with them
    _check_memory(pixels, max(counts) * 2, f"for one layer of {recipe.name} and its gradient", device)


def _check_memory(what: str, numbers: int, purpose: str, device: torch.device) -> None:
    needed, free = 4 * numbers, available_memory(device)
    if needed > free:
        raise InputError(
            f"{what} need {needed / 2**30:,.1f} GiB of memory {purpose}, {free / 2**30:,.1f} GiB are free"
        )


def recipe_of(mask: Path) -> Recipe | None:
    """What the network of the mask in a file was made from, None where the file does not say.

    Raises:
        InputError: no such file, no mask, or settings that none was written with.
    """
    found = Mask.load(mask)
    try:
        return found.recipe
    except InputError as error:
        raise InputError(f"{mask}: {str(error).removeprefix('mask: ')}") from error


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
