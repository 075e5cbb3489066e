"""What becomes of the checkpoints that a run finds: gone on from, set aside, or a reason to refuse.

--resume goes on from them. --restart starts the phase that was under way afresh: a finished search is kept,
as a search that is repeated ends where it ended. What is not gone on from is set aside under another name:
nothing but the end of a run whose results are all written removes a checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from oes_fast.cli.console import warn
from oes_fast.errors import CheckpointError, InputError, OutputError
from oes_fast.io.files import free_name, load_metadata, set_aside
from oes_fast.pipelines.checkpoint import checkpoint_step

Result = TypeVar("Result")


class Checkpoints:
    """The checkpoints of one run, in the order of its phases.

    Args:
        paths: of the files, by phase: "search", "train" or both; "train.0", "train.1" and so on of several
            trainings of one search, which are started afresh together; or of a folder of them: "imp".
        options: by phase, the option for each setting a checkpoint holds, for messages.
        resume: go on from checkpoints (True), start afresh (False), refuse where there are any (None).
    """

    def __init__(
        self,
        paths: Mapping[str, Path] | None = None,
        options: Mapping[str, Mapping[str, str]] | None = None,
        *,
        resume: bool | None = None,
    ) -> None:
        self.paths = dict(paths or {})
        self._options = dict(options or {})
        self._resume = resume

    def settle(self, *steps: int) -> None:
        """Refuse, or set aside what is not to be gone on from.

        Args:
            steps: asked for, by phase in order.

        Raises:
            InputError: there is a checkpoint, and the user has not said what to do with it.
            CheckpointError: one that is to be gone on from cannot be read.
            OutputError: a checkpoint cannot be set aside.
        """
        if self._resume is True:
            for phase in self._there():  # before the phases ahead of it are gone on with
                self._check_readable(self.paths[phase])
            return
        if not self._there():
            return
        aside = self._restarted(dict(zip(self.paths, steps, strict=True)))
        if self._resume is False:
            for phase in aside:
                _set_aside(self.paths[phase], "restarted")
            return
        there = [self.paths[phase] for phase in self._there()]
        what, it = ("checkpoints of an unfinished run are", "them")
        if len(there) == 1:
            what, it = ("checkpoint of an unfinished run is", "it")
        raise InputError(
            f"{_names(there)}: the {what} here; --resume goes on from {it}, "
            f"--restart {self._restart_does(aside)}"
        )

    def run(self, phase: str, call: Callable[[bool], Result]) -> Result:
        """Run a phase: ``call(resume)``.

        After --restart, a finished search that turns out not to be one of this run is set aside as well.
        """
        if self._resume is not False:
            return call(self._resume is True)
        try:
            return call(True)
        except CheckpointError as error:
            _set_aside(self.paths[phase], self._reason(error))
        return call(False)

    def kept(self) -> str:
        """What a message says of the checkpoints, empty if there are none."""
        found = [self.paths[phase] for phase in self._there()]
        return f"; kept: {_names(found)}; the same command with --resume goes on from there" if found else ""

    def explain(self, error: CheckpointError) -> str:
        """The message for a checkpoint that --resume cannot go on from: why, and what --restart does."""
        phase = self._phase(error)
        if phase is None:
            return str(error)
        aside = [p for p in self._there() if p != "search" or phase == "search"]
        return f"{self._reason(error)}; --restart {self._restart_does(aside)}"

    def remove(self) -> None:
        """Remove them: every result is written."""
        for path in self.paths.values():
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot remove the checkpoint: {error.strerror or error}"
                ) from error

    def _check_readable(self, path: Path) -> None:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        try:
            for file in files:
                if not file.name.startswith(".") and not file.is_dir():  # locks and the like
                    load_metadata(file)
        except InputError as error:
            broken = CheckpointError(str(error), path=path)
            raise CheckpointError(self.explain(broken), path=path) from error

    def _there(self) -> list[str]:
        return [phase for phase, path in self.paths.items() if _holds_something(path)]

    def _restarted(self, steps: Mapping[str, int]) -> list[str]:
        """The phases that --restart starts afresh, of those with a checkpoint."""
        there = self._there()
        step = checkpoint_step(self.paths["search"]) if "search" in there else None
        # There are checkpoints of what comes after it, or of its last step: the search was finished.
        if step is not None and (len(there) > 1 or step == steps["search"]):
            there.remove("search")
        return there

    def _restart_does(self, aside: list[str]) -> str:
        kept = [self.paths[phase] for phase in self._there() if phase not in aside]
        does = []
        if aside:
            new = _names([free_name(self.paths[phase]) for phase in aside])
            does.append(
                f"sets {_names([self.paths[phase] for phase in aside])} aside as {new} and starts "
                f"{'the training' if kept else ('it', 'both', 'all')[min(len(aside), 3) - 1]} afresh"
            )
        if kept:
            does.append(f"keeps the finished search in {_names(kept)} if it is one of this run")
        return ", ".join(does)

    def _phase(self, error: CheckpointError) -> str | None:
        def is_of(path: Path) -> bool:
            return error.path is not None and path in (Path(str(error.path)), Path(str(error.path)).parent)

        return next((phase for phase, path in self.paths.items() if is_of(path)), None)

    def _reason(self, error: CheckpointError) -> str:
        options = self._options.get(self._phase(error) or "", {})
        if not error.differences:
            return str(error)
        # z has no option: it follows from the image's size and the seed.
        known = [d for d in error.differences if d.key != "z"] or error.differences
        clauses = "; ".join(d.clause(options.get(d.key)) for d in known)
        return f"{error.path}: the checkpoint was made {clauses}"


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _set_aside(path: Path, reason: str) -> None:
    warn(f"{path}: set aside as {set_aside(path)} ({reason})")


def _names(paths: list[Path]) -> str:
    if len(paths) > 3:
        return f"{paths[0]}, {paths[1]} and {len(paths) - 2} more"
    *first, last = (str(path) for path in paths)
    return f"{', '.join(first)} and {last}" if first else last
