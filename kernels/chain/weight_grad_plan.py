"""How the gradient of a convolution's weights is laid out on a device: blocks of taps and chunks of cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
from oes_fast.kernels.chain.conv_taps import TapSum
from oes_fast.kernels.chain.tap_lists import ROW, TapLists
from oes_fast.kernels.chain.tap_sum_plan import (
    INSTRUCTIONS_A_CYCLE,
    PROCESSORS,
    multiplies_shared_memory,
    precision_of,
)
from oes_fast.kernels.tuning import interpreted
from torch import Tensor

MOST_CHUNKS = 512
MOST_OUTPUTS = 32  # of a program, see multiplies_shared_memory
MOST_PARTIALS = 1 << 20  # of a convolution, where it is cut into chunks; 4 MB in float32
# Of a device: guesses that no device has corrected.
PROGRAM = 2500.0  # cycles beside its tiles
ROUND = 1100.0  # cycles of a tile beside its instructions: loads, two barriers
BYTES_A_CYCLE = 3000.0  # that an H100 takes from its second cache
CHUNK = 40.0  # cycles in which a thread adds one more


class Shape(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        outputs: of a program.
        places: at which its taps read.
        taps: of each place.
        rows: of a tile of cells.
        columns: of a tile.
        warps: of a program.
        tf32, tf32x3: instructions of a thread for a tile, counted in machine code for sm_90: what the taps
            read and the gradients, with addresses and normalisation, and the products.
        resident: programs that a processor has registers for.
    """

    outputs: int
    places: int
    taps: int
    rows: int
    columns: int
    warps: int
    tf32: int
    tf32x3: int
    resident: int

    @property
    def cells(self) -> int:
        """Of a tile."""
        return self.rows * self.columns

    @property
    def pixels(self) -> int:
        """Read for a cell from the second cache: places are neighbours; gradient, and result for the norm."""
        return self.taps + 2 * self.outputs


# Rows of sixteen cells: a thread meets few taps and outputs, whose numbers it keeps in registers.
KERNELS = (
    Shape(16, 1, 64, 2, 16, 4, 244, 371, 5),
    Shape(16, 2, 32, 2, 16, 4, 259, 394, 5),
    Shape(16, 4, 16, 2, 16, 4, 309, 443, 5),
    Shape(32, 1, 64, 2, 16, 4, 264, 454, 4),
    Shape(32, 2, 32, 2, 16, 4, 287, 477, 4),
    Shape(32, 4, 16, 2, 16, 4, 335, 521, 4),
    Shape(64, 1, 64, 2, 16, 4, 330, 605, 3),
    Shape(64, 2, 32, 2, 16, 4, 353, 628, 3),
    Shape(64, 4, 16, 2, 16, 4, 399, 674, 3),
)
EXACT_KERNELS = (Shape(16, 1, 16, 2, 16, 4, 192, 192, 5), Shape(32, 1, 32, 2, 16, 4, 367, 367, 3))  # float64


