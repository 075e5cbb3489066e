"""What a mask notes of the network it was found on, among its settings."""

from __future__ import annotations

from oes_fast.mask import MODEL, MODEL_OPTIONS, Mask
from oes_fast.recipe import Recipe

NETWORK_SEED = "network_seed"  # setting of a mask: the seed of the weights it was found on


def with_network(mask: Mask, recipe: Recipe, seed: int) -> Mask:
    """``mask`` with a note of the network it was found on, and the seed of its weights."""
    noted = {NETWORK_SEED: seed, MODEL: recipe.name, MODEL_OPTIONS: dict(recipe.options)}
    return Mask(mask.flat, mask.fingerprint, {**mask.settings, **noted})


def seed_of(mask: Mask) -> int | None:
    """The seed of the weights that a mask was found on, None if it does not say."""
    seed = mask.settings.get(NETWORK_SEED)
    return seed if isinstance(seed, int) else None
