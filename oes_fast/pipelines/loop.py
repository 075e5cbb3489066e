"""The loop that the mask search and the sparse training share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

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
from oes_fast.pipelines.run_state import RunPart, RunState, Steps
from oes_fast.pipelines.run_stop import PREFIX
from oes_fast.pipelines.signals import delayed_signals
from oes_fast.pipelines.stop_rule import StopReport


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
    _run: RunPart
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

    @property
    def average(self) -> Tensor | None:
        """Running average of the outputs so far, [1, C, H, W], or None. Copy it to keep it."""
        return self._run.average()

    @property
    def psnr_average(self) -> float | None:
        """PSNR of that average in dB (computed when asked for), None without one or without a clean image."""
        average = self.average
        if average is None or self._clean is None:
            return None
        return float(psnr_tensor(average, self._clean))

    @property
    def logits(self) -> Tensor | None:
        """Of a search, as :class:`oes_fast.SearchResult` has them at its end; None in a training."""
        return self._run.state().get("logits") if self.phase == "search" else None


Callback = Callable[[StepInfo], object]


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        output: image of the last step.
        average: running average of the outputs, or None.
        history: recorded steps.
        steps: updates made.
        interrupted: stopped by a callback before the last step, or by Ctrl-C.
        fell_back: no longer finite at its end, and set back to the last record, or to what its stopping rule
            has found.
        seconds: time this call took.
        stop: what its stopping rule says, None where there is none; output and average are then those of the
            step that the rule has found.
    """

    output: Tensor
    average: Tensor | None
    history: History
    steps: int
    interrupted: bool
    fell_back: bool
    seconds: float
    stop: StopReport | None = None


class Member:
    """One of the runs that a loop makes step by step.

    Args:
        part: of the steps, that is its own.
        clean: image to report the PSNR against, or None.
        callback: see :func:`oes_fast.train_sparse`.
        checkpoint: of the run.
        number: of its image among the outputs; None where all of them are its.
        leave: called when it has ended, before the others go on.

    Attributes:
        error: why it failed, or None.
        finished: how it ended, None as long as it has not, or failed.

    Raises:
        InputError: the callback is no function.
    """

    def __init__(
        self,
        part: RunPart,
        *,
        clean: Tensor | CleanView | None,
        callback: Callback | None,
        checkpoint: Checkpoint,
        number: int | None = None,
        leave: Callable[[], object] | None = None,
    ) -> None:
        if callback is not None and not callable(callback):
            raise InputError(f"callback: expected a function, got {type(callback).__name__}")
        self.part, self.checkpoint = part, checkpoint
        self.error: Exception | None = None
        self.finished: Finished | None = None
        self._clean, self._callback = clean, callback
        self._number, self._leave = number, leave
        self._history = History()
        self._stop = False
        self._wrong: InputError | None = None

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return self.error is None and self.finished is None

    @property
    def stopped(self) -> bool:
        """Whether its callback or its stopping rule has ended it."""
        return self._stop or self.complete

    @property
    def complete(self) -> bool:
        """Whether its stopping rule says that it has made enough steps."""
        rule = self.part.stop()
        return rule is not None and rule.stopped

    def resume(self, steps: int) -> int:
        """The step that it begins with: that of its checkpoint, whose state it takes over, or 0.

        Raises:
            CheckpointError: see :meth:`Checkpoint.load`; or it is beyond ``steps``.
        """
        resumed = self.checkpoint.load()
        if resumed is None:
            return 0
        step, state = resumed
        self.checkpoint.check_step(step, steps)
        self._history = History(state.pop("history"))
        _check_state(self.checkpoint, state, self.part.state())
        self.part.load_state(state)
        return step

    def save(self, step: int) -> None:
        """Write the checkpoint."""
        _save(self.checkpoint, step, self.part, self._history, complete=self.complete)

    def see(self, info: StepInfo, *, record: bool, final: bool) -> bool:
        """Take in an evaluation; whether the run is no longer finite and fell back to its last record.

        Raises:
            OESError: the loss is not finite.
        """
        if record and not final and self._ends_by_itself():
            self._stop, record = True, False  # the last evaluation says it, and takes what the rule has found
        fell_back = record and _record(
            self._history, info.phase, info.step, self.part, info.output, self._clean, final=final
        )
        if self._callback is not None and self._wrong is None:
            answer = self._callback(info)
            try:
                self._stop = bool(answer) or self._stop
            except Exception as error:  # whatever the type of the answer raises
                self._wrong, self._stop = _neither(answer, error), True
        return fell_back

    def _ends_by_itself(self) -> bool:
        """Whether it is no longer finite, and its stopping rule has found an image before."""
        rule = self.part.stop()
        found = rule is not None and rule.found() is not None
        return found and not bool(torch.isfinite(self.part.objective()))

    def info(self, phase: str, step: int, steps: int, outputs: Tensor) -> StepInfo:
        """What a callback is told of its output among ``outputs``."""
        output = outputs if self._number is None else outputs[self._number : self._number + 1]
        return StepInfo(phase, step, steps, output, self.part, self._clean)

    def end(self, info: StepInfo, *, interrupted: bool, fell_back: bool, seconds: float) -> None:
        """Keep what there is after the last evaluation."""
        if self._wrong is not None:
            self.error = self._wrong
            return
        if self._leave is not None:
            self._leave()
        output = info.output if self._number is None else info.output.clone()
        average, stop = self.part.average(), self.part.stop()
        report = None if stop is None else stop.report(info.step, interrupted=interrupted)
        if stop is not None and stop.rule.image is not None:
            output, average = stop.rule.image, stop.rule.average
        self.finished = Finished(
            output, average, self._history, info.step, interrupted, fell_back, seconds, report
        )


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
    """:func:`run_members` of a single run: how it ended.

    Raises:
        InputError: the callback is no function, or returned something that is neither true nor false, such
            as an array of several elements; a checkpoint is written first.
        OESError: the loss is no longer finite.
        CheckpointError: see :meth:`Checkpoint.load`.
    """
    member = Member(run, clean=clean, callback=callback, checkpoint=checkpoint)
    run_members(run, [member], steps=steps, record_every=record_every, progress=progress, stopping=stopping)
    if member.error is not None:
        raise member.error
    assert member.finished is not None
    return member.finished