@dataclass(frozen=True)
class WeightGradPlan:
    """The gradient of a convolution's weights, ready to be launched.

    Attributes:
        spec: the forward pass.
        lists: its taps.
        shape: of the launch.
        precision: of products, as Triton's dot takes it.
        program_tiles: tiles of a chunk.
        blocks: of taps and outputs, int32 [blocks, 3 + 4 * places]: first output, phase, whether it is the
            first of these outputs and this phase, then of each place the first tap, the end, row and column.
    """

    spec: TapSum
    lists: TapLists
    shape: Shape
    precision: str
    program_tiles: int
    blocks: Tensor

    @property
    def column_tiles(self) -> int:
        """Tiles of cells side by side."""
        return -(-self.spec.cell_columns // self.shape.columns)

    @property
    def tiles(self) -> int:
        """Of cells."""
        return _tiles(self.spec, self.shape)

    @property
    def chunks(self) -> int:
        """Partial sums of a gradient."""
        return -(-self.tiles // self.program_tiles)

    @property
    def whole(self) -> bool:
        """Every cell of every tile has a pixel of the result in every phase."""
        spec, shape = self.spec, self.shape
        covered = spec.cell_rows % shape.rows == 0 and spec.cell_columns % shape.columns == 0
        pixels = (spec.side * spec.cell_rows, spec.side * spec.cell_columns)
        return covered and (spec.crop_top, spec.crop_left) == (0, 0) and pixels == (spec.rows, spec.columns)

    def describe(self) -> str:
        """How it is computed, in words."""
        s = self.shape
        places = "at one place" if s.places == 1 else f"at each of {s.places} places"
        return (
            f"{self.precision} products of {s.taps} taps {places} and {s.outputs} outputs, "
            f"{self.chunks} {'chunk' if self.chunks == 1 else 'chunks'} of {self.tiles} tiles"
        )


def _tiles(spec: TapSum, shape: Shape) -> int:
    return -(-spec.cell_rows // shape.rows) * -(-spec.cell_columns // shape.columns)


def _runs(lists: TapLists) -> np.ndarray:
    """(list, place, first tap, end) of the taps of a list that read at one place, int64 [runs, 4]."""
    kept = np.flatnonzero((lists.index >= 0).any(axis=(1, 2)))  # not those that fill a run
    lengths = np.diff(lists.begins.cpu().numpy())
    keys = np.stack([np.repeat(np.arange(len(lengths)), lengths), lists.taps.cpu().numpy()[:, 1]], axis=1)[
        kept
    ]
    first = np.ones(len(kept), bool)
    first[1:] = np.any(keys[1:] != keys[:-1], axis=1)
    last = np.roll(first, -1)
    return np.column_stack([keys[first], kept[first], kept[last] + 1]).reshape(-1, 4)


def _parts(runs: np.ndarray, taps: int) -> np.ndarray:
    """Runs cut into parts of so many taps at most."""
    counts = -(-(runs[:, 3] - runs[:, 2]) // taps)
    parts = np.repeat(runs, counts, axis=0)
    parts[:, 2] += taps * (np.arange(len(parts)) - np.repeat(np.cumsum(counts) - counts, counts))
    parts[:, 3] = np.minimum(parts[:, 3], parts[:, 2] + taps)
    return parts


def _block_count(runs: np.ndarray, lists: TapLists, shape: Shape) -> int:
    counts = np.bincount(_parts(runs, shape.taps)[:, 0])
    return int((-(-counts // shape.places)).sum()) * (lists.group // shape.outputs)


def _blocks(runs: np.ndarray, spec: TapSum, lists: TapLists, shape: Shape) -> np.ndarray:
    """See :class:`WeightGradPlan`; a block without taps at its last places has empty ones there."""
    parts, blocks = _parts(runs, shape.taps), []
    for listed, of_list in itertools.groupby(parts.tolist(), key=lambda part: part[0]):
        group, phase = divmod(listed, lists.phases)
        places = [(begin, end, place // ROW, place % ROW) for _, place, begin, end in of_list]
        for k in range(0, len(places), shape.places):
            taken = places[k : k + shape.places]
            begin, _, row, column = taken[0]
            taken += [(begin, begin, row, column)] * (shape.places - len(taken))
            firsts = range(group * lists.group, min((group + 1) * lists.group, spec.outputs), shape.outputs)
            blocks += [(first, phase, int(k == 0), *itertools.chain(*taken)) for first in firsts]
    return np.array(blocks, np.int32).reshape(-1, 3 + 4 * shape.places)


def _shapes(group: int, precision: str, device: torch.device) -> Iterator[Shape]:
    kernels = EXACT_KERNELS if precision == "ieee" else KERNELS
    most = MOST_OUTPUTS if precision == "tf32x3" and not multiplies_shared_memory(device) else group
    outputs = min(group, most, max(kernel.outputs for kernel in kernels))
    for kernel in kernels:
        if kernel.outputs == outputs:
            yield kernel


def _instructions(shape: Shape, precision: str) -> int:
    return shape.tf32 if precision == "tf32" else shape.tf32x3


def _cost(
    spec: TapSum,
    shape: Shape,
    blocks: int,
    partials: int,
    program_tiles: int,
    precision: str,
    processors: int,
) -> float:
    """Cycles of a device with that many processors, for blocks and partials of all networks."""
    tiles = _tiles(spec, shape)
    chunks = -(-tiles // program_tiles)
    programs, instructions = blocks * chunks, _instructions(shape, precision)
    bandwidth = BYTES_A_CYCLE * processors / PROCESSORS
    work = blocks * tiles * instructions * 32 * shape.warps / (INSTRUCTIONS_A_CYCLE * processors)
    read = blocks * tiles * shape.cells * shape.pixels * 4 / bandwidth
    waves = max(1.0, programs / (processors * shape.resident))
    alone = waves * (PROGRAM + program_tiles * (ROUND + instructions))
    added = 8.0 * chunks * partials / bandwidth  # written, and read to be added
    return max(work, read, alone) + added + CHUNK * chunks


def _for_interpreter(spec: TapSum, lists: TapLists, runs: np.ndarray) -> Shape:
    """Few programs and tiles, which it pays by, not by the element."""
    taps = int((runs[:, 3] - runs[:, 2]).max(initial=1))
    taps, rows, columns = (triton.next_power_of_2(n) for n in (taps, spec.cell_rows, spec.cell_columns))
    return Shape(lists.group, 16, min(taps, 64), min(rows, 16), min(columns, 32), 4, 1000, 1000, 1)


def plan_weight_grad(
    forward: TapSum,
    lists: TapLists,
    *,
    networks: int,
    products: str,
    dtype: torch.dtype,
    processors: int = PROCESSORS,
    shape: Shape | None = None,
) -> WeightGradPlan:
    """The layout that a model of the cost takes for the fastest.

    Args:
        forward: the convolution.
        lists: its taps, as the forward pass walks them.
        networks: at once.
        products: one of :data:`oes_fast.precision.PRECISIONS`.
        dtype: of images and gradients; float64 is never rounded.
        processors: of the device.
        shape: of the launch, None for any.
    """
    precision = precision_of(products, dtype)
    runs, partials = _runs(lists), lists.count * lists.group
    most_chunks = max(1, min(MOST_CHUNKS, MOST_PARTIALS // max(partials, 1)))
    shapes = [shape] if shape is not None else list(_shapes(lists.group, precision, lists.taps.device))
    if interpreted() and shape is None:
        shapes, most_chunks = [_for_interpreter(forward, lists, runs)], min(most_chunks, 2)
    found: list[tuple[float, Shape, int]] = []
    for one in shapes:
        blocks, tiles = _block_count(runs, lists, one) * networks, _tiles(forward, one)
        for program_tiles in {-(-tiles // chunks) for chunks in range(1, most_chunks + 1)}:
            cost = _cost(forward, one, blocks, partials * networks, program_tiles, precision, processors)
            found.append((cost, one, program_tiles))
    _, best, program_tiles = min(found, key=lambda one: one[0])
    table = torch.from_numpy(_blocks(runs, forward, lists, best)).to(lists.taps.device)
    return WeightGradPlan(forward, lists, best, precision, program_tiles, table)
