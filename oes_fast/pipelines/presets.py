"""Named settings of a whole run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of search and training.

    Attributes:
        search_steps: updates of the mask search.
        search_lr: its learning rate.
        train_steps: updates of the sparse training.
        train_lr: its learning rate.
        density: share of the weights kept.
    """

    search_steps: int
    search_lr: float
    train_steps: int
    train_lr: float
    density: float


PRESETS = {
    # The published settings (Ghosh et al. 2024, appendix).
    "paper": Preset(search_steps=60_000, search_lr=1e-2, train_steps=40_000, train_lr=1e-2, density=0.05),
    # Minutes on a CPU: a coarse mask found with longer strides, training ended near its peak.
    "quick": Preset(search_steps=300, search_lr=1e-1, train_steps=1_000, train_lr=1e-2, density=0.05),
}
