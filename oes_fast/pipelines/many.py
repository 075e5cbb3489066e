"""Several trainings in one call: images or seeds that share a network's shape and a mask, or not."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from oes_fast._checks import check_flag, check_integer, check_number
from oes_fast.errors import CheckpointError, InputError, OESError, OESWarning, warn_caller, warnings_to
from oes_fast.mask import Mask
from oes_fast.pipelines.at_once import AtOnce
from oes_fast.pipelines.batched import batchable
from oes_fast.pipelines.batches import run_in_batches, takes_several
from oes_fast.pipelines.checkpoint import checkpoint_choices
from oes_fast.pipelines.clean import CleanView
from oes_fast.pipelines.failures import error_of, finished
from oes_fast.pipelines.functions import GeneratorFunction
from oes_fast.pipelines.kinds import SharedFunctions
from oes_fast.pipelines.loop import Callback, StepInfo
from oes_fast.pipelines.setup import RunOptions, Setup
from oes_fast.pipelines.signals import delayed_signals
from oes_fast.pipelines.train import Training, TrainResult, train_sparse
from oes_fast.precision import DEFAULT, precision

_SHOWN_SECONDS = 0.5  # from one time that progress is shown to the next
ManyCallback = Callable[[int, StepInfo], object]

_PLURAL = {"net": "nets", "mask": "masks"}  # arguments of train_sparse that have another name here


def train_many(
    nets: nn.Module | Sequence[nn.Module],
    masks: Mask | Sequence[Mask | None] | None,
    z: Tensor | Sequence[Tensor],
    noisy: Tensor | Sequence[Tensor],
    *,
    at_once: int | None = None,
    memory: float | None = None,
    clean: Tensor | CleanView | Sequence[Tensor | CleanView | None] | None = None,
    seed: int | Sequence[int] = 0,
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    callback: ManyCallback | None = None,
    progress: bool = False,
    **train: Any,
) -> list[TrainResult]:
    """Train several networks: over images, over seeds, or both, as so many calls of :func:`train_sparse`.

    On a CPU runs are made at the same time, one a core and each in a thread of its own, as far as memory
    allows; on a GPU, with backend "cuda", which "auto" takes where it was built, those of one mask and size
    are a batch that its kernels take at once. The results are those of :func:`train_sparse`: on a
    CPU bit for bit, whatever the number of threads is, which holds for what the C++ kernels run as one chain;
    every other run (see docs/many-images.md) has all threads and is made when those before it have ended. On
    a GPU they differ by rounding at most.

    Of ``nets``, ``masks``, ``z``, ``noisy``, ``seed`` and ``clean`` each is one for all runs or a list (or
    tuple) of one a run; one of the first five at least is a list, and all lists are of one length N.

    Args:
        nets: generators, left alone.
        masks: which weights to keep; None for all of them.
        z: fixed inputs, each as :func:`train_sparse` takes it: [1, C, H, W].
        noisy: images to fit, each as :func:`train_sparse` takes it: [1, C', H', W'].
        at_once: runs to make at the same time, >= 1; None for what is fastest within ``memory``: as many as
            torch.get_num_threads() on a CPU, 32 on a GPU with "cuda".
        memory: bytes that the runs made at the same time may take together, as far as that is known before;
            > 0, and one is always made. None for half of what is free, unless ``at_once`` is given.
        clean: images to report the PSNR against, or None.
        seed: of the noise on the input, in [0, 2^64). (Networks and inputs have their seeds when they are
            made: see :func:`oes_fast.fresh_generator`.)
        checkpoints: N files, one a run, to keep the states in: those of :func:`train_sparse`, with which
            each run can be gone on with alone.
        resume: go on from those of the checkpoints that exist.
        checkpoint_seconds: time between two saves of a run.
        callback: called with the number of the run, from 0, and what :func:`train_sparse`'s is given, in the
            thread that called this function; what it returns, if true, ends that run alone.
        progress: show how far all runs together are, with loss and PSNR of one of them.
        **train: other arguments of :func:`train_sparse`, the same for all runs.

    Returns:
        Results in the order of the runs, each as :func:`train_sparse` gives it. Ctrl-C ends all runs after
        the updates under way, each with its checkpoint, and their results say ``interrupted``; a second one
        raises KeyboardInterrupt.

    Raises:
        InputError: an argument does not fit, with its name; lists of several lengths, or none.
        OESError: a run failed, as :func:`train_sparse` says, with the run's number. The others have been made
            to their end before: ``error.results`` is the list with None for what failed, ``error.run`` the
            number of the first that did, ``error.errors`` the list of what each failed with, with None for
            those that did not.
        CheckpointError: of a run that cannot be gone on with. No other is begun where that shows before; the
            others are ended as by Ctrl-C where it shows later.

    Example:
        >>> nets = [oes.models.skip(4, 3, num_channels_down=(8, 8), seed=seed) for seed in (0, 1)]
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> mask = oes.search_mask(nets[0], z, noisy, density=0.2, steps=5).mask
        >>> fits = oes.train_many(nets, mask, z, noisy, steps=20)
        >>> torch.stack([fit.output for fit in fits]).mean(0).shape
        torch.Size([1, 3, 32, 32])
    """
    given = {"net": nets, "mask": masks, "z": z, "noisy": noisy, "clean": clean, "seed": seed}
    lists = {name: value for name, value in given.items() if isinstance(value, list | tuple)}
    count = _count(lists, checkpoints)
    _check(at_once=at_once, memory=memory, callback=callback, resume=resume, checkpoints=checkpoints)
    devices = {getattr(each, "device", None) for each in _each(z, count)}
    device = devices.pop() if len(devices) == 1 else None
    setting = train.get("precision", DEFAULT)

    @contextmanager
    def context() -> Iterator[None]:
        with torch.inference_mode(False), precision(setting, device=device):
            yield

    with context(), _Watch(count, callback, progress=progress) as watch:
        functions = SharedFunctions()
        threads = AtOnce(
            count,
            functions,
            at_once=at_once,
            memory=memory,
            context=context,
            tell=watch.told,
            warn=_warn,
        )
        on_cpu = device is not None and device.type == "cpu"
        batches = takes_several(train.get("backend", "auto"), _each(z, count)[0])
        in_threads = threads.most > 1 and on_cpu and not batches
        stop = _Stop()
        runs = []
        for number in range(count):
            arguments = {name: _each(value, count)[number] for name, value in given.items()} | {
                "checkpoint": None if checkpoints is None else checkpoints[number],
                "checkpoint_seconds": checkpoint_seconds,
                "resume": resume,
                "callback": watch.callback(number, threads.told if in_threads else watch.told),
            }
            choices = checkpoint_choices(None if checkpoints is None else checkpoints[number], resume=resume)
            make = partial(threads.make, number) if in_threads else functions.make
            make = partial(make, choices=choices)
            try:
                runs.append(_Run(number, arguments, train, make, stop))
            except InputError as error:
                raise _of_run(error, number, lists) from None
        refused = [run.refusal() for run in runs]
        if any(refused):
            raise error_of(refused, [None] * count)
        with delayed_signals(saves=checkpoints is not None) as interrupted:
            stop.requested = lambda: interrupted() or threads.stopped
            if in_threads:
                return finished(threads.run(runs))
            return finished(run_in_batches(runs, functions, at_once=at_once, memory=memory, warn=_warn))


class _Stop:
    """Whether the runs are to stop.

    Attributes:
        requested: says so.
        refused: whether the checkpoint of one of them cannot be gone on from, which stops the others.
    """

    def __init__(self) -> None:
        self.requested: Callable[[], bool] = lambda: False
        self.refused = False

    def __call__(self) -> bool:
        return self.refused or self.requested()

    def note(self, error: Exception) -> None:
        """Take note of what a run failed with."""
        self.refused = self.refused or isinstance(error, CheckpointError)


class _Watch:
    """What the calling thread has to do with evaluations: the caller's callback, the display of progress."""

    def __init__(self, count: int, callback: ManyCallback | None, *, progress: bool) -> None:
        self._callback = callback
        self._at = [0] * count
        self._shown = 0.0
        self._display: Callable[[StepInfo], None] | None = None
        self._context: AbstractContextManager[Any] = nullcontext()
        if check_flag("progress", progress):
            from oes_fast.pipelines.progress import ProgressDisplay  # Rich takes a while to import

            self._display = self._context = ProgressDisplay()

    def __enter__(self) -> _Watch:
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def callback(self, number: int, tell: Callable[[int, StepInfo], object]) -> Callback | None:
        """What run ``number`` is to call, which has :meth:`told` called in the calling thread by ``tell``."""
        if self._callback is None and self._display is None:
            return None

        def called(info: StepInfo) -> object:
            self._at[number] = info.step
            return tell(number, info) if self._callback is not None or self._is_due(info) else False

        return called

    def told(self, number: int, info: StepInfo) -> object:
        """Show how far all runs are, and ask the caller's callback."""
        if self._display is not None:
            self._display(replace(info, step=sum(self._at), steps=len(self._at) * info.steps))
        return False if self._callback is None else self._callback(number, info)

    def _is_due(self, info: StepInfo) -> bool:
        now = time.monotonic()
        due = now - self._shown >= _SHOWN_SECONDS or info.step == info.steps
        self._shown = now if due else self._shown
        return due


def _each(value: Any, count: int) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value] * count


