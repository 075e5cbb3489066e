"""The files of a run: checked before the work, each tried after it, checkpoints kept until all are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oes_fast.cli.settings import debug
from oes_fast.errors import CheckpointError, InputError, OESError, OutputError
from oes_fast.files import check_writable
from oes_fast.image import FORMATS


class Interrupted(Exception):
    """Ctrl-C stopped the run before it had anything to return; the message says what is kept."""


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
        self._taken = {_identity(path): "an input" for path in inputs if path is not None}
        self.paths: dict[str, Path] = {}
        self.checkpoints: list[Path] = []
        self.written: dict[str, Path] = {}
        self.failed: dict[str, str] = {}

    def beside(self, ending: str) -> Path:
        """OUT with ``ending`` in place of its suffix."""
        return self._main.with_name(self._main.stem + ending)

    def plan(self, **paths: Path) -> None:
        """Reserve the files to write, by kind; see :meth:`reserve`."""
        self.paths.update({kind: self.reserve(path) for kind, path in paths.items()})

    def reserve(self, path: Path) -> Path:
        """``path``, if it can be written to and is no other file of this run.

        Raises:
            OutputError: it cannot be written.
            InputError: it is an input, or another output.
        """
        check_writable(path)
        identity = _identity(path)
        if identity in self._taken:
            raise InputError(f"{path}: expected a name of its own, got the name of {self._taken[identity]}")
        if not path.exists() or path.is_file():  # several results may go to one device or pipe
            self._taken[identity] = "another output"
        return path

    def checkpoint(self, phase: str, *, resume: bool | None) -> Path:
        """Where to keep the checkpoint of ``phase``.

        Raises:
            InputError: there is one, and the user has not said what to do with it.
        """
        path = self.reserve(self.beside(f".{phase}.ckpt"))
        if resume is None and path.exists():
            raise InputError(
                f"{path}: the checkpoint of an unfinished run is here; --resume goes on from it, "
                "--restart starts afresh"
            )
        self.checkpoints.append(path)
        return path

    def restart(self) -> None:
        """Remove the checkpoints."""
        for path in self.checkpoints:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(
                    f"{path}: cannot remove the checkpoint: {error.strerror or error}"
                ) from error

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
            self.failed[kind] = _one_line(error, path)
        else:
            self.written[kind] = path

    def finish(self, *, complete: bool) -> None:
        """Remove the checkpoints if the run is complete and every file was written.

        Raises:
            OutputError: a file could not be written.
        """
        if self.failed:
            written = ", ".join(str(path) for path in self.written.values()) or "nothing"
            raise OutputError(f"{'; '.join(self.failed.values())}; written: {written}{self.kept()}")
        if complete:
            self.restart()

    def kept(self) -> str:
        """What a message says of the checkpoints, empty if there are none."""
        found = [str(path) for path in self.checkpoints if path.exists()]
        if not found:
            return ""
        return f"; kept: {', '.join(found)}; the same command with --resume goes on from there"

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around the computation: an error or Ctrl-C inside says what is kept and how to go on.

        Raises:
            Interrupted: Ctrl-C.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted{self.kept()}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{error}; --restart starts afresh") from error
        except OESError as error:
            raise type(error)(f"{error}{self.kept()}") from error
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


def _identity(path: str | Path) -> Path:
    return Path(path).absolute().resolve()


def _one_line(error: Exception, path: Path) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, OESError) else f"{path}: cannot write: {text}"
