"""Comparisons: ways to a mask, networks without one and classical denoisers, on the same noisy images.

:func:`compare` runs them, resumable cell by cell, and writes tables and plots; ``oes-fast compare`` calls it.
"""

from oes_fast.comparison.cells import Cell
from oes_fast.comparison.classical import CLASSICAL, bm3d, nlm, tv
from oes_fast.comparison.comparison import Comparison, Watcher, compare
from oes_fast.comparison.measures import ssim
from oes_fast.comparison.run import Step
from oes_fast.comparison.settings import BASELINES, NAMES, Settings
from oes_fast.comparison.summary import Figure, Row
from oes_fast.comparison.workers import Outcome

__all__ = [
    "BASELINES",
    "CLASSICAL",
    "NAMES",
    "Cell",
    "Comparison",
    "Figure",
    "Outcome",
    "Row",
    "Settings",
    "Step",
    "Watcher",
    "bm3d",
    "compare",
    "nlm",
    "ssim",
    "tv",
]
