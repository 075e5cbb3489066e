"""The progress of a command, which also looks for the signals that end it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace

from oes_fast.cli import signals
from oes_fast.cli.estimate import Estimate
from oes_fast.cli.watched import watching
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.progress import ProgressDisplay


class ProgressReport(ProgressDisplay):
    """What shows a command's progress.

    Attributes:
        estimate: says how long the command will take, None for nothing.
    """

    estimate: Estimate | None = None

    def __call__(self, info: StepInfo) -> None:
        """Show ``info``, to who watches the command as well, who may end it as Ctrl-C does."""
        if self.estimate is not None and (line := self.estimate.see(info)) is not None:
            self.say(line)
        super().__call__(info)
        watch = watching.get()
        if watch is not None and watch.see(info):
            signals.stop.note(signal.SIGINT)

    def watch(self, info: StepInfo) -> bool:
        """The callback for the pipelines: show ``info``, and end the run if a signal has asked for it."""
        self(info)
        return signals.stop.requested

    def watch_runs(self, made: Sequence[int], steps: int) -> Callable[[int, StepInfo], bool]:
        """The callback for several runs: show them as one.

        Args:
            made: steps that each has made before.
            steps: that each is to make.
        """
        done = list(made)

        def watch(number: int, info: StepInfo) -> bool:
            done[number] = info.step
            self(replace(info, step=sum(done), steps=len(done) * steps))
            return signals.stop.requested

        return watch
