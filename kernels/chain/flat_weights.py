"""Between the flat vector of weights and the lists of taps: weights as kernels read them, and gradients back.

A table has entries in the order in which neighbouring threads take them. One side of the move is a list of
taps, where outputs are next to each other, the other is the flat vector, where an output's taps are; so
threads take tiles of :data:`TAPS` taps and :data:`OUTPUTS` outputs, neighbours on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl
from oes_fast.kernels.philox import on_device_of
from oes_fast.kernels.tuning import interpreted
from torch import Tensor

TAPS: Final = tl.constexpr(4)
OUTPUTS: Final = tl.constexpr(8)
ROW: Final = tl.constexpr(8)  # numbers of a program
MANY: Final = tl.constexpr(8)  # chunks that a thread adds one after the other at most

MOST_KEPT = 0.6  # share of a list's values with a weight, up to which those alone are written
_ALIGNED = 32  # elements: where a convolution's weights and partials begin
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
_PARTS, _BLOCK = 4, 128  # of a program: elements of a thread, threads
_INTERPRETER_BLOCK = 512  # the interpreter pays by the program, not by the element


@triton.jit
def _of_program(rows_ptr, program):
    """What :class:`_Table` wrote for a program: entries, their table, planes of it, where the rest lies."""
    row = rows_ptr + program * ROW
    entry, end, table, plane = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    return entry, end, table, plane, tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)


@triton.jit
def _entries(entry, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The entries of a program; a thread takes one of each part, so that a warp's are a tile."""
    at = entry + tl.arange(0, PARTS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.max_contiguous(at, [1, 1])


@triton.jit(do_not_specialize=["weights", "packed"])
def pack_weights_kernel(
    packed_ptr,
    weights_ptr,
    table_ptr,
    rows_ptr,
    scales_ptr,
    weights,
    packed,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """packed[place of an entry] = scale * the sum of its weights; a plane of the table for each of them."""
    program = tl.program_id(0)
    network = tl.program_id(2).to(tl.int64)
    entry, end, table, plane, width, begin, group, _ = _of_program(rows_ptr, program)
    scale = tl.load(scales_ptr + program)
    weights_ptr += network * weights
    table_ptr += table
    at = _entries(entry, PARTS, BLOCK)
    there = at < end
    place = at
    if group < 0:  # the first plane has the places
        place = tl.load(table_ptr + at, mask=there, other=0)
        table_ptr += plane
    index = tl.load(table_ptr + at, mask=there, other=-1)
    value = tl.load(weights_ptr + index, mask=index >= 0, other=0.0)
    if width > 1:
        for k in tl.static_range(1, WIDTH):
            index = tl.load(table_ptr + k * plane + at, mask=at < tl.where(width > k, end, 0), other=-1)
            value += tl.load(weights_ptr + index, mask=index >= 0, other=0.0)
    if group > 0:  # the entries are in tiles
        whole = at & (TAPS * group - 1)
        tap = whole // OUTPUTS % TAPS
        place = at - whole + tap * group + whole // (TAPS * OUTPUTS) * OUTPUTS + whole % OUTPUTS
    tl.store(packed_ptr + network * packed + begin + place, scale * value, mask=there)


@triton.jit
def _add_few(
    grad_weights_ptr, partials_ptr, table_ptr, entry, end, plane, width, chunks, stride, scale,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A thread takes several entries, and their chunks one after the other."""
    at = _entries(entry, PARTS, BLOCK)
    there = at < end
    weight = tl.load(table_ptr + at, mask=there, other=0)
    before = tl.load(grad_weights_ptr + weight, mask=there, other=0.0)
    place = tl.load(table_ptr + plane + at, mask=there, other=0)
    total = tl.load(partials_ptr + place, mask=there, other=0.0)
    for chunk in range(1, chunks):
        total += tl.load(partials_ptr + chunk * stride + place, mask=there, other=0.0)
    if width > 1:
        for k in tl.static_range(2, WIDTH + 1):
            place = tl.load(table_ptr + k * plane + at, mask=at < tl.where(width >= k, end, 0), other=-1)
            for chunk in range(0, chunks):
                total += tl.load(partials_ptr + chunk * stride + place, mask=place >= 0, other=0.0)
    tl.store(grad_weights_ptr + weight, before + scale * total, mask=there)


@triton.jit
def _add_many(
    grad_weights_ptr, partials_ptr, table_ptr, entry, end, plane, width, chunks, stride, scale,
    WIDTH: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A thread takes one entry, and several chunks at a time."""
    at = entry + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)[:, None]
    there = at < end
    weight = tl.load(table_ptr + at, mask=there, other=0)
    before = tl.load(grad_weights_ptr + weight, mask=there, other=0.0)
    total = tl.zeros((PARTS, BLOCK), before.dtype)
    for k in tl.static_range(1, WIDTH + 1):
        place = tl.load(table_ptr + k * plane + at, mask=at < tl.where(width >= k, end, 0), other=-1)
        for chunk in tl.range(0, chunks, PARTS, loop_unroll_factor=4):
            of_chunk = (chunk + part) * stride + place[None, :]
            known = (chunk + part < chunks) & (place >= 0)[None, :]
            total += tl.load(partials_ptr + of_chunk, mask=known, other=0.0)
    tl.store(grad_weights_ptr + weight, before + scale * tl.sum(total, axis=0), mask=there)


@triton.jit(do_not_specialize=["first", "weights", "partials"])
def unpack_weight_grads_kernel(
    grad_weights_ptr,
    partials_ptr,
    table_ptr,
    rows_ptr,
    scales_ptr,
    first,
    weights,
    partials,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_weights[weight of an entry] += scale * the sum over its places and the chunks, in fixed order.

    The first plane of the table has the weights, the others have places.
    """
    program = first + tl.program_id(0)
    network = tl.program_id(2).to(tl.int64)
    entry, end, table, plane, width, begin, chunks, stride = _of_program(rows_ptr, program)
    scale = tl.load(scales_ptr + program)
    grad_weights_ptr += network * weights
    partials_ptr += network * partials + begin
    table_ptr += table
    # fmt: off
    if chunks > MANY:
        _add_many(grad_weights_ptr, partials_ptr, table_ptr, entry, end, plane, width, chunks, stride, scale,
                  WIDTH, PARTS, BLOCK)
    else:
        _add_few(grad_weights_ptr, partials_ptr, table_ptr, entry, end, plane, width, chunks, stride, scale,
                 WIDTH, PARTS, BLOCK)
    # fmt: on


@dataclass(frozen=True)
class _Segment:
    """A convolution's part of a table: planes of entries and the numbers that all its programs have."""

    planes: np.ndarray  # int32 [planes, entries]
    width: int
    scale: float
    begin: int  # of the values in their buffer
    rest: tuple[int, int]  # what else its programs are told
    many: bool = False  # values of an entry are many: a thread has one


class _Table:
    """Segments and the programs that take their entries, on the device."""

    def __init__(
        self, segments: list[_Segment], parts: int, block: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        rows: list[tuple[int, ...]] = []
        scales: list[float] = []
        self.programs: list[int] = []  # of each segment
        self.width = max((s.width for s in segments), default=1)
        begin = 0
        for s in segments:
            entries = s.planes.shape[1]
            step = block if s.many else parts * block
            firsts = range(0, entries, step)
            rows += [
                (first, min(first + step, entries), begin, entries, s.width, s.begin, *s.rest)
                for first in firsts
            ]
            scales += [s.scale] * len(firsts)
            self.programs.append(len(firsts))
            begin += s.planes.size
        planes = [s.planes.reshape(-1) for s in segments]
        table = np.concatenate(planes) if planes else np.zeros(0, np.int32)
        self.table = torch.from_numpy(table).to(device)
        self.rows = torch.tensor(rows, dtype=torch.int32).reshape(-1, ROW.value).to(device)
        self.scales = torch.tensor(scales, dtype=dtype, device=device)


class FlatWeights:
    """The weights of a chain's convolutions, one flat vector, as its kernels read them and write gradients.

    First every convolution is added, then :meth:`finish` makes what the moves need.

    Args:
        weights: of the flat vector of a network.
        networks: how many.
        device: of all tensors.
        dtype: float32 or float64.

    Attributes:
        packed: the weights of the lists, [networks, elements], after :meth:`finish`.
        partials: sums for the gradients, [networks, elements], after :meth:`finish`.
    """

    packed: Tensor
    partials: Tensor

    def __init__(self, weights: int, networks: int, device: torch.device | str, dtype: torch.dtype) -> None:
        self._weights, self._networks = weights, networks
        self._device, self._dtype = torch.device(device), dtype
        self._packs: list[_Segment] = []
        self._unpacks: list[_Segment] = []
        self._packed_size = self._partials_size = 0
        self._shape = {"PARTS": _PARTS, "BLOCK": _BLOCK}
        if interpreted():
            self._shape["BLOCK"] = _INTERPRETER_BLOCK

    def add_packed(self, index: np.ndarray, scale: float) -> int:
        """Add lists of taps that are read.

        Args:
            index: flat weights that a value is the sum of, -1 for none, int64 [taps, group, weights].
            scale: factor of the sum.

        Returns:
            Where the values [taps, group] begin in a network's part of ``packed``, in elements.
        """
        taps, group, width = index.shape
        begin, planes = self._packed_size, index.reshape(taps * group, width)
        places = np.arange(len(planes))
        tiled = taps % TAPS.value == 0 and group % OUTPUTS.value == 0 and group & (group - 1) == 0
        if tiled:
            tiles = (taps // TAPS.value, TAPS.value, group // OUTPUTS.value, OUTPUTS.value)
            planes = planes.reshape(*tiles, width).transpose(0, 2, 1, 3, 4).reshape(-1, width)
            places = places.reshape(tiles).transpose(0, 2, 1, 3).reshape(-1)
        kept: np.ndarray = np.asarray((planes >= 0).any(axis=1))
        if len(kept) and kept.mean() < MOST_KEPT:
            planes, rest = np.column_stack([places[kept], planes[kept]]), -1
        else:
            rest = group if tiled else 0
        planes = np.ascontiguousarray(planes.T.astype(np.int32))
        self._packs.append(_Segment(planes, width, scale, begin, (rest, 0)))
        self._packed_size += _aligned(taps * group)
        return begin

    def add_grads(self, index: np.ndarray, scale: float, chunks: int) -> int:
        """Add lists of taps whose gradients are computed, as sums over chunks of an image's cells.

        Args:
            index: as for :meth:`add_packed`.
            scale: factor of the gradients.
            chunks: partial sums of each.

        Returns:
            Where the partial sums [chunks, taps, group] begin in a network's part of ``partials``.
        """
        taps, group, _ = index.shape
        begin, planes = self._partials_size, _gradient_planes(index)
        rest = (chunks, taps * group)
        self._unpacks.append(_Segment(planes, len(planes) - 1, scale, begin, rest, chunks > MANY.value))
        self._partials_size += _aligned(chunks * taps * group)
        return begin

    def finish(self) -> None:
        """Make the tables and the buffers, once all convolutions were added."""
        shape = self._shape["PARTS"], self._shape["BLOCK"]
        self._pack = _Table(self._packs, *shape, self._device, self._dtype)
        self._unpack = _Table(self._unpacks, *shape, self._device, self._dtype)
        weights = [s.planes[0] for s in self._unpacks]
        kept = np.concatenate(weights) if weights else np.zeros(0, np.int32)
        # (programs, the first of them) of each launch.
        programs = self._unpack.programs
        if np.bincount(kept, minlength=1).max() <= 1:  # no weight in two of them
            programs = [sum(programs)]
        self._launches = [(n, sum(programs[:i])) for i, n in enumerate(programs) if n > 0]
        self._packs, self._unpacks = [], []

        options: dict[str, Any] = {"dtype": self._dtype, "device": self._device}
        # Taps that an output lacks stay zero.
        self.packed = torch.zeros(self._networks, self._packed_size, **options)
        self.partials = torch.empty(self._networks, self._partials_size, **options)

    def pack(self, weights: Tensor) -> None:
        """Set ``packed`` from the weights, [networks, weights], contiguous."""
        table, programs = self._pack, sum(self._pack.programs)
        if programs == 0:
            return
        with on_device_of(weights):
            pack_weights_kernel[(programs, 1, self._networks)](
                self.packed,
                weights,
                table.table,
                table.rows,
                table.scales,
                self._weights,
                self._packed_size,
                WIDTH=table.width,
                **self._shape,
                **_OPTIONS,
            )

    def unpack(self, grad_weights: Tensor) -> None:
        """Add the gradients that ``partials`` has to those of the weights, [networks, weights], contiguous.

        One launch; where two convolutions share a weight one for each, which always add in the same order.
        """
        table = self._unpack
        for programs, first in self._launches:
            with on_device_of(grad_weights):
                unpack_weight_grads_kernel[(programs, 1, self._networks)](
                    grad_weights,
                    self.partials,
                    table.table,
                    table.rows,
                    table.scales,
                    first,
                    self._weights,
                    self._partials_size,
                    WIDTH=table.width,
                    **self._shape,
                    **_OPTIONS,
                )


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _gradient_planes(index: np.ndarray) -> np.ndarray:
    """The kept weights of a convolution and their places in a chunk of partials, int32 [1 + places, kept]."""
    _, group, width = index.shape
    places, flat = np.divmod(np.flatnonzero(index >= 0), width)[0], index[index >= 0]
    order = np.argsort(flat, kind="stable")
    places, flat = places[order], flat[order]
    begins = np.flatnonzero(np.diff(flat, prepend=-1))
    counts = np.diff(begins, append=len(flat))
    planes = np.full((1 + counts.max(initial=1), len(begins)), -1, np.int32)
    planes[0] = flat[begins]
    which = np.repeat(np.arange(len(begins)), counts)
    planes[1 + np.arange(len(flat)) - begins[which], which] = places
    # In tiles, of the taps and outputs where a weight is first.
    tap, output = np.divmod(planes[1], group)
    tap = np.unique(tap, return_inverse=True)[1].reshape(-1)
    keys = (output % OUTPUTS.value, tap % TAPS.value, output // OUTPUTS.value, tap // TAPS.value)
    return np.ascontiguousarray(planes[:, np.lexsort(keys)])
