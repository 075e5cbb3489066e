"""Groups of cells one after another in this process, or several at once in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oes_fast.comparison.cells import Cell
from oes_fast.comparison.run import Options, Step, Stopped, run_cell
from oes_fast.comparison.settings import Settings
from oes_fast.errors import OESError, one_line
from oes_fast.workers import LONGEST, Told, work_in_processes

_DIED = "its process was killed, by lack of memory perhaps; the same command goes on from its checkpoint"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: which.
        failure: why it failed, None where its result is written.
    """

    cell: Cell
    failure: str | None = None


Work = tuple[list[Cell], Tensor]  # a group of cells and their image
Tell = Callable[[Step | Outcome], None]


def run_here(works: Sequence[Work], settings: Settings, options: Options, tell: Tell) -> bool:
    """Run groups one after another in this process; whether all were run, and not stopped."""
    options = replace(options, report=tell)
    return all(_run_group(group, clean, settings, options, tell) for group, clean in works)


def _run_group(group: list[Cell], clean: Tensor, settings: Settings, options: Options, tell: Tell) -> bool:
    """Run the cells of a group; False where the comparison is to stop."""
    for cell in group:
        if options.stopping():
            return False
        failure = None
        try:
            run_cell(cell, group, clean, settings, options)
        except Stopped:
            return False
        except (OESError, OSError) as error:
            failure = one_line(error)
        except Exception as error:  # a fault of ours or of a library, or no memory: the others go on
            if os.environ.get("OES_FAST_DEBUG", "") not in ("", "0"):
                raise
            failure = f"{type(error).__name__}: {one_line(error)}"
        tell(Outcome(cell, None if failure is None else failure[:LONGEST]))
    return True


def run_in_processes(
    works: Sequence[Work], settings: Settings, options: Options, tell: Tell, *, jobs: int, threads: int
) -> bool:
    """Run groups in ``jobs`` processes of ``threads`` threads each; whether all were run, and not stopped.

    KeyboardInterrupt ends the groups as ``options.stopping`` does; a second one ends the processes at once.
    """
    plain = replace(options, stopping=_never, report=_ignore)  # those of this process cannot be pickled
    told: set[Cell] = set()
    whole = 0
    events = work_in_processes(
        # NumPy's arrays are pickled; torch would pass its tensors by shared memory and open files.
        ((group, clean.numpy()) for group, clean in works),
        partial(_prepare, settings, plain),
        processes=min(jobs, len(works)),
        threads=threads,
        stopping=options.stopping,
    )
    with closing(events):  # an error of who is told would keep it, by its frames
        for event in events:
            if isinstance(event, Told):
                if isinstance(event.message, Outcome):
                    told.add(event.message.cell)
                tell(event.message)
            elif event.died and not event.stopping:
                whole += 1
                for cell in event.work[0]:
                    if cell not in told:
                        tell(Outcome(cell, _DIED))
            else:
                whole += bool(event.result)
    return whole == len(works)


def _prepare(
    settings: Settings, options: Options, tell: Tell, stopping: Callable[[], bool]
) -> Callable[[tuple[list[Cell], np.ndarray[Any, Any]]], bool]:
    """What runs a group in a process."""
    options = replace(options, stopping=stopping, report=tell)

    def run(work: tuple[list[Cell], np.ndarray[Any, Any]]) -> bool:
        group, pixels = work
        return _run_group(group, torch.from_numpy(pixels), settings, options, tell)

    return run


def _never() -> bool:
    return False


def _ignore(message: object) -> None:
    pass
