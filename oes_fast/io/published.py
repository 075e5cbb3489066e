"""Masks, weights and inputs in the files of the published code, read without executing anything in them.

The published code pickles whole Python objects. Unpickling runs whatever the file says, so these files are
not unpickled: :mod:`oes_fast.io.inert_pickle` reads them as a tree of plain nodes, and this module takes
from the tree the numbers of tensors and the names of parameters.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.io.files import check_readable
from oes_fast.io.inert_pickle import (
    ORDERED_DICT,
    Call,
    Mapping,
    New,
    PickleError,
    parse,
)
from oes_fast.io.pickled_tensors import LEGACY_MAGIC, TensorDecoder, describe, own

# Files of a few tensors: far above any published one, and what keeps a hostile one from filling the memory.
MAX_FILE_BYTES = 2**30
MAX_ENTRIES = 100_000
MAX_DEPTH = 100
MAX_NAME = 200
MAX_COPIES = 4  # bytes of all tensors together, in multiples of the file's size: views may share storage

MAX_PACKED_BYTES = 2**27  # of packed masks unpacked from an archive: 10^9 weights

ZIP_MAGIC = b"PK\x03\x04"
PUBLISHED_SUFFIXES = (".npz", ".pkl", ".pickle", ".pt", ".pth")


def read_published_mask(path: str | os.PathLike[str]) -> Tensor:
    """A mask as it is published: a pickled tensor, one written by torch.save, or packed bits in an .npz.

    Args:
        path: file to read. No code in it is executed.

    Returns:
        bool of shape [n] on the CPU: True for a kept parameter, in parameters() order.

    Raises:
        InputError: the file is missing, damaged, or holds anything but one tensor of 0 and 1, or the arrays
            ``bits`` (of numpy.packbits) and ``count``.
    """
    with _errors_name(path):
        data = _read(path)
        if data.startswith(ZIP_MAGIC) and (found := _packed_bits(data)) is not None:
            return found
        if os.fspath(path).endswith(".npz"):
            what = "another file" if data else "an empty one"
            raise PickleError(f"expected an .npz of the arrays 'bits' and 'count', got {what}")
    tensor = read_published_tensor(path)
    if tensor.dtype != torch.bool:
        if not bool(((tensor == 0) | (tensor == 1)).all()):
            raise InputError(f"{path}: expected a mask of 0 and 1, got other values")
        tensor = tensor != 0
    return tensor.flatten()


def read_published_tensor(path: str | os.PathLike[str]) -> Tensor:
    """One pickled tensor, such as the published net inputs; otherwise as :func:`read_published_mask`.

    Returns:
        The tensor on the CPU, with the shape and dtype of the file.
    """
    with _errors_name(path):
        data = _read(path)
        if data.startswith(ZIP_MAGIC):
            return _copies({"": _load_zip(data)}, len(data))[""]
        root, decoder = _open(data)
        return decoder.tensor(root)


def read_published_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a network as the published code saves it: a pickled torch.nn.Module.

    A state dict, pickled or written by torch.save, is read as well.

    Args:
        path: file to read. No code in it is executed.

    Returns:
        Parameters and persistent buffers on the CPU, under the names that ``state_dict`` gives them.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    with _errors_name(path):
        data = _read(path)
        if data.startswith(ZIP_MAGIC):
            return _state_dict_of_zip(data)
        root, decoder = _open(data)
        if isinstance(root, New):
            return dict(_Modules(decoder).walk(root))
        if _is_state_dict(root):
            return {_name(key): decoder.tensor(value) for key, value in root.pairs}
        raise PickleError(f"expected a network or its state dict, got {describe(root)}")


@contextmanager
def _errors_name(path: object) -> Iterator[None]:
    """Turn errors of the file's content into one clear line that names the file."""
    try:
        yield
    except PickleError as error:
        raise InputError(f"{path}: cannot read it as a file of the published code: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror or error}") from error


def _read(path: str | os.PathLike[str]) -> bytes:
    with check_readable(path).open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise PickleError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _open(data: bytes) -> tuple[Any, TensorDecoder]:
    """The tree of a pickle, or of a file in torch's format before 1.6."""
    stream = io.BytesIO(data)
    root, _ = parse(stream)
    decoder = TensorDecoder(budget=MAX_COPIES * len(data))
    if isinstance(root, int) and root == LEGACY_MAGIC:
        root = decoder.legacy(data)
    return root, decoder


