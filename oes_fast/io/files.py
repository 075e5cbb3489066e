"""Writing without loss: a file is either complete under its name or as it was before."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from oes_fast.errors import InputError, OutputError, one_line
from oes_fast.io.locks import Busy, FileLock, NoLocks, label

METADATA_KEY = "oes_fast"

_ALIVE = "-lock"  # ends the name of the lock beside a temporary file
_ROOM = 2**14  # bytes that a folder must have room for: those of a small image
_swept: set[Path] = set()  # whose temporary files this process has looked for, of the last ones
_SWEPT = 1000  # of them at most: a process may write any number of files


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file so that no moment, failure or kill leaves half of it under its name.

    ``write`` is called with a temporary name in the same folder, with the same suffix. What it has written
    there is flushed to disk and then takes the name ``path`` in one step. A symbolic link keeps pointing
    where it did, an existing file keeps its permissions. Pipes and devices (/dev/stdout) have nothing to
    lose and are written to directly. What a killed process left of ``path`` is removed, once by each process
    or seldom again.

    Args:
        path: file to write.
        write: creates the file it is given the name of.

    Raises:
        OutputError: the file cannot be written; an older one under ``path`` is as it was. Any other error
            that ``write`` raises is passed on, with the same guarantee.
    """
    target = check_writable(path)
    if _is_stream(target):
        _write_to_stream(target, write)
        return
    if target not in _swept:
        sweep(target)
    stem = f"{_temporary_prefix(target)}{secrets.token_hex(6)}"
    temporary = target.with_name(f"{stem}{target.suffix}")
    alive = _try_lock(target.with_name(f"{stem}{_ALIVE}"))
    try:
        write(temporary)
        _flush(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        if alive is not None:
            alive.release()


def sweep(target: Path) -> None:
    """Remove the temporary files of ``target`` that :func:`atomic_write` left in processes that were killed.

    Beside each lies a lock that ends with its process, so those of a process at work stay.

    Args:
        target: path with symbolic links resolved.
    """
    if len(_swept) >= _SWEPT:
        _swept.clear()
    _swept.add(target)
    prefix = _temporary_prefix(target)
    with suppress(OSError):
        names = [name for name in os.listdir(target.parent) if name.startswith(prefix)]
        for name in names:
            if name.endswith(_ALIVE) and (lock := _try_lock(target.with_name(name))) is not None:
                for other in names:
                    if other.startswith(name.removesuffix(_ALIVE)) and other != name:
                        target.with_name(other).unlink(missing_ok=True)
                lock.release()


def check_path(name: str, path: object) -> Path:
    """The file name that was given as argument ``name``.

    Raises:
        InputError: it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(
            f"{name}: expected the name of a file, str or os.PathLike, got {type(path).__name__}"
        )
    return Path(path)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Fail before the work and not after it, if ``path`` cannot be written.

    Args:
        path: file that is to be written later.

    Returns:
        The path with symbolic links resolved.

    Raises:
        InputError: it is no file name.
        OutputError: it is a folder, its folder does not exist, or one of them is not writable.
    """
    target = check_path("path", path)
    try:
        if target.is_dir():
            raise OutputError(f"{path}: cannot write: expected a file name, got a folder")
        if not _is_stream(target):
            target = real_path(target)
        if not target.parent.exists():
            raise OutputError(f"{path}: cannot write: the folder {target.parent} does not exist")
        if not target.parent.is_dir():
            raise OutputError(f"{path}: cannot write: {target.parent} is not a folder")
        if target.exists() and not os.access(target, os.W_OK):
            raise OutputError(f"{path}: cannot write: no permission to change the file")
        if not _is_stream(target) and not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: cannot write: no permission to write in the folder {target.parent}")
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _output_error(path, error) from error
    return target


def real_path(path: str | os.PathLike[str]) -> Path:
    """``path`` with links resolved; one in a circle of links, which Path.resolve fails at, as it is."""
    return Path(os.path.realpath(path))


def check_folder(path: str | os.PathLike[str]) -> None:
    """Fail before the work if the folder of ``path`` takes no file, whatever its permissions say.

    Args:
        path: a file that :func:`check_writable` has nothing against.

    Raises:
        OutputError: no file can be made in its folder, as in /proc, or there is no room for the smallest.
    """
    if _is_stream(Path(path)):
        return
    try:
        with tempfile.TemporaryFile(dir=real_path(path).parent) as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise _output_error(path, error) from error


def set_aside(path: Path, new: Path | None = None) -> Path:
    """Give a file or folder another name, so that what is written under its own does not replace it.

    Args:
        path: what is there.
        new: its name from now on, in the same file system, whose folder is made if it is missing; None for
            that of :func:`free_name`.

    Returns:
        The new name.

    Raises:
        OutputError: it cannot be renamed.
    """
    new = free_name(path) if new is None else new
    try:
        new.parent.mkdir(exist_ok=True)
        os.replace(path, new)
    except OSError as error:
        raise OutputError(f"{path}: cannot set the checkpoint aside: {_reason(error)}") from error
    return new


def free_name(path: Path) -> Path:
    """out.train.old.ckpt for out.train.ckpt, or old2, old3 and so on: none is written over."""
    number = 1
    while True:
        new = path.with_name(f"{path.stem}.old{number if number > 1 else ''}{path.suffix}")
        if not os.path.lexists(new):
            return new
        number += 1


def write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as JSON, atomically; infinity and NaN, which JSON lacks, become null.

    Args:
        path: file to write.
        obj: dicts, sequences, strings, numbers, booleans, None, paths, NumPy numbers and one-element tensors.

    Raises:
        InputError: ``obj`` holds something else.
        OutputError: the file cannot be written.
    """
    text = json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "replace")))


def save_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None
) -> None:
    """Write tensors and what belongs to them as one safetensors file, atomically.

    Args:
        path: file to write.
        tensors: by name; any shape, dtype and device.
        metadata: anything :func:`write_json` takes.

    Raises:
        InputError: a value is no dense tensor, or the metadata is not JSON.
        OutputError: the file cannot be written.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{name}: expected a dense torch.Tensor, got {type(tensor).__name__}")
    # A copy each: safetensors refuses tensors that share memory. And bytes, not its own file writing,
    # so that a full disk is an OSError.
    copies = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    note = json.dumps(_plain({} if metadata is None else metadata), allow_nan=False)
    data = to_safetensors(copies, metadata={METADATA_KEY: note})
    atomic_write(path, lambda temporary: temporary.write_bytes(data))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote, or any other safetensors file (with empty metadata).

    Args:
        path: file to read.

    Returns:
        (tensors on the CPU by name, metadata).

    Raises:
        InputError: no such file, or it is not a complete safetensors file.
    """
    check_readable(path)
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            note = (file.metadata() or {}).get(METADATA_KEY, "{}")
        metadata = json.loads(note)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = one_line(error)
        raise InputError(
            f"{path}: expected a complete safetensors file, got one that fails: {reason}"
        ) from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: expected metadata in a JSON object, got {type(metadata).__name__}")
    return tensors, metadata


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone of what :func:`save_tensors` wrote, as :func:`load_tensors` gives it.

    Raises:
        InputError: as there.
    """
    check_readable(path)
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected a complete safetensors file, got one that fails: {one_line(error)}"
        ) from error
    return metadata if isinstance(metadata, dict) else {}


