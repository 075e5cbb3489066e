"""Sets of images: every one restored, by many processes, whatever is killed meanwhile.

:func:`restore_all` restores a set; ``oes-fast batch`` calls it.
"""

from oes_fast.batch.job import Entry, Job, Options, Outcome, SharedMask, Step, Stopped
from oes_fast.batch.manifest import Manifest
from oes_fast.batch.run import run_job
from oes_fast.batch.settings import Settings

__all__ = [
    "Entry",
    "Job",
    "Manifest",
    "Options",
    "Outcome",
    "Settings",
    "SharedMask",
    "Step",
    "Stopped",
    "run_job",
]
