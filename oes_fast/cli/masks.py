"""Mask files on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from oes_fast.errors import InputError
from oes_fast.flat import FlatLayout
from oes_fast.io.published import PUBLISHED_SUFFIXES
from oes_fast.mask import Mask

OURS = ".safetensors"
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
    if path.suffix not in (OURS, *PUBLISHED_SUFFIXES):
        wanted = f"{OURS} of oes-fast, or {', '.join(PUBLISHED_SUFFIXES)} as published"
        raise InputError(f"{path}: expected a mask file: {wanted}, got {path.suffix or 'no extension'}")
    return Mask.load(path, net)


def mask_seed(path: Path) -> int | None:
    """The seed of the weights that the mask in a file was found on, None if it does not say."""
    if path.suffix != OURS:
        return None
    seed = Mask.load(path).settings.get(NETWORK_SEED)
    return seed if isinstance(seed, int) else None


@dataclass(frozen=True)
class Layer:
    """How much a mask keeps of one layer, or of one kind of small parameter.

    Attributes:
        name: such as "conv 3: 5x5, 16 > 32", counted in parameters() order.
        kept: weights kept.
        count: weights there are.
        density: share kept.
    """

    name: str
    kept: int
    count: int
    density: float


def layers(net: nn.Module, mask: Mask) -> list[Layer]:
    """Every convolution's weights by itself, the small parameters together by kind."""
    views = FlatLayout.of(net).views(mask.flat)
    groups: dict[str, list[Tensor]] = {}
    small: dict[str, list[Tensor]] = {}
    number = 0
    for path, module in net.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            view = views[f"{path}.{name}" if path else name]
            if isinstance(module, nn.Conv2d) and name == "weight":
                number += 1
                outputs, inputs, height, width = view.shape
                groups[f"conv {number}: {height}x{width}, {inputs} > {outputs}"] = [view]
            else:
                kind = "batch norm" if isinstance(module, nn.BatchNorm2d) else "convolution"
                small.setdefault(f"{kind} {'scale' if name == 'weight' else name}", []).append(view)
    found = []
    for name, tensors in (groups | small).items():
        kept, count = sum(int(t.sum()) for t in tensors), sum(t.numel() for t in tensors)
        found.append(Layer(name, kept, count, kept / count))
    return found
