"""Named settings of a whole run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of search and training.

    Attributes:
        search_steps: updates of the mask search.
        search_lr: its learning rate.
        search_kl: weight of its KL term.
        search_temperature: of its relaxed masks.
        search_schedule: of its learning rate, None for a constant one.
        train_steps: updates of the sparse training.
        train_lr: its learning rate.
        density: share of the weights kept.
    """

    search_steps: int
    search_lr: float
    search_kl: float
    train_steps: int
    train_lr: float
    density: float
    search_temperature: float = 0.2
    search_schedule: str | None = None

    def search_arguments(self) -> dict[str, Any]:
        """What :func:`oes_fast.search_mask` takes of these settings."""
        return {
            "density": self.density,
            "steps": self.search_steps,
            "lr": self.search_lr,
            "kl": self.search_kl,
            "temperature": self.search_temperature,
            "schedule": self.search_schedule,
        }


PRESETS = {
    # The published settings (Ghosh et al. 2024, appendix).
    "paper": Preset(
        search_steps=60_000, search_lr=1e-2, search_kl=1e-9, train_steps=40_000, train_lr=1e-2, density=0.05
    ),
    # Minutes on a CPU. So few steps of the published size leave the probabilities where they started, and the
    # weights of the top 5 % then form a network that no sampled mask has tried: its output is flat. Longer
    # strides, a stronger KL and more weights make up for it in part.
    "quick": Preset(
        search_steps=300, search_lr=0.3, search_kl=3e-7, train_steps=1_200, train_lr=1e-2, density=0.2
    ),
    # What docs/fast-search.md found: masks within a few tenths of a decibel of those of ten times the steps.
    "fast": Preset(
        search_steps=600,
        search_lr=0.3,
        search_kl=1e-7,
        train_steps=2_000,
        train_lr=1e-2,
        density=0.05,
        search_temperature=0.5,
        search_schedule="cosine",
    ),
}
