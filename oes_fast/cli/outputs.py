"""The files of a run: checked before the work, each tried after it, checkpoints kept until all are there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oes_fast.cli import signals
from oes_fast.cli.checkpoints import Checkpoints
from oes_fast.cli.console import warn
from oes_fast.cli.naming import of_option, options_of
from oes_fast.cli.settings import debug
from oes_fast.errors import CheckpointError, InputError, OESError, OutputError, one_line
from oes_fast.io.files import check_folder, check_writable, real_path, sweep
from oes_fast.io.image import FORMATS
from oes_fast.io.locks import Busy, RunLocks


class Interrupted(Exception):
    """A signal stopped the run before it had anything to return; the message says what is kept.

    Args:
        message: one line.
        number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Outputs:
    """Names and fates of the files of one run.

    Args:
        main: the file that the others are named after: OUT-stem_comparison.png stands beside OUT.
        inputs: files that must not be written to.

    Raises:
        InputError: the name has no stem to build others on.
    """

    def __init__(self, main: Path, *inputs: str | Path | None) -> None:
        self._main = main
        self._taken = {real_path(path): "an input" for path in inputs if path is not None}
        self._folders: set[Path] = set()  # that take files
        self.paths: dict[str, Path] = {}
        self.checkpoints = Checkpoints()
        self.written: dict[str, Path] = {}
        self.failed: dict[str, str] = {}

    def beside(self, ending: str) -> Path:
        """OUT with ``ending`` in place of its suffix."""
        return self._main.with_name(self._main.stem + ending)

    def plan(self, **paths: Path) -> None:
        """Reserve the files to write, by kind; see :meth:`reserve`."""
        self.paths.update({kind: self.reserve(path) for kind, path in paths.items()})

    def plan_checkpoints(self, resume: bool | None, **options: dict[str, str]) -> None:
        """Reserve a checkpoint for each phase.

        Args:
            resume: go on from checkpoints (True), start afresh (False), refuse where there are any (None).
            options: by phase, the option for each setting a checkpoint holds.
        """
        paths = {phase: self._reserve_checkpoint(self.beside(f".{phase}.ckpt")) for phase in options}
        self.checkpoints = Checkpoints(paths, options, resume=resume)

    def reserve(self, path: Path) -> Path:
        """``path``, if it can be written to and is no other file of this run.

        Raises:
            OutputError: it cannot be written.
            InputError: it is an input, or another output.
        """
        check_writable(path)
        identity = real_path(path)
        if identity.parent not in self._folders:
            check_folder(path)
            self._folders.add(identity.parent)
        if identity in self._taken:
            raise InputError(f"{path}: expected a name of its own, got the name of {self._taken[identity]}")
        if not path.exists() or path.is_file():  # several results may go to one device or pipe
            self._taken[identity] = "another output"
        return path

    def _reserve_checkpoint(self, path: Path) -> Path:
        if not path.is_dir():
            return self.reserve(path)
        check_writable(path / "checkpoint")  # those of many rounds lie in a folder
        return path

    @contextmanager
    def owned(self, *steps: int) -> Iterator[None]:
        """Keep every file of the run from other runs while inside, and settle what becomes of checkpoints.

        Args:
            steps: asked for, by phase, in the order of the checkpoints.

        Raises:
            InputError: another run writes one of the files, or there is a checkpoint and the user has not
                said what to do with it.
            OutputError: a checkpoint cannot be set aside.
        """
        paths = (*self.paths.values(), *self.checkpoints.paths.values())
        targets = [real_path(path) for path in paths if not path.exists() or path.is_file()]
        try:
            locks = RunLocks(targets)
        except Busy as error:
            raise InputError(f"{error}; wait for it to end, or give this run another name (-o)") from None
        try:
            for folder, reason in locks.missing.items():
                warn(
                    f"{folder}: files cannot be locked here ({reason}); "
                    "another run with the same output would not be noticed"
                )
            for target in targets:
                sweep(target)
            self.checkpoints.settle(*steps)
            yield
        finally:
            locks.release()

    def write(self, kind: str, write: Callable[[Path], object]) -> None:
        """Let ``write`` make a file, if it was planned; :meth:`finish` raises what failed."""
        path = self.paths.get(kind)
        if path is None:
            return
        try:
            write(path)
        except Exception as error:  # whatever one file fails with, the others must be written
            if debug():
                raise
            self.failed[kind] = _reason(error, path)
        else:
            self.written[kind] = path

    def remove(self, *kinds: str) -> None:
        """Remove planned files that the results have no part of: an earlier command left them."""
        for path in (self.paths[kind] for kind in kinds if kind in self.paths):
            if path.is_file():
                with suppress(OSError):
                    path.unlink()

    def finish(self, *, complete: bool) -> None:
        """Remove the checkpoints if the run is complete and every file was written.

        Raises:
            OutputError: a file could not be written.
        """
        if self.failed:
            written = ", ".join(str(path) for path in self.written.values()) or "nothing"
            raise OutputError(f"{'; '.join(self.failed.values())}; written: {written}{self.kept()}")
        if complete:
            self.checkpoints.remove()

    def kept(self) -> str:
        """What a message says of the checkpoints, empty if there are none."""
        return self.checkpoints.kept()

    @contextmanager
    def computing(self, *names: str) -> Iterator[None]:
        """Around the computation: an error or a signal inside says what is kept and how to go on.

        Args:
            names: of arguments of the library that are options of the command, and are called so in messages.

        Raises:
            Interrupted: a signal.
        """
        signals.stop.patient = True  # there is something to finish: it takes a second signal to end at once
        try:
            yield
        except KeyboardInterrupt as error:
            number = getattr(error, "number", signals.stop.number or signal.SIGINT)
            raise Interrupted(f"{signals.words(number)}{self.kept()}", number) from None
        except CheckpointError as error:
            raise CheckpointError(self.checkpoints.explain(error), path=error.path) from error
        except OESError as error:
            raise type(error)(f"{of_option(error, options_of(names))}{self.kept()}") from error
        except (RuntimeError, MemoryError) as error:
            # PyTorch's errors: out of memory above all.
            raise RuntimeError(f"{' '.join(str(error).split())}{self.kept()}") from error


def check_image_name(path: Path, bits: int | None) -> None:
    """Raise :class:`InputError` unless an image with so many bits can be written under that name."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: expected a name that ends in {', '.join(FORMATS)}, got {path.suffix or 'no extension'}"
        )
    if bits not in (None, 8, 16):
        raise InputError(f"--bits: expected 8 or 16, got {bits}")
    if bits == 16 and kind == "JPEG":
        raise InputError(f"--bits: expected 8 for JPEG, got {bits}")


def _reason(error: Exception, path: Path) -> str:
    text = one_line(error)
    return text if isinstance(error, OESError) else f"{path}: cannot write: {text}"
