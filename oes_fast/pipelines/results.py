"""What the results of a search and of a training have in common.

Annotations are kept as types, not as text: results inherit the fields, and whoever reads the annotations of a
result looks their names up in its module, which lacks them.
"""

from dataclasses import dataclass, field

from torch import Tensor

from oes_fast.mask import Mask
from oes_fast.pipelines.history import History
from oes_fast.pipelines.stop_rule import StopReport


@dataclass(frozen=True, eq=False, repr=False)
class RunResult:
    """How a run ended.

    Attributes:
        output: image [1, C, H, W].
        history: recorded steps.
        mask: the weights kept.
        steps: updates made.
        interrupted: stopped before the last step.
        collapsed: the output is flat.
        diverged: the loss left for good: it ended clearly above where it began, or lost most of what it had
            reached.
        seconds: time the call took.
        backend: that ran it.
    """

    output: Tensor
    history: History
    mask: Mask
    steps: int
    interrupted: bool
    collapsed: bool
    diverged: bool
    seconds: float
    backend: str

    def report(self) -> dict[str, float | int | None]:
        """Peak, end and average in dB, see :meth:`oes_fast.History.report`."""
        return self.history.report()

    def __repr__(self) -> str:
        """Two lines, without tensors and network."""
        flags = [name for name in ("interrupted", "collapsed", "diverged") if getattr(self, name)]
        ended = f", {', '.join(flags)}" if flags else ""
        return (
            f"{type(self).__name__}({self.steps} steps in {self.seconds:.3g} s on {self.backend}{ended}, "
            f"output {list(self.output.shape)}, {100 * self.mask.density:.3g} % of the weights kept,\n"
            f"    {self.history!r})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class StoppedResult(RunResult):
    """How a run ended that a rule may have stopped.

    Attributes:
        stop: where and why; None without a rule.
    """

    stop: StopReport | None = field(default=None, kw_only=True)

    def has_ended(self, steps: int) -> bool:
        """Whether nothing is left to do of so many steps: they are made, or a rule has ended the run."""
        return self.steps >= steps or (self.stop is not None and self.stop.stopped)