class _Modules:
    """Walks a pickled tree of modules, with an end to it where the tree has none."""

    def __init__(self, decoder: TensorDecoder) -> None:
        self.decoder = decoder
        self.entries = 0

    def walk(self, node: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a torch.nn.Module, in the order of ``state_dict``."""
        if not isinstance(node, New) or not isinstance(node.state, Mapping):
            raise PickleError(f"expected a torch.nn.Module, got {describe(node)}")
        self._count(node.state, depth)
        state = node.state.strings()
        tables = [state.get(key) for key in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, modules = (table if isinstance(table, Mapping) else None for table in tables)
        if parameters is None or buffers is None or modules is None:
            raise PickleError(f"expected a torch.nn.Module, got {describe(node)}")
        for table in (parameters, buffers):
            self._count(table, depth)
            for name, value in table.pairs:
                if value is not None:
                    yield prefix + _name(name), self.decoder.tensor(value)
        self._count(modules, depth)
        for name, value in modules.pairs:
            if value is not None:
                yield from self.walk(value, f"{prefix}{_name(name)}.", depth + 1)

    def _count(self, table: Mapping, depth: int) -> None:
        self.entries += 1 + len(table.pairs)
        if self.entries > MAX_ENTRIES or depth > MAX_DEPTH:
            raise PickleError("it is too large or too deep for a network, or contains itself")


def _name(name: object) -> str:
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise PickleError("a parameter's name is damaged")
    return name


def _is_state_dict(root: object) -> bool:
    plain = type(root) is Mapping or (isinstance(root, Call) and root.function == ORDERED_DICT)
    return plain and isinstance(root, Mapping) and all(isinstance(value, Call) for _, value in root.pairs)


def _load_zip(data: bytes) -> object:
    """What torch.save of 1.6 and newer wrote, by torch's loader for files that are not trusted."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(data):
                raise PickleError("its contents are compressed, which torch.save never does")
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except PickleError:
        raise
    except Exception as error:  # the loader raises whatever damaged bytes lead it to
        raise PickleError("it is not tensors alone written by torch.save, or it is damaged") from error


def _packed_bits(data: bytes) -> Tensor | None:
    """The bits in an .npz, bool [count]; None where an archive has none, as that of torch.save."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if not {"bits.npy", "count.npy"} & sizes.keys():
            return None
        if sum(sizes.values()) > MAX_PACKED_BYTES:
            raise PickleError(f"its arrays are larger than {MAX_PACKED_BYTES >> 20} MiB")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            bits, count = np.asarray(arrays["bits"]), np.asarray(arrays["count"])
    except PickleError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever damaged bytes lead them to
        raise PickleError("it is not the arrays bits and count alone, or it is damaged") from error
    if count.size != 1 or count.dtype.kind not in "iu":
        raise PickleError(f"expected one integer as count, got shape {count.shape} of {count.dtype}")
    number = int(count.item())
    if bits.dtype != np.uint8 or bits.ndim != 1 or number < 1 or len(bits) != (number + 7) // 8:
        wanted = f"expected {max(number + 7, 0) // 8} bytes for {number} bits"
        raise PickleError(f"{wanted}, got shape {bits.shape} of {bits.dtype}")
    if np.unpackbits(bits)[number:].any():
        raise PickleError(f"expected {number} bits, got more")
    return torch.from_numpy(np.unpackbits(bits, count=number)).bool()


def _state_dict_of_zip(data: bytes) -> dict[str, Tensor]:
    state = _load_zip(data)
    if not isinstance(state, dict):
        raise PickleError(f"expected a state dict, got {type(state).__name__}")
    return _copies({_name(key): value for key, value in state.items()}, len(data))


def _copies(tensors: dict[str, object], file_size: int) -> dict[str, Tensor]:
    """Copies of the tensors, which may be views of each other, but not far larger than the file."""
    found = {name: tensor.detach() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    for name, value in tensors.items():
        tensor = found.get(name)
        if tensor is None or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise PickleError(f"expected a dense tensor, got {type(value).__name__}")
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > MAX_COPIES * file_size:
        raise PickleError("its tensors are many times larger than the file")
    return {name: own(tensor) for name, tensor in found.items()}
