"""The progress of a command, which also looks for the signals that end it."""

from __future__ import annotations

from oes_fast.cli import signals
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.progress import ProgressDisplay


class ProgressReport(ProgressDisplay):
    """What shows a command's progress."""

    def watch(self, info: StepInfo) -> bool:
        """The callback for the pipelines: show ``info``, and end the run if a signal has asked for it."""
        self(info)
        return signals.stop.requested
