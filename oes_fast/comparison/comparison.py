"""A comparison from its settings to tables and plots, resumable cell by cell."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oes_fast._checks import check_flag, check_integer, check_number, check_tensor
from oes_fast.backends import AUTO, NAMES, backends
from oes_fast.comparison import plots, summary
from oes_fast.comparison.cells import DONE, Cell, CellFiles, grid, groups
from oes_fast.comparison.classical import check_classical
from oes_fast.comparison.run import Options, Step, settings_of
from oes_fast.comparison.settings import Settings
from oes_fast.comparison.workers import Outcome, run_here, run_in_processes
from oes_fast.errors import BackendError, InputError, OutputError, one_line
from oes_fast.io.files import check_folder, check_path, check_writable, real_path, write_json
from oes_fast.io.locks import Busy, RunLocks
from oes_fast.version import __version__

_LABEL = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` returns.

    Attributes:
        settings: that it was run with.
        cells: the result of every cell that is done, as in its file, by cell, in the order of the grid.
        failed: why the others failed, by cell.
        missing: cells that were not run to their end, as the comparison was stopped.
        rows: of the table: means and spreads over the seeds, see :func:`oes_fast.comparison.summary.rows`.
        files: what was written, by kind.
        not_written: why other files could not be written, by kind.
        interrupted: whether the comparison was stopped before its end.
        seconds: time this call took.
    """

    settings: Settings
    cells: dict[Cell, dict[str, Any]]
    failed: dict[Cell, str]
    missing: list[Cell]
    rows: list[summary.Row]
    files: dict[str, Path]
    not_written: dict[str, str]
    interrupted: bool
    seconds: float

    def table(self) -> str:
        """The rows as text, at most 80 columns wide."""
        return summary.table(self.rows)

    def __repr__(self) -> str:
        counts = f"{len(self.cells)} cells done, {len(self.failed)} failed, {len(self.missing)} missing"
        return f"Comparison({counts})"


class Watcher:
    """Is told how a comparison goes on; the methods of this one do nothing."""

    def planned(self, cells: list[Cell], done: list[Cell]) -> None:
        """Before the first cell: all cells, and those whose results are there."""

    def step(self, step: Step) -> None:
        """Now and then, of every cell that runs."""

    def ended(self, outcome: Outcome) -> None:
        """After every cell."""


def compare(
    images: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    settings: Settings,
    *,
    jobs: int = 1,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    verify: bool = True,
    checkpoint_seconds: float = 60.0,
    draw: bool = True,
    watcher: Watcher | None = None,
    stopping: Callable[[], bool] | None = None,
) -> Comparison:
    """Compare ways to a mask, networks without one and classical denoisers on noisy images.

    A cell is one method on one image at one density from one seed. Noise, weights and input of a seed are
    the same for every method. The result of each cell is kept in ``folder``/cells: a second call does what
    is missing, goes on from the checkpoints of cells that were stopped or killed, and refuses results of
    other settings. "imp" prunes in one schedule for all densities of an image and seed.

    Writes compare.json, compare.csv and, with ``draw``, psnr.png, ssim.png, images.png, densities.png and
    masked.png into ``folder``, which is made where there is none; docs/command_line.md describes them.

    Args:
        images: clean images by label, float32 in 0..1, shape [1, C, H, W] with C = 1 or 3, on the CPU.
            Labels name files: letters, digits, and any of _ . + -.
        folder: to keep everything in.
        settings: what to compare.
        jobs: groups of cells at once, each in a process of its own where there is more than one. As always
            with processes, a script must then call this under ``if __name__ == "__main__":``.
        threads: CPU threads of each; None for the cores divided by ``jobs``, and with one job for what torch
            has.
        device: to compute on.
        verify: as for :func:`oes_fast.train_sparse`.
        checkpoint_seconds: as there.
        draw: make the plots.
        watcher: is told how it goes on.
        stopping: asked after every step; true ends the comparison after the steps under way, as Ctrl-C does.

    Returns:
        :class:`Comparison`, also where cells failed or it was stopped: whatever is done is in the tables.

    Raises:
        InputError: an argument does not fit; the folder holds cells of other settings; another comparison
            runs in it.
        OutputError: the folder cannot be written to.
        OESError: a package that a method needs is not installed.
    """
    began = time.monotonic()
    _check(images, settings, jobs, threads)
    check_flag("verify", verify)
    check_number("checkpoint_seconds", checkpoint_seconds, minimum=0.0)
    root = _folder(folder)
    check_folder(root / "compare.json")
    images = {name: image.contiguous() for name, image in images.items()}
    cells = grid(list(images), settings)
    if len({cell.name for cell in cells}) < len(cells):
        raise InputError(
            "densities: expected to differ in their first 6 digits, and labels not to meet others"
        )
    watcher = watcher or Watcher()
    try:
        locks = RunLocks([real_path(root / "compare.json")])
    except Busy as error:
        raise InputError(f"{error}; wait for it to end, or give this one another folder (-o)") from None
    try:
        done = [cell for cell in cells if _result(root, cell, images, settings) is not None]
        watcher.planned(cells, done)
        works = [(group, images[group[0].image]) for group in groups([c for c in cells if c not in done])]
        options = Options(
            root,
            device=str(device),
            verify=verify,
            checkpoint_seconds=checkpoint_seconds,
            stopping=stopping or (lambda: False),
        )
        failed: dict[Cell, str] = {}

        def tell(message: Step | Outcome) -> None:
            if isinstance(message, Step):
                watcher.step(message)
                return
            if message.failure is not None:
                failed[message.cell] = message.failure
            watcher.ended(message)

        whole = _run(works, settings, options, tell, jobs, threads)
        return _summarised(root, images, settings, cells, failed, not whole, draw, began)
    finally:
        locks.release()