def _count(lists: Mapping[str, Sequence[Any]], checkpoints: object) -> int:
    """How many runs the arguments are for.

    Raises:
        InputError: none is a list, or they are of several lengths.
    """
    if not lists.keys() - {"clean"}:
        raise InputError(
            "nets: expected a list of networks, or one of masks, z, noisy or seed, got one of each; "
            "for one run there is train_sparse"
        )
    lengths = {_PLURAL.get(name, name): len(value) for name, value in lists.items()}
    if checkpoints is not None:
        if not isinstance(checkpoints, list | tuple):
            raise InputError(f"checkpoints: expected a list of files, got {type(checkpoints).__name__}")
        lengths["checkpoints"] = len(checkpoints)
    first, count = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"{name}: expected {count} of them, one for each of {first}, got {length}")
    if count == 0:
        raise InputError(f"{first}: expected one at least, got an empty list")
    return count


def _check(
    *, at_once: int | None, memory: float | None, callback: object, resume: bool, checkpoints: Any
) -> None:
    """Raise :class:`InputError` unless these fit."""
    if at_once is not None:
        check_integer("at_once", at_once, minimum=1)
    if memory is not None:
        check_number("memory", memory, above=0.0)
    if callback is not None and not callable(callback):
        raise InputError(f"callback: expected a function, got {type(callback).__name__}")
    if resume and checkpoints is None:
        raise InputError("resume: expected checkpoints to go on from, got checkpoints=None")
    seen: dict[str, int] = {}
    for number, path in enumerate(checkpoints or ()):
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"checkpoints[{number}]: expected a file name, got {type(path).__name__}")
        real = os.path.realpath(path)
        if real in seen:
            raise InputError(
                f"checkpoints[{number}]: expected a file for each run, got {path} of run {seen[real]} again"
            )
        seen[real] = number