def run_members(
    run: Steps,
    members: Sequence[Member],
    *,
    steps: int,
    record_every: int,
    progress: bool,
    stopping: Callable[[], bool] | None = None,
) -> None:
    """Make ``steps`` updates, then evaluate once more: of every member, each ends with its result or error.

    Ctrl-C ends all runs after the update under way, and a callback that returns anything true its own: a
    checkpoint is written and what there is kept. A second Ctrl-C raises KeyboardInterrupt at once.

    SIGTERM and SIGHUP are the host application's, which may have set a handler for them: it is called as
    ever. Where it has set none, the process would end at once, and does so after the update under way and its
    checkpoint. Without a checkpoint they are left alone.

    Where ``stopping`` is given, signals are its affair: the runs end as by Ctrl-C where it says true.

    Raises:
        CheckpointError: see :meth:`Checkpoint.load`; or the members' are of different steps.
    """
    began = time.monotonic()
    found = set()
    for member in members:
        with _failure_of(member):
            found.add(member.resume(steps))
    if len(found) > 1:
        raise CheckpointError(f"checkpoints: expected all at one step, got {sorted(found)}")
    step = next(iter(found), 0)
    saves = any(member.checkpoint.path is not None for member in members)
    signals = delayed_signals(saves=saves) if stopping is None else nullcontext(stopping)
    with signals as interrupted, _display(progress) as show:

        def evaluate(chosen: Sequence[Member], *, final: bool) -> None:
            for member in chosen:
                if final or member.checkpoint.due():
                    member.save(step)
            run.begin(step, final=final)
            outputs = run.evaluate(step, final=final)
            for member in chosen:
                info = member.info(run.phase, step, steps, outputs)
                with _failure_of(member):
                    record = final or step % record_every == 0
                    if show is not None:
                        show(info)
                    fell_back = member.see(info, record=record, final=final)
                    if final:
                        # Ctrl-C during the last step stops nothing here, but the caller may have another
                        # run to leave out.
                        ended = member.complete or fell_back
                        stopped = (step < steps and not ended) or interrupted()
                        gone = time.monotonic() - began
                        member.end(info, interrupted=stopped, fell_back=fell_back, seconds=gone)

        while active := [member for member in members if member.active]:
            over = step >= steps or interrupted()
            ending = [member for member in active if over or member.stopped]
            if ending:
                evaluate(ending, final=True)
            going = [member for member in active if member not in ending]
            if going:
                evaluate(going, final=False)
            if any(member.active for member in going):
                run.update(step)
            if step == 0:
                for member in going:
                    if member.active:
                        with _failure_of(member):
                            check_first_gradient(run.phase, member.part.first_gradient())
            if any(member.active for member in going):
                run.finish(step)
                step += 1


@contextmanager
def _failure_of(member: Member) -> Iterator[None]:
    """What a run raises ends that run, and is kept."""
    try:
        yield
    except Exception as error:
        member.error = error


def _display(progress: bool) -> AbstractContextManager[Callback | None]:
    if not progress:
        return nullcontext()
    from oes_fast.pipelines.progress import ProgressDisplay  # Rich takes a while to import

    return ProgressDisplay()


def psnr_tensor(output: Tensor, clean: Tensor | CleanView) -> Tensor:
    """PSNR in dB at a data range of 1, as a scalar tensor: no wait for the device."""
    seen, reference = compared(output.detach(), clean)
    squares = (seen.double() - reference.detach().double()) ** 2
    total = squares
    while total.ndim:  # a sum of all at once is in an order that depends on the number of threads
        total = total.sum(-1)
    return -10 * torch.log10(total / squares.numel())


def _check_state(checkpoint: Checkpoint, state: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    for name, tensor in like.items():
        if name.startswith(STATE):
            continue  # of an optimiser that begins without: it says itself what it takes
        if name not in state:
            raise CheckpointError(f"{checkpoint.path}: the checkpoint lacks {name!r}", path=checkpoint.path)
        if name.startswith(PREFIX):
            continue  # a rule has more the longer it has looked
        found = state[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{checkpoint.path}: expected {name!r} of shape {tuple(tensor.shape)} and {tensor.dtype}, "
                f"got {tuple(found.shape)} and {found.dtype}",
                path=checkpoint.path,
            )


def _save(checkpoint: Checkpoint, step: int, run: RunPart, history: History, *, complete: bool) -> None:
    try:
        checkpoint.save(step, {**run.state(), "history": history.rows}, complete=complete)
    except Exception as error:  # a full disk, say, is no reason to lose what is computed
        text = " ".join(str(error).split()) or type(error).__name__
        warn_caller(f"{text}; the run goes on without a checkpoint of step {step}", CheckpointWarning)


def _record(
    history: History,
    phase: str,
    step: int,
    run: RunPart,
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
        said = blame(phase, step, float(loss), float(data_loss), output, history, kl)
        if not final or not len(history) or not run.fall_back():
            raise OESError(said)
        stop = run.stop()
        kept = history.step[-1] if stop is None else stop.rule.step
        warn_caller(f"{said}; the result is that of step {kept}", DivergedRunWarning)
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
