"""Tensors in the tree of an inert pickle: torch's format before 1.6, and its tensors inside other pickles."""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import torch
from torch import Tensor

from oes_fast.io.inert_pickle import (
    ENCODE,
    LOAD_STORAGE,
    REBUILD_PARAMETER,
    REBUILD_TENSOR,
    Call,
    Global,
    Mapping,
    New,
    Persistent,
    PickleError,
    parse,
    printable,
)

MAX_DIMENSIONS = 16
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
DTYPES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}


class TensorDecoder:
    """Interprets the nodes of one file. Every node is decoded once, so that shared nodes cost nothing."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.tensors: dict[int, Tensor] = {}
        self.storages: dict[int, Tensor] = {}
        self.keep: list[object] = []  # what is known by its id must stay alive

    def tensor(self, node: object) -> Tensor:
        """The tensor that a call of torch's rebuilding functions stands for."""
        if id(node) not in self.tensors:
            if isinstance(node, Call) and node.function == REBUILD_PARAMETER and node.arguments:
                self.tensors[id(node)] = self._rebuild(node.arguments[0])
            else:
                self.tensors[id(node)] = self._rebuild(node)
            self.keep.append(node)
        return self.tensors[id(node)]

    def _rebuild(self, node: object) -> Tensor:
        if not isinstance(node, Call) or node.function != REBUILD_TENSOR or len(node.arguments) < 4:
            raise PickleError(f"expected a tensor, got {describe(node)}")
        storage = self.storage(node.arguments[0])
        offset, size, stride = node.arguments[1:4]
        size, stride = _integers(size), _integers(stride)
        (offset,) = _integers((offset,))
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise PickleError("a tensor has a damaged shape")
        numel = math.prod(size)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if numel else 0
        # A stored tensor has no element twice: what claims more elements than its storage is damaged.
        if numel > storage.numel() or (numel and last >= storage.numel()) or max(size, default=0) >= 2**31:
            raise PickleError("a tensor claims more elements than its file holds")
        self.budget -= numel * storage.element_size()
        if self.budget < 0:
            raise PickleError("its tensors are many times larger than the file")
        if not numel:
            return _empty(size, storage.dtype)
        return own(storage.as_strided(size, stride, offset))

    def storage(self, node: object) -> Tensor:
        """The flat tensor behind a pickled storage."""
        if isinstance(node, Persistent) and id(node) in self.storages:
            return self.storages[id(node)]  # of the legacy file itself
        if not isinstance(node, Call) or node.function != LOAD_STORAGE or len(node.arguments) != 1:
            raise PickleError(f"expected a tensor's storage, got {describe(node)}")
        source = node.arguments[0]
        if id(source) not in self.storages:
            data = _bytes(source)
            root = self.legacy(data)
            if not isinstance(root, Persistent):
                raise PickleError(f"expected a tensor's storage, got {describe(root)}")
            self.storages[id(source)] = self.storages[id(root)]
            self.keep.append(source)
        return self.storages[id(source)]

    def legacy(self, data: bytes) -> Any:
        """Read torch's format before 1.6 and know its storages; returns the tree of the object saved.

        Four pickles (magic number, version, system, object), one with the storages' keys, then each
        storage: the number of elements in eight bytes, and the elements.
        """
        stream = io.BytesIO(data)
        magic, version, system = (parse(stream)[0] for _ in range(3))
        if not isinstance(magic, int) or magic != LEGACY_MAGIC or version != LEGACY_PROTOCOL:
            raise PickleError("it is no data of torch.save, or of an unknown version")
        if not isinstance(system, Mapping) or system.strings().get("little_endian") is not True:
            raise PickleError("its numbers are not little-endian")
        root, references = parse(stream)
        keys, _ = parse(stream)
        declared: dict[str, tuple[torch.dtype, int]] = {}
        for reference in references:
            key, dtype, numel = _storage_type(reference)
            if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
                raise PickleError("a storage is declared twice in different ways")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise PickleError("its list of storages is damaged")
        if sorted(keys) != sorted(declared):
            raise PickleError("its list of storages is not that of its tensors")
        found = {key: _read_storage(stream, *declared[key]) for key in keys}
        for reference in references:
            self.storages[id(reference)] = found[_storage_type(reference)[0]]
        self.keep.extend(references)
        return root


def _storage_type(reference: Persistent) -> tuple[str, torch.dtype, int]:
    """(key, dtype, number of elements) of ('storage', type, key, location, numel, view)."""
    match reference.identity:
        case ("storage", Global(name=kind), str(key), str(), int(numel), None):
            package, _, name = kind.rpartition(".")
            if package in ("torch", "torch.cuda") and name in DTYPES:
                return key, DTYPES[name], numel
            raise PickleError(f"expected a storage of {', '.join(DTYPES)}, got {printable(kind)}")
    raise PickleError("a storage is declared in an unknown way")


def _read_storage(stream: io.BytesIO, dtype: torch.dtype, numel: int) -> Tensor:
    header = stream.read(8)
    if len(header) < 8 or struct.unpack("<q", header)[0] != numel or numel < 0:
        raise PickleError("a storage is cut off, or has another size than declared")
    length = numel * dtype.itemsize
    payload = stream.read(length) if length < 2**62 else b""  # more is no size a stream takes
    if len(payload) < length:
        raise PickleError("a storage is cut off")
    if not numel:
        return torch.empty(0, dtype=dtype, device="cpu")
    raw = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    if dtype == torch.bool and int(raw.max()) > 1:
        raise PickleError("a bool storage holds bytes other than 0 and 1")
    return raw.view(dtype)


def _bytes(node: object) -> bytes:
    if isinstance(node, bytes | bytearray):
        return bytes(node)
    if isinstance(node, Call) and node.function == ENCODE:
        match node.arguments:
            case (str(text), "latin1"):
                try:
                    return text.encode("latin-1")
                except UnicodeEncodeError as error:
                    raise PickleError("the bytes of a storage are damaged") from error
    raise PickleError(f"expected the bytes of a storage, got {describe(node)}")


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(isinstance(v, int) and 0 <= v < 2**62 for v in values):
        raise PickleError("a tensor has a damaged shape")
    return values


def _empty(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    try:
        return torch.empty(size, dtype=dtype, device="cpu")
    except RuntimeError as error:  # sizes whose product overflows, with a zero among them
        raise PickleError("a tensor has a damaged shape") from error


def own(tensor: Tensor) -> Tensor:
    """A contiguous copy that keeps nothing else alive."""
    return tensor.clone(memory_format=torch.contiguous_format)


def describe(node: object) -> str:
    """What ``node`` is, for a message."""
    if isinstance(node, New):
        return f"an object of {printable(node.function)}"
    if isinstance(node, Call):
        return f"a call of {printable(node.function)}"
    if isinstance(node, Global):
        return f"the name {printable(node.name)}"
    return {Mapping: "a dict", Persistent: "a reference to outside the file"}.get(
        type(node), type(node).__name__
    )
