"""Ways to a mask: what the masks of :func:`oes_fast.search_mask` are compared with.

Each is a function of a network, its input and the noisy image, and returns a :class:`oes_fast.Mask` that
every pipeline takes; ``METHODS`` has them by name. docs/pruning.md says what each keeps, and why.
:func:`profile` needs the network alone.
"""

from collections.abc import Callable

from oes_fast.mask import Mask
from oes_fast.pruning.grasp import grasp, grasp_scores
from oes_fast.pruning.imp import imp, imp_rounds
from oes_fast.pruning.magnitude import magnitude, magnitude_scores
from oes_fast.pruning.oes import oes
from oes_fast.pruning.profile import layer_profile, profile
from oes_fast.pruning.random import random, random_scores
from oes_fast.pruning.select import select, small_parameters
from oes_fast.pruning.snip import snip, snip_scores
from oes_fast.pruning.synflow import synflow, synflow_scores
from oes_fast.pruning.tickets import ImpResult, ImpRound

METHODS: dict[str, Callable[..., Mask]] = {
    "random": random,
    "magnitude": magnitude,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
    "imp": imp,
    "oes": oes,
}

__all__ = [
    "METHODS",
    "ImpResult",
    "ImpRound",
    "grasp",
    "grasp_scores",
    "imp",
    "imp_rounds",
    "layer_profile",
    "magnitude",
    "magnitude_scores",
    "oes",
    "profile",
    "random",
    "random_scores",
    "select",
    "small_parameters",
    "snip",
    "snip_scores",
    "synflow",
    "synflow_scores",
]