def _run(
    works: list[Any],
    settings: Settings,
    options: Options,
    tell: Callable[[Step | Outcome], None],
    jobs: int,
    threads: int | None,
) -> bool:
    if not works:
        return True
    if jobs > 1:
        each = threads or max(1, (os.cpu_count() or 1) // jobs)
        return run_in_processes(works, settings, options, tell, jobs=jobs, threads=each)
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        return run_here(works, settings, options, tell)
    except KeyboardInterrupt:  # outside of the loops, which end the update under way
        if options.stopping():  # a second one: at once
            raise
        return False
    finally:
        torch.set_num_threads(before)


def _summarised(
    root: Path,
    images: Mapping[str, Tensor],
    settings: Settings,
    cells: list[Cell],
    failed: dict[Cell, str],
    interrupted: bool,
    draw: bool,
    began: float,
) -> Comparison:
    results = {cell: r for cell in cells if (r := _result(root, cell, images, settings)) is not None}
    rows = summary.rows(results)
    files: dict[str, Path] = {}
    not_written: dict[str, str] = {}

    def write(kind: str, name: str, call: Callable[[Path], object]) -> None:
        try:
            call(root / name)
        except Exception as error:  # whatever one file fails with, the others must be written
            why = one_line(error)
            not_written[kind] = why if isinstance(error, OutputError) else f"{root / name}: {why}"
        else:
            files[kind] = root / name

    write("csv", "compare.csv", lambda path: summary.write_csv(path, results))
    if draw and results:
        masks = any(cell.density is not None for cell in results)
        for kind, call in plots.PLOTS.items():
            if kind in plots.OF_MASKS and not masks:
                continue
            write(kind, f"{kind}.png", partial(_draw, call, root, images, results))
    missing = [cell for cell in cells if cell not in results and cell not in failed]
    content = {
        "command": "compare",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"oes_fast": __version__, "torch": torch.__version__},
        "settings": asdict(settings) | {"imp_densities": settings.imp_schedule},
        "images": {name: list(image.shape) for name, image in images.items()},
        "rows": [row.plain() for row in rows],
        "cells": [summary.brief(cell, result) for cell, result in results.items()],
        "failed": {cell.name: why for cell, why in failed.items()},
        "missing": [cell.name for cell in missing],
        "interrupted": interrupted,
        "files": {**files, "json": root / "compare.json"},
        "not_written": not_written,
    }
    write("json", "compare.json", lambda path: write_json(path, content))
    seconds = time.monotonic() - began
    return Comparison(settings, results, failed, missing, rows, files, not_written, interrupted, seconds)


def _draw(
    plot: plots.Plot, root: Path, images: Mapping[str, Tensor], results: plots.Results, path: Path
) -> None:
    plot(path, root, images, results)


def _result(
    root: Path, cell: Cell, images: Mapping[str, Tensor], settings: Settings
) -> dict[str, Any] | None:
    found = CellFiles(root, cell, settings_of(settings, cell, images[cell.image])).read()
    return found if found is not None and found["state"] == DONE else None


def _folder(folder: str | os.PathLike[str]) -> Path:
    root = check_path("folder", folder)
    try:
        (root / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: cannot make the folder: {error.strerror or error}") from error
    check_writable(root / "compare.json")
    check_writable(root / "cells" / "cell.json")
    return root


def _check(images: Mapping[str, Tensor], settings: Settings, jobs: int, threads: int | None) -> None:
    if not isinstance(settings, Settings):
        raise InputError(f"settings: expected Settings, got {type(settings).__name__}")
    if not images:
        raise InputError("images: expected one at least, got none")
    for name, image in images.items():
        if not _LABEL.fullmatch(name):
            raise InputError(f"images: expected labels of letters, digits and _ . + -, got {name!r}")
        check_tensor(
            name, image, shape=(1, None, None, None), dtypes=(torch.float32,),
            device=torch.device("cpu"), finite=True,
        )  # fmt: skip
        if image.shape[1] not in (1, 3) or not 0 <= float(image.min()) <= float(image.max()) <= 1:
            raise InputError(f"{name}: expected 1 or 3 channels of values in 0..1, got {tuple(image.shape)}")
    check_integer("jobs", jobs, minimum=1)
    if threads is not None:
        check_integer("threads", threads, minimum=1, below=2**15)
    for method in settings.methods:
        check_classical(method)
    if settings.backend not in (AUTO, *NAMES):
        raise InputError(f"backend: expected one of {', '.join((AUTO, *NAMES))}, got {settings.backend!r}")
    if settings.backend != AUTO and not (status := backends()[settings.backend]).available:
        raise BackendError(f"backend: {settings.backend} cannot run here: {status.reason}")