def check_readable(path: str | os.PathLike[str]) -> Path:
    """``path`` as a Path, if it is a file that can be read.

    Raises:
        InputError: no file name, no such file, a folder, a device, or no permission.
    """
    file = check_path("path", path)
    if not os.fspath(path):
        raise InputError("expected a file, got an empty name")
    try:
        if file.is_dir():
            raise InputError(f"{path}: expected a file, got a folder")
        if not file.exists():
            raise InputError(f"{path}: expected a file, got nothing: it does not exist")
        if not os.access(file, os.R_OK):
            raise InputError(f"{path}: expected a file that can be read, got no permission")
        mode = file.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # /dev/zero has no end, a terminal waits
            raise InputError(f"{path}: expected a file, got a device")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{_printable(path)}: expected a file, got {_reason(error)}") from error
    return file


def _temporary_prefix(target: Path) -> str:
    return f".oes-{label(target)}-"


def _try_lock(path: Path) -> FileLock | None:
    try:
        return FileLock(path)
    except (Busy, NoLocks):
        return None


def _plain(obj: object) -> object:
    """``obj`` in the types of JSON."""
    if isinstance(obj, dict):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "item") and getattr(obj, "size", None) is not None:  # NumPy numbers, one-element tensors
        with suppress(ValueError, RuntimeError):
            return _plain(obj.item())
    raise InputError(f"JSON: expected numbers, strings, lists and dicts, got {type(obj).__name__}")


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is there and is a device, pipe or socket, or names an open file (/dev/stdout)."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if path.parent in (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")):
        return True
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_to_stream(target: Path, write: Callable[[Path], object]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="oes-") as folder:
            temporary = Path(folder) / f"output{target.suffix}"
            write(temporary)
            # Appending, as /dev/stdout may be a file that holds what was printed before.
            with temporary.open("rb") as source, target.open("ab") as sink:
                shutil.copyfileobj(source, sink)
    except OSError as error:
        raise _output_error(target, error) from error


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    # The rename itself must survive a power cut. Some systems and file systems cannot open or flush a folder.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _output_error(path: object, error: Exception) -> OutputError:
    wrapped = OutputError(f"{_printable(path)}: cannot write: {_reason(error)}")
    wrapped.errno = getattr(error, "errno", None)
    return wrapped


def _reason(error: Exception) -> str:
    """The system's words for ``error``: "No space left on device"."""
    return getattr(error, "strerror", None) or one_line(error)


def _printable(path: object) -> str:
    return str(path).encode("unicode_escape").decode() if "\0" in str(path) else str(path)
