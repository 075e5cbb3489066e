"""Mask files on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from oes_fast.errors import InputError, MaskMismatchError
from oes_fast.flat import fingerprint
from oes_fast.io.published import PUBLISHED_SUFFIXES
from oes_fast.mask import Mask
from oes_fast.models import skip

OURS = ".safetensors"
PUBLISHED_CHANNELS = (3, 1)  # of the images that masks are published for: RGB and grey
NETWORK_SEED = "network_seed"  # setting of a mask: the seed of the weights it was found on


def with_network_seed(mask: Mask, seed: int) -> Mask:
    """``mask`` with a note of the seed of the weights it was found on."""
    return Mask(mask.flat, mask.fingerprint, {**mask.settings, NETWORK_SEED: seed})


def load_mask(path: Path, net: nn.Module) -> Mask:
    """The mask in a file of ours or as it is published, checked against the network.

    Raises:
        InputError: no such file, or no mask.
        MaskMismatchError: it belongs to another network.
    """
    _check_suffix(path)
    return Mask.load(path, net)


def mask_seed(path: Path) -> int | None:
    """The seed of the weights that the mask in a file was found on, None if it does not say."""
    return None if path.suffix != OURS else seed_of(Mask.load(path))


def seed_of(mask: Mask) -> int | None:
    """The seed of the weights that a mask was found on, None if it does not say."""
    seed = mask.settings.get(NETWORK_SEED)
    return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class FoundMask:
    """A mask and the network it is for.

    Attributes:
        path: of its file.
        mask: what it keeps.
        net: the published network for so many channels, without weights ("meta"); None where the mask is one
            of another network.
    """

    path: Path
    mask: Mask
    net: nn.Module | None


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
    nets = {count: skip(num_output_channels=count, device="meta") for count in choices}
    return [_find(path, nets, told=channels is not None) for path in paths]


def _find(path: Path, nets: Mapping[int, nn.Module], *, told: bool) -> FoundMask:
    _check_suffix(path)
    known = " or ".join(f"{fingerprint(net)} for images of {count} channels" for count, net in nets.items())
    if path.suffix == OURS:
        mask = Mask.load(path)
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


def _check_suffix(path: Path) -> None:
    if path.suffix not in (OURS, *PUBLISHED_SUFFIXES):
        wanted = f"{OURS} of oes-fast, or {', '.join(PUBLISHED_SUFFIXES)} as published"
        raise InputError(f"{path}: expected a mask file: {wanted}, got {path.suffix or 'no extension'}")