class _Run:
    """One run, checked.

    Args:
        number: of it.
        arguments: of :func:`train_sparse` that are the run's own or go by another name here.
        train: the others.
        make: makes its generator function.
        stop: whether it is to stop.
    """

    def __init__(
        self,
        number: int,
        arguments: Mapping[str, Any],
        train: Mapping[str, Any],
        make: Callable[..., tuple[GeneratorFunction, str]],
        stop: _Stop,
    ) -> None:
        bound = inspect.signature(train_sparse).bind(**arguments, **train)
        bound.apply_defaults()
        given = bound.arguments
        mask = given["mask"]
        if not (mask is None or isinstance(mask, Mask)):
            raise InputError(f"mask: expected an oes_fast.Mask or None, got {type(mask).__name__}")
        options = {field.name: given[field.name] for field in fields(RunOptions) if field.name in given}
        setup = Setup(
            given["net"], given["z"], given["noisy"], RunOptions(**options, stopping=stop, make=make)
        )
        others = {name: given[name] for name in ("average", "weight_decay", "optimizer")}
        self.number = number
        self.training = Training(setup, mask, **others)
        self.plain = batchable(self.training)
        self._stop = stop

    def refusal(self) -> CheckpointError | None:
        """Why its checkpoint cannot be gone on from, as far as that is known before it is bound."""
        try:
            self.training.check_checkpoint()
        except CheckpointError as error:
            return error
        except OESError:  # said when it is made
            return None
        return None

    def run(self) -> TrainResult:
        """See :meth:`Training.run`; what the run computed in is free afterwards."""
        try:
            return self.training.run()
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.training.setup.unbind()

    def failed(self, error: Exception) -> None:
        """Take note of what it failed with, which the other runs may have to know."""
        self._stop.note(error)

    def attempt(self) -> TrainResult | Exception:
        """Make it in the calling thread: its result, or why it failed."""
        try:
            with warnings_to(partial(_warn, self.number)):
                return self.run()
        except Exception as error:  # the others go on
            return error


def _warn(number: int, message: str, category: type[OESWarning]) -> None:
    warn_caller(f"run {number}: {message}", category)


def _of_run(error: InputError, number: int, lists: Mapping[str, object]) -> InputError:
    """An error of an argument of one run, with the run's number where that says which."""
    text = str(error)
    name, _, rest = text.partition(":")
    if name in lists:
        text = f"{_PLURAL.get(name, name)}[{number}]:{rest}"
    elif number > 0:  # what is one for all is not to blame, or the first had been refused
        text = f"run {number}: {text}"
    error.args = (text, *error.args[1:])
    return error
