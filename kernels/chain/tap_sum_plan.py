"""How a sum over taps is laid out on a device: groups of outputs, tiles of cells, and parts of the taps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
from oes_fast.kernels.chain.conv_taps import TapSum
from oes_fast.kernels.chain.kinds import PAD_NONE
from oes_fast.kernels.chain.tap_lists import TapLists, count_grouped_taps, tap_lists

MOST_PARTIALS = 256  # of an output, which one program adds up
SPLITS = (1, 2, 4, 8)
PROCESSORS = 132  # where there is no device: an H100's
# What the choice follows from, of a processor (SM) of an H100. No device has corrected the guesses.
INSTRUCTIONS_A_CYCLE = 4 * 32 * 0.6
ROUND = 900.0  # guess: cycles of a round of taps, of a program alone
PROGRAM = 2500.0  # guess: cycles beside its rounds


class _Kernel(NamedTuple):
    """One that is compiled.

    Attributes:
        group: outputs.
        taps: of a round.
        block: cells.
        warps: of a program.
        tf32, tf32x3: instructions of a pixel that a tap reads, counted in machine code for sm_90: its address,
            its normalisation, and its products with the weights of all outputs.
    """

    group: int
    taps: int
    block: int
    warps: int
    tf32: float
    tf32x3: float


# Of 16 outputs at least, the rows of a product on tensor cores.
KERNELS = (
    _Kernel(16, 32, 32, 4, 28, 47),
    _Kernel(16, 16, 64, 4, 26, 41),
    _Kernel(16, 16, 128, 4, 17, 29),
    _Kernel(16, 16, 256, 4, 16, 27),
    _Kernel(32, 16, 64, 4, 30, 55),
    _Kernel(32, 16, 128, 4, 19, 37),
    _Kernel(64, 16, 128, 8, 34, 75),
    _Kernel(64, 16, 256, 8, 19, 54),
    _Kernel(128, 16, 64, 8, 59, 99),
    _Kernel(128, 32, 128, 8, 32, 55),
)
STAGES = 3  # rounds whose loads are under way

PRECISION = {"float32": "tf32x3", "tf32x3": "tf32x3", "tf32": "tf32"}


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for and launched with.

    Attributes:
        group: outputs of a program.
        taps: of a round.
        block: cells of a tile.
        splits: programs that share the taps of a tile.
        program_tiles: tiles of a program.
        warps: of a program.
        read: instructions of a pixel that a tap reads.
    """

    group: int
    taps: int
    block: int
    splits: int
    program_tiles: int
    warps: int
    read: float


@dataclass(frozen=True)
class TapSumPlan:
    """A sum over taps, ready to be launched.

    Attributes:
        spec: what is computed.
        lists: its taps.
        shape: of the launch.
        precision: of products, as Triton's dot takes it.
    """

    spec: TapSum
    lists: TapLists
    shape: Shape
    precision: str

    @property
    def tiles(self) -> int:
        """Of cells."""
        return _tiles(self.spec, self.shape)

    @property
    def programs(self) -> int:
        """Along the cells."""
        return -(-self.tiles // self.shape.program_tiles)

    @property
    def chunks(self) -> int:
        """Partial sums of an output."""
        return self.programs * self.lists.phases

    @property
    def tickets(self) -> int:
        """Of a network."""
        split = 0 if self.shape.splits == 1 else self.lists.groups * self.lists.phases * self.tiles
        return self.lists.groups + split

    @property
    def workspace(self) -> int:
        """Elements of a network."""
        s = self.shape
        of_tile = s.splits * s.group * s.block
        return 0 if s.splits == 1 else self.lists.groups * self.lists.phases * self.tiles * of_tile

    @property
    def pointwise(self) -> bool:
        """Every cell reads its own pixel: a 1 x 1 convolution."""
        spec = self.spec
        return (
            (spec.step, spec.padding) == (1, PAD_NONE.value)
            and (spec.cell_rows, spec.cell_columns) == (spec.image_rows, spec.image_columns)
            and not (spec.taps.row.any() or spec.taps.column.any())
        )

    def describe(self) -> str:
        """How it is computed, in words."""
        s = self.shape
        parts = "" if s.splits == 1 else f", taps in {s.splits} parts"
        return f"{self.precision} products of {s.group} outputs and {s.block} pixels{parts}"


def _tiles(spec: TapSum, shape: Shape) -> int:
    return -(-spec.cell_rows * spec.cell_columns // shape.block)


def _shapes(outputs: int, group: int | None, precision: str) -> Iterator[Shape]:
    whole = -(-outputs // KERNELS[0].group) * KERNELS[0].group
    for kernel in KERNELS:
        if kernel.group != group and (group is not None or kernel.group >= 2 * whole):
            continue
        read = kernel.tf32 if precision == "tf32" else kernel.tf32x3
        for splits in SPLITS:
            yield Shape(kernel.group, kernel.taps, kernel.block, splits, 1, kernel.warps, read)


def shape_for_interpreter(spec: TapSum, group: int | None) -> Shape:
    """Few programs, tiles and rounds, which Triton's interpreter pays by, not by the element."""
    block = min(1024, triton.next_power_of_2(spec.cell_rows * spec.cell_columns))
    taps = 16 if spec.channels <= 16 else 64
    group = KERNELS[0].group if group is None else group
    return Shape(group, taps, max(block, 16), 1, 1, 4, 1.0)


def _cost(spec: TapSum, shape: Shape, taps: int, networks: int, processors: int) -> float:
    """Cycles of a device with that many processors."""
    lists = -(-spec.outputs // shape.group) * spec.side**2
    tiles = _tiles(spec, shape)
    programs = lists * tiles * shape.splits * networks
    rounds = -(-taps // (lists * shape.taps * shape.splits))
    instructions = programs * rounds * shape.taps * shape.block * shape.read
    work = instructions / (INSTRUCTIONS_A_CYCLE * processors)
    waves = max(1.0, programs / (processors * 8 / shape.warps))
    alone = rounds * ROUND + PROGRAM * (1 if shape.splits == 1 else 2)
    return max(work, waves * alone)


def plan_tap_sum(
    spec: TapSum,
    *,
    networks: int,
    products: str,
    dtype: torch.dtype,
    processors: int = PROCESSORS,
    device: torch.device | str,
    group: int | None = None,
    shape: Shape | None = None,
) -> TapSumPlan:
    """The layout that a model of the cost takes for the fastest.

    Args:
        spec: what is computed.
        networks: at once.
        products: one of :data:`oes_fast.precision.PRECISIONS`.
        dtype: of images and weights; float64 is never rounded.
        processors: of the device.
        device: of the lists.
        group: outputs of a program, None for any.
        shape: of the launch, None for any.
    """
    precision = "ieee" if dtype == torch.float64 else PRECISION[products]
    count = functools.cache(functools.partial(count_grouped_taps, spec.taps))

    def cost(shape: Shape) -> float:
        return _cost(spec, shape, count(shape.group, shape.taps), networks, processors)

    best = min(_shapes(spec.outputs, group, precision), key=cost) if shape is None else shape
    if best.splits == 1:
        tiles, phases = _tiles(spec, best), spec.side**2
        best = replace(best, program_tiles=-(-tiles * phases // MOST_PARTIALS))
    lists = tap_lists(spec.taps, spec.outputs, spec.side**2, best.group, best.taps, device)
    return TapSumPlan(spec, lists, best, precision)
