"""Runs whose networks are of one kind, in batches that the kernels of a GPU take at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from torch import Tensor

from oes_fast._memory import available_memory
from oes_fast.backends import resolve
from oes_fast.errors import OESError, OESWarning
from oes_fast.pipelines.at_once import SHARE
from oes_fast.pipelines.batched import TooManyError, batchable, train_batched
from oes_fast.pipelines.checkpoint import checkpoint_choices, checkpoint_step
from oes_fast.pipelines.functions import RewrittenFunction
from oes_fast.pipelines.kinds import SharedFunctions, kind_of
from oes_fast.pipelines.train import Training, TrainResult
from oes_fast.rewrite.module import candidates

ENGINE = "cuda"  # the backend whose kernels take several networks
MOST = 32  # networks at once, unless the caller says how many: a GPU is full by then (docs/many-images.md)

Warn = Callable[[int, str, type[OESWarning]], None]


class Run(Protocol):
    """A run among others.

    Attributes:
        number: of it.
        training: what it is.
    """

    number: int
    training: Training

    def attempt(self) -> TrainResult | Exception:
        """Make it alone: its result, or why it failed."""

    def failed(self, error: Exception) -> None:
        """Take note of what it failed with among others."""


def takes_several(backend: str, z: Tensor) -> bool:
    """Whether the kernels of a backend, for inputs like ``z``, take several networks."""
    try:
        return resolve(backend, z.device, candidates(z.dtype)) == ENGINE
    except (OESError, AttributeError):  # said when the arguments are checked, or the run is made
        return False


def run_in_batches(
    runs: Sequence[Run], functions: SharedFunctions, *, at_once: int | None, memory: float | None, warn: Warn
) -> list[TrainResult | Exception]:
    """Make runs, those of one kind at once as far as the engine takes them, all others one after the other.

    Args:
        runs: all of them.
        functions: makes the generator functions.
        at_once: networks in a batch at most; None for :data:`MOST`, or as many as there is memory for.
        memory: bytes for a batch; None for half of what is free.
        warn: called with the number of a run and a warning of its.
    """
    groups: dict[Hashable, list[Run]] = {}
    for run, choices in zip(runs, _disputed(runs), strict=True):
        groups.setdefault((_kind(run), choices), []).append(run)
    results: dict[int, TrainResult | Exception] = {}
    for group in groups.values():
        left = list(group)
        size = _Size(left, functions, at_once=at_once, memory=memory)
        while left:
            batch = left[: size(len(left))]
            try:
                found = _made(batch, functions, warn) if len(batch) > 1 else [batch[0].attempt()]
            except TooManyError:
                size.halve(len(batch))
                continue
            except Exception as error:  # of all of them
                found = [error] * len(batch)
            finally:
                for run in batch:
                    run.training.setup.unbind()
            for run, result in zip(batch, found, strict=True):
                if isinstance(result, Exception):
                    run.failed(result)
            results |= {run.number: result for run, result in zip(batch, found, strict=True)}
            left = left[len(batch) :]
    return [results[run.number] for run in runs]


class _Size:
    """How many of a group make a batch; asks for the first network's function.

    Args:
        group: runs of one kind.
        functions: makes it.
        at_once: see :func:`run_in_batches`.
        memory: see :func:`run_in_batches`.
    """

    def __init__(
        self, group: Sequence[Run], functions: SharedFunctions, *, at_once: int | None, memory: float | None
    ) -> None:
        self._most = 1
        training = group[0].training
        options, z = training.setup.options, training.setup.z
        if len(group) == 1 or at_once == 1:
            return
        if not (batchable(training) and takes_several(options.backend, z)):
            return
        try:
            function, backend = _bound(group[0], functions)
        except Exception:  # said when it is made
            return
        if isinstance(function, RewrittenFunction) and backend == ENGINE and function.in_one_chain:
            self._most = MOST if at_once is None else at_once
            if memory is not None or at_once is None:
                budget = SHARE * available_memory(z.device) if memory is None else memory
                self._most = max(1, int(min(self._most, budget / function.memory)))

    def __call__(self, left: int) -> int:
        """Of so many: batches of about one size."""
        batches = -(-left // self._most)
        return -(-left // batches)

    def halve(self, tried: int) -> None:
        """Smaller batches from now on, as ``tried`` were too many."""
        self._most = min(self._most // 2, tried - 1)


def _kind(run: Run) -> Hashable:
    setup = run.training.setup
    options = setup.options
    step = None
    if options.resume and options.checkpoint is not None:
        step = checkpoint_step(options.checkpoint)
    target = setup.objective.target
    return kind_of(setup.net, run.training.mask, setup.z, options.entry), tuple(target.shape), step


def _disputed(runs: Sequence[Run]) -> list[str]:
    """Of the choices between algorithms that runs are resumed with, those that not all agree in, as text."""
    each = [
        checkpoint_choices(run.training.setup.options.checkpoint, resume=run.training.setup.options.resume)
        for run in runs
    ]
    values: dict[str, set[str]] = {}
    for choices in each:
        for key, value in choices.items():
            values.setdefault(key, set()).add(json.dumps(value))
    keys = sorted(key for key, found in values.items() if len(found) > 1)
    return [json.dumps([choices.get(key) for key in keys]) for choices in each]


def _bound(run: Run, functions: SharedFunctions) -> tuple[object, str]:
    setup = run.training.setup
    options = setup.options
    return functions.ahead(
        setup.net,
        setup.z,
        run.training.mask,
        options.backend,
        verify=options.verify,
        noisy=setup.noisy_input,
        entry=options.entry,
        choices=checkpoint_choices(options.checkpoint, resume=options.resume),
    )


def _made(batch: Sequence[Run], functions: SharedFunctions, warn: Warn) -> list[TrainResult | Exception]:
    function, backend = _bound(batch[0], functions)
    assert isinstance(function, RewrittenFunction)
    functions.forget()
    return train_batched(
        [run.training for run in batch],
        function,
        backend,
        warn=lambda number, message, category: warn(batch[number].number, message, category),
    )
