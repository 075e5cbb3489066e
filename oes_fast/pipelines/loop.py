"""The loop that the mask search and the sparse training share."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from oes_fast.errors import (
    CheckpointError,
    CheckpointWarning,
    DivergedRunWarning,
    InputError,
    OESError,
    warn_caller,
)
from oes_fast.pipelines.checkpoint import Checkpoint
from oes_fast.pipelines.clean import CleanView, compared
from oes_fast.pipelines.divergence import blame, check_first_gradient
from oes_fast.pipelines.history import History
from oes_fast.pipelines.optimizer_state import STATE


class RunState(Protocol):
    """What one step of a pipeline consists of."""

    phase: str

    def begin(self, step: int, *, final: bool) -> None:
        """What comes before the evaluation after ``step`` updates and is never recorded with it."""

    def evaluate(self, step: int, *, final: bool) -> Tensor:
        """Output [1, C, H, W] after ``step`` updates; a final one leaves everything as it is."""

    def objective(self) -> Tensor:
        """Scalar objective of the output last evaluated."""

    def update(self, step: int) -> None:
        """Update number ``step``, from 0."""

    def first_gradient(self) -> Tensor:
        """After the first update, what is finite if its gradient was: Adam's first moment, a share of it."""

    def finish(self, step: int) -> None:
        """What comes after update number ``step`` and is never recorded with it."""

    def terms(self) -> tuple[Tensor, tuple[float, float] | None]:
        """(mean squared error of the objective, weight of its KL term and the term's value at the start)."""

    def keep(self) -> None:
        """Remember what a result can be made of, should the run be no longer finite at its end."""

    def fall_back(self) -> bool:
        """Go back to what was last kept; whether there is a result then."""

    def average(self) -> Tensor | None:
        """Running average of the outputs, or None."""

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""


@dataclass(frozen=True)
class StepInfo:
    """What a callback is told after each evaluation.

    Attributes:
        phase: "search" or "train".
        step: number of updates made so far, 0 .. steps.
        steps: number of updates the run is to make.
        output: image [1, C, H, W] of this step, without gradient. Copy it to keep it.
    """

    phase: str
    step: int
    steps: int
    output: Tensor
    _run: RunState
    _clean: Tensor | CleanView | None

    def __repr__(self) -> str:
        return f"StepInfo({self.phase}, step {self.step} of {self.steps}, output {list(self.output.shape)})"

    @property
    def loss(self) -> float:
        """Objective of this step (computed when asked for)."""
        return float(self._run.objective())

    @property
    def psnr(self) -> float | None:
        """PSNR of this step in dB (computed when asked for), None without a clean image."""
        return None if self._clean is None else float(psnr_tensor(self.output, self._clean))


Callback = Callable[[StepInfo], object]

