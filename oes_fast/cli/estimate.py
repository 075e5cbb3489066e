"""How long a command will take on this machine: by the first steps of its phases, as they run here.

The first phase is timed as it goes. A training that follows a search is not there yet: a few steps of it are
made before, on a copy with a mask that costs about as much as the one to come, and thrown away.
"""

from __future__ import annotations

import copy
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast.bench.steps import likely_mask
from oes_fast.cli import signals
from oes_fast.errors import OESError
from oes_fast.pipelines.checkpoint import checkpoint_step
from oes_fast.pipelines.loop import StepInfo
from oes_fast.pipelines.train import train_sparse

FEWEST = 200  # steps that are left of a phase, below which it is over before it pays to time it
WARM_UP = 5  # steps that do not count: the first allocate, a GPU's are recorded after three
LEAST, MOST = 3, 50  # steps that are timed
SECONDS = 0.5  # after which no more are
SHORTEST = 10.0  # seconds of a run whose time is worth a line
NAMES = {"search": "search", "train": "training"}


@dataclass(frozen=True)
class Phase:
    """Steps of one kind.

    Attributes:
        name: "search" or "train".
        steps: to make, of all runs together.
        seconds: of one.
        runs: that make them.
    """

    name: str
    steps: int
    seconds: float
    runs: int = 1

    @property
    def total(self) -> float:
        """Seconds of all."""
        return self.steps * self.seconds


class StepTimer:
    """Times steps of a run that goes on meanwhile.

    Args:
        device: where it runs; a GPU is waited for before the first that counts and after the last.
        clock: gives seconds.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._device, self._clock = device, clock
        self._first: int | None = None
        self._began = 0.0
        self.seconds: float | None = None

    def see(self, step: int) -> float | None:
        """Take note that ``step`` steps are made; seconds of one where that is the last that is timed."""
        if self.seconds is not None:
            return None
        if self._first is None:
            self._first = step
        made = step - self._first - WARM_UP
        if made == 0:
            self._began = self._now()
        elif made >= MOST or (made >= LEAST and self._clock() - self._began >= SECONDS):
            self.seconds = (self._now() - self._began) / made
            return self.seconds
        return None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


class Estimate:
    """Watches a command's steps until it can say how long all of them take.

    Args:
        device: where it runs.
        phase: that is timed, "search" or "train".
        after: what comes after that phase, None for nothing.
        runs: trainings that are shown as one.
        stops: whether a rule may end the training earlier.
        clock: gives seconds.

    Attributes:
        phases: what was estimated, in order; empty as long as nothing was.
    """

    def __init__(
        self,
        device: torch.device,
        phase: str,
        *,
        after: Phase | None = None,
        runs: int = 1,
        stops: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phases: list[Phase] = []
        self._phase, self._after, self._runs, self._stops = phase, after, runs, stops
        self._timer = StepTimer(device, clock)
        self._steps: int | None = None

    def see(self, info: StepInfo) -> str | None:
        """Take in a step; the line to show after the last that is timed, else None."""
        if self.phases or info.phase != self._phase:
            return None
        if self._steps is None:
            self._steps = info.steps - info.step
        if self._steps < FEWEST or (seconds := self._timer.see(info.step)) is None:
            return None
        runs = self._runs if info.phase == "train" else 1
        self.phases = [Phase(info.phase, self._steps, seconds, runs)]
        if self._after is not None:
            self.phases.append(self._after)
        return self.line()

    def line(self) -> str | None:
        """What there is to say; None for a run that is over soon."""
        total = sum(phase.total for phase in self.phases)
        if total < SHORTEST:
            return None
        parts = [said(phase, first=number == 0) for number, phase in enumerate(self.phases)]
        less = ", less where the rule ends the training" if self._stops else ""
        return f"About {roughly(total)}{less}: {', '.join(parts)}"

    def described(self) -> dict[str, Any] | None:
        """For the JSON result: seconds of all, steps and milliseconds of each phase; None if not known."""
        if not self.phases:
            return None
        return {
            "seconds": sum(phase.total for phase in self.phases),
            "steps": {phase.name: phase.steps for phase in self.phases},
            "ms": {phase.name: 1e3 * phase.seconds for phase in self.phases},
        }


def said(phase: Phase, *, first: bool) -> str:
    """ "search 600 steps at 95 ms"; the first phase says what is counted."""
    runs = f" in {phase.runs} runs" if phase.runs > 1 else ""
    return (
        f"{NAMES[phase.name]} {phase.steps:,}{' steps' if first else ''}{runs} at {step_time(phase.seconds)}"
    )


def step_time(seconds: float) -> str:
    """ "6.1 ms", "95 ms", "1.2 s"."""
    ms = 1e3 * seconds
    return f"{seconds:.1f} s" if ms >= 999.5 else f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.2g} ms"


def roughly(seconds: float) -> str:
    """ "45 s", "3 min", "1 h 20 min": no more exact than such an estimate is."""
    if seconds < 87.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 89.5 * 60:
        return f"{round(seconds / 60)} min"
    tens = round(seconds / 600)
    hours, rest = divmod(tens, 6)
    return f"{hours} h" + (f" {10 * rest} min" if rest and hours < 10 else "")


def training_after(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor,
    *,
    density: float,
    search: tuple[int, Path],
    steps: int,
    checkpoints: Sequence[Path],
    clock: Callable[[], float] = time.monotonic,
    **train: Any,
) -> Phase | None:
    """The trainings that come after a search, by a few steps of one that are made now.

    Several that a GPU makes at once take less.

    Args:
        net: network; left as it is.
        z: its input.
        noisy: what is fitted.
        density: of the mask to be found.
        search: steps of the search, and its checkpoint.
        steps: of each training.
        checkpoints: one for each training.
        clock: gives seconds.
        **train: other arguments of :func:`oes_fast.train_sparse`.

    Returns:
        The steps that are left of all trainings; None where too few are left of the search to time it, where
        a signal came, and where the steps fail, which the run will say.
    """
    if left(*search) < FEWEST:
        return None
    timer = StepTimer(z.device, clock)

    def watch(info: StepInfo) -> bool:
        return timer.see(info.step) is not None or signals.stop.requested

    train |= {"steps": FEWEST, "callback": watch, "verify": False}
    devices = [z.device] if z.device.type == "cuda" else []
    with warnings.catch_warnings(), torch.random.fork_rng(devices=devices):
        warnings.simplefilter("ignore")  # of a run of a few steps
        try:
            fit = train_sparse(copy.deepcopy(net), likely_mask(net, density), z, noisy, **train)
        except (OESError, RuntimeError):
            return None
    if timer.seconds is None:
        if fit.interrupted:
            signals.stop.note(signal.SIGINT)  # which the loop has taken for its own
        return None
    return Phase("train", sum(left(steps, path) for path in checkpoints), timer.seconds, len(checkpoints))


def left(steps: int, checkpoint: Path) -> int:
    """Steps that are to be made of a phase; those of its checkpoint are made."""
    return steps - (checkpoint_step(checkpoint) or 0 if checkpoint.exists() else 0)
