"""Mask files on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from oes_fast.cli.model import DEFAULT, OURS
from oes_fast.cli.naming import naming
from oes_fast.errors import InputError, MaskMismatchError
from oes_fast.flat import fingerprint
from oes_fast.io.published import PUBLISHED_SUFFIXES
from oes_fast.mask import Mask
from oes_fast.mask_notes import seed_of
from oes_fast.models.base import ImageGenerator
from oes_fast.models.registry import find_model, network
from oes_fast.pruning.profile import profile
from oes_fast.recipe import Recipe

PUBLISHED_CHANNELS = (3, 1)  # of the images that masks are published for: RGB and grey
_SIDE = 256  # of the images that networks are made for to be told apart


def load_mask(path: Path, net: nn.Module) -> Mask:
    """The mask in a file of ours or as it is published, checked against the network.

    Raises:
        InputError: no such file, no mask, or one that keeps nothing.
        MaskMismatchError: it belongs to another network.
    """
    _check_suffix(path)
    mask = Mask.load(path, net)
    if mask.kept == 0:
        raise InputError(
            f"{path}: expected a mask that keeps one weight at least, got one that keeps none of "
            f"{mask.flat.numel()}"
        )
    return mask


def drawn_mask(net: nn.Module, density: float, seed: int) -> Mask:
    """A mask with the layer profile of a found one; see :func:`oes_fast.pruning.profile`.

    Raises:
        InputError: the network is not one of the profile, or the density keeps nothing.
    """
    with naming({"net": "--model", "density": "--density"}):
        return profile(net, density=density, seed=seed)


def mask_seed(path: Path) -> int | None:
    """The seed of the weights that the mask in a file was found on, None if it does not say."""
    return None if path.suffix != OURS else seed_of(Mask.load(path))


@dataclass(frozen=True)
class FoundMask:
    """A mask and the network it is for.

    Attributes:
        path: of its file.
        mask: what it keeps.
        net: the network that it says it is for, or the published one, for so many channels, without weights
            ("meta"); None where it is for another.
    """

    path: Path
    mask: Mask
    net: ImageGenerator | None


def find_masks(paths: Sequence[Path], channels: int | None) -> list[FoundMask]:
    """The masks in files, with the networks that they are for.

    Args:
        paths: files of ours, or as masks are published.
        channels: of the images that all of them are for; None for what they tell by themselves.

    Raises:
        InputError: no such file, or no mask.
        MaskMismatchError: a mask is not for the network of ``channels``; or it does not tell its network, and
            is for none that is published.
    """
    choices = PUBLISHED_CHANNELS if channels is None else (channels,)
    return [_find(path, choices, told=channels is not None) for path in paths]


def _find(path: Path, choices: Sequence[int], *, told: bool) -> FoundMask:
    _check_suffix(path)
    mask = Mask.load(path) if path.suffix == OURS else None
    recipe = Recipe(DEFAULT) if mask is None or mask.recipe is None else mask.recipe
    try:
        nets = {count: _network(recipe, count) for count in choices}
    except InputError as error:  # of a later version, or of somebody's own
        if mask is None or told:
            raise InputError(f"{path}: {error}") from error
        return FoundMask(path, mask, None)
    known = " or ".join(f"{fingerprint(net)} for images of {count} channels" for count, net in nets.items())
    if mask is not None:
        fitting = next((net for net in nets.values() if fingerprint(net) == mask.fingerprint), None)
        if fitting is None and told:
            raise MaskMismatchError(
                f"{path}: expected a mask of the network {known}, got one of {mask.fingerprint}"
            )
        return FoundMask(path, mask, fitting)
    refusal: MaskMismatchError | None = None
    for net in nets.values():
        try:
            return FoundMask(path, Mask.load(path, net), net)
        except MaskMismatchError as error:
            refusal = error
    raise MaskMismatchError(f"{refusal}; --channels says which images it is for") from None


def _network(recipe: Recipe, channels: int) -> ImageGenerator:
    """A network without weights; the number of those depends on no image's size."""
    shape = (channels, *[_SIDE] * find_model(recipe.name).dims)
    return network(recipe.name, shape, device="meta", **recipe.options)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (OURS, *PUBLISHED_SUFFIXES):
        wanted = f"{OURS} of oes-fast, or {', '.join(PUBLISHED_SUFFIXES)} as published"
        raise InputError(f"{path}: expected a mask file: {wanted}, got {path.suffix or 'no extension'}")