_SAME_SECONDS = 2.0  # timeout(1), systemd and shells send two signals for one request


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        output: image of the last step.
        average: running average of the outputs, or None.
        history: recorded steps.
        steps: updates made.
        interrupted: stopped by a callback before the last step, or by Ctrl-C.
        fell_back: no longer finite at its end, and set back to the last record.
        seconds: time this call took.
    """

    output: Tensor
    average: Tensor | None
    history: History
    steps: int
    interrupted: bool
    fell_back: bool
    seconds: float


def run_steps(
    run: RunState,
    *,
    steps: int,
    record_every: int,
    clean: Tensor | CleanView | None,
    callback: Callback | None,
    progress: bool,
    checkpoint: Checkpoint,
    stopping: Callable[[], bool] | None = None,
) -> Finished:
    """Make ``steps`` updates, then evaluate once more.

    Ctrl-C, or a callback that returns anything true, ends the run after the update under way: a checkpoint
    is written and what there is returned. A second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM and SIGHUP are the host application's, which may have set a handler for them: it is called as
    ever. Where it has set none, the process would end at once, and does so after the update under way and its
    checkpoint. Without a checkpoint they are left alone.

    Where ``stopping`` is given, signals are its affair: the run ends as by Ctrl-C where it says true.

    Raises:
        InputError: the callback is no function, or returned something that is neither true nor false, such
            as an array of several elements; a checkpoint is written first.
        OESError: the loss is no longer finite.
        CheckpointError: see :meth:`Checkpoint.load`.
    """
    if callback is not None and not callable(callback):
        raise InputError(f"callback: expected a function, got {type(callback).__name__}")
    began = time.monotonic()
    history = History()
    step = 0
    resumed = checkpoint.load()
    if resumed is not None:
        step, state = resumed
        if step > steps:
            raise CheckpointError(
                f"{checkpoint.path}: the checkpoint is at step {step}, beyond the {steps} asked for",
                path=checkpoint.path,
            )
        history = History(state.pop("history"))
        _check_state(checkpoint, state, run.state())
        run.load_state(state)
    stop = fell_back = False
    wrong: InputError | None = None
    signals = (
        delayed_signals(saves=checkpoint.path is not None) if stopping is None else nullcontext(stopping)
    )
    with signals as interrupted, _display(progress) as show:
        while True:
            final = step >= steps or stop or interrupted()
            if final or checkpoint.due():
                _save(checkpoint, step, run, history)
            run.begin(step, final=final)
            output = run.evaluate(step, final=final)
            if final or step % record_every == 0:
                fell_back = _record(history, step, run, output, clean, final=final)
            info = StepInfo(run.phase, step, steps, output, run, clean)
            if show is not None:
                show(info)
            if callback is not None and wrong is None:
                answer = callback(info)
                try:
                    stop = bool(answer) or stop
                except Exception as error:  # whatever the type of the answer raises
                    wrong, stop = _neither(answer, error), True
            if final:
                break
            run.update(step)
            if step == 0:
                check_first_gradient(run.phase, run.first_gradient())
            run.finish(step)
            step += 1
        # Ctrl-C during the last step stops nothing here, but the caller may have another run to leave out.
        stopped = step < steps or interrupted()
    if wrong is not None:
        raise wrong
    seconds = time.monotonic() - began
    return Finished(output, run.average(), history, step, stopped, fell_back, seconds)


def _display(progress: bool) -> AbstractContextManager[Callback | None]:
    if not progress:
        return nullcontext()
    from oes_fast.pipelines.progress import ProgressDisplay  # Rich takes a while to import

    return ProgressDisplay()


def psnr_tensor(output: Tensor, clean: Tensor | CleanView) -> Tensor:
    """PSNR in dB at a data range of 1, as a scalar tensor: no wait for the device."""
    seen, reference = compared(output.detach(), clean)
    return -10 * torch.log10(torch.mean((seen.double() - reference.detach().double()) ** 2))


def _check_state(checkpoint: Checkpoint, state: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    for name, tensor in like.items():
        if name.startswith(STATE):
            continue  # of an optimiser that begins without: it says itself what it takes
        if name not in state:
            raise CheckpointError(f"{checkpoint.path}: the checkpoint lacks {name!r}", path=checkpoint.path)
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{checkpoint.path}: expected {name!r} of shape {tuple(tensor.shape)} and {tensor.dtype}, "
                f"got {tuple(found.shape)} and {found.dtype}",
                path=checkpoint.path,
            )


def _save(checkpoint: Checkpoint, step: int, run: RunState, history: History) -> None:
    try:
        checkpoint.save(step, {**run.state(), "history": history.rows})
    except Exception as error:  # a full disk, say, is no reason to lose what is computed
        text = " ".join(str(error).split()) or type(error).__name__
        warn_caller(f"{text}; the run goes on without a checkpoint of step {step}", CheckpointWarning)


def _record(
    history: History,
    step: int,
    run: RunState,
    output: Tensor,
    clean: Tensor | CleanView | None,
    *,
    final: bool,
) -> bool:
    """Add a record; whether the run is no longer finite at its end and fell back to the last record."""
    nan = float("nan")
    average = run.average()
    psnr: Tensor | float = nan if clean is None else psnr_tensor(output, clean)
    psnr_average: Tensor | float = nan if clean is None or average is None else psnr_tensor(average, clean)
    loss = run.objective()
    if not torch.isfinite(loss):
        data_loss, kl = run.terms()
        said = blame(run.phase, step, float(loss), float(data_loss), output, history, kl)
        if not final or not len(history) or not run.fall_back():
            raise OESError(said)
        warn_caller(f"{said}; the result is that of step {history.step[-1]}", DivergedRunWarning)
        return True
    history.add(step, loss, psnr, psnr_average)
    run.keep()
    return False


def _neither(answer: object, error: Exception) -> InputError:
    shape = getattr(answer, "shape", None)
    what = type(answer).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
    wrong = InputError(f"callback: expected to return something true or false, got {what}")
    wrong.__cause__ = error
    return wrong


@contextmanager
def delayed_signals(*, saves: bool) -> Iterator[Callable[[], bool]]:
    """Turn signals into a flag while inside, so that they never fall into the middle of an update.

    Args:
        saves: whether the run leaves a checkpoint, so that it pays to delay what is to end the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False
    deadly: int | None = None
    since = 0.0
    before: dict[int, Any] = {}

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal requested, deadly, since
        if deadly is not None and time.monotonic() - since > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if deadly is None:
            requested, deadly, since = True, number, time.monotonic()

    ctrl_c = signal.getsignal(signal.SIGINT)
    if ctrl_c is not None and ctrl_c is not signal.SIG_IGN:  # set by C code, or a job in the background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    if saves:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if deadly is not None:
            signal.raise_signal(deadly)
