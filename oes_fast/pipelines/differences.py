"""What a checkpoint was made for, in words: hashes tell runs apart, and tell nobody how they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from oes_fast.pipelines.fingerprints import same
from oes_fast.recipe import Recipe

# The settings that are kept as hashes, and what a message calls them.
_NOUNS = {
    "noisy": "noisy image",
    "clean": "clean image",
    "z": "fixed input z",
    "mask": "mask",
    "network": "network",
    "weights": "initial weights",
    "forward": "forward operator",
    "loss": "loss function",
    "weight": "weight of the measurement",
}
# What follows from another difference is not worth a word of its own.
_FOLLOW_FROM_NETWORK = ("weights", "mask")


@dataclass(frozen=True)
class Difference:
    """One setting in which a checkpoint is of another run.

    Attributes:
        key: of the setting, such as "lr" or "noisy".
        found: its value in the checkpoint.
        wanted: its value in this run.
        found_words: what the checkpoint says of a hashed value, None if nothing.
        wanted_words: what this run says of it.
    """

    key: str
    found: Any
    wanted: Any
    found_words: str | None = None
    wanted_words: str | None = None

    def clause(self, option: str | None = None) -> str:
        """To follow "the checkpoint was made".

        Args:
            option: what the user knows the setting by, ``key`` if None.
        """
        noun = _NOUNS.get(self.key)
        if noun is None:
            if option is None:
                return f"with {self.key} = {self.found}, this run has {self.wanted}"
            found, wanted = ("off" if value is None else value for value in (self.found, self.wanted))
            return f"with {option} {found}, this run has {wanted}"
        kind = f"{noun} (option {option})" if option else noun
        article = "" if noun.endswith("s") else "a "
        if self.found is None:
            return f"without {article}{kind}, this run has one"
        if self.wanted is None:
            return f"with {article}{kind}, this run has none"
        other = "other" if noun.endswith("s") else "another"
        if self.found_words is None or self.wanted_words is None:
            return f"for {other} {kind}"
        if self.found_words == self.wanted_words:
            return f"for {other} {kind} (both: {self.found_words})"
        return f"for {other} {kind} ({self.found_words}, this run {self.wanted_words})"


def compare(
    found: Mapping[str, Any], wanted: Mapping[str, Any], found_words: object, wanted_words: Mapping[str, str]
) -> tuple[Difference, ...]:
    """The settings in which a checkpoint is of another run.

    Args:
        found: settings of the checkpoint.
        wanted: settings of this run.
        found_words: what the checkpoint says of hashed settings, by key; anything else than a dict is none.
        wanted_words: what this run says of them.
    """
    words = found_words if isinstance(found_words, dict) else {}
    # What a checkpoint has and this run has not is something that was not asked for, such as an operator.
    keys = [*wanted, *(key for key in found if key not in wanted)]
    different = [key for key in keys if not same(found.get(key), wanted.get(key))]
    if "phase" in different:
        different = ["phase"]
    if "network" in different:
        different = [key for key in different if key not in _FOLLOW_FROM_NETWORK]
    return tuple(
        Difference(key, found.get(key), wanted.get(key), words.get(key), wanted_words.get(key))
        for key in different
    )


def describe_image(image: Tensor) -> str:
    """ "512 x 512 pixels of 3 channels" for [1, C, H, W], alike for signals and volumes; else the shape."""
    names = {3: "samples", 4: "pixels", 5: "voxels"}
    if image.ndim not in names:
        return f"shape {tuple(image.shape)}"
    channels, *size = image.shape[1:]
    number = f"{image.shape[0]} of " if image.shape[0] > 1 else ""
    sides = " x ".join(str(side) for side in reversed(size))
    return f"{number}{sides} {names[image.ndim]} of {channels} channel{'' if channels == 1 else 's'}"


def describe_mask(flat: Tensor) -> str:
    """ "keeps 150443 of 3008867 weights"."""
    return f"keeps {int(flat.sum())} of {flat.numel()} weights"


def describe_network(net: nn.Module) -> str:
    """What it was made from where that is known, the number of parameters, and the layers by kind.

    Then how many of the parameters it holds fixed, if any.
    """
    kinds = Counter(type(m).__name__ for m in net.modules() if not list(m.children()))
    layers = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    recipe = getattr(net, "recipe", None)
    made = f"{recipe}: " if isinstance(recipe, Recipe) else ""
    fixed = sum(p.numel() for p in net.parameters() if not p.requires_grad)
    held = f", {fixed} of them fixed" if fixed else ""
    return f"{made}{sum(p.numel() for p in net.parameters())} parameters in {layers}{held}"
