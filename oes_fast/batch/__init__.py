"""Sets of images: every one restored, by many processes, whatever is killed meanwhile.

:func:`restore_all` restores a set; ``oes-fast batch`` calls it.
"""

from oes_fast.batch.entries import Listing
from oes_fast.batch.image_set import Batch, restore_all
from oes_fast.batch.job import Entry, Job, MaskSearch, Options, Outcome, SharedMask, Step, Stopped
from oes_fast.batch.manifest import Manifest, Row
from oes_fast.batch.run import run_job
from oes_fast.batch.settings import Settings
from oes_fast.batch.watching import Engine, Watcher

__all__ = [
    "Batch",
    "Engine",
    "Entry",
    "Job",
    "Listing",
    "Manifest",
    "MaskSearch",
    "Options",
    "Outcome",
    "Row",
    "Settings",
    "SharedMask",
    "Step",
    "Stopped",
    "Watcher",
    "restore_all",
    "run_job",
]
