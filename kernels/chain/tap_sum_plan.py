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
MORE_TILES = 4
MOST_SUMS = 128 * 64  # of a program, see multiplies_shared_memory
SPLITS = (1, 2, 4, 8, 16)
PROCESSORS = 132  # where there is no device: an H100's
INSTRUCTIONS_A_CYCLE = 4 * 32 * 0.6  # of the threads of a processor; a guess
# Guesses that no device has corrected, of a program: cycles of an instruction of a warp that waits for the
# one before, and of a round that does not hide all its loads; instructions beside the rounds, of a warp and
# of an output's pixel; cycles in which the parts of split taps are added.
ALONE, ROUND = 2.0, 400.0
PROGRAM, WRITTEN = 500.0, 25.0
ADDED = 1700.0
BYTES_OF_A_READ = (
    14.0  # through the load units, of a pixel that a tap reads: into shared memory and out of it
)
BYTES_A_CYCLE = 128.0  # of a load unit
REGISTERS = 65536  # of a processor


class _Kernel(NamedTuple):
    """One that is compiled.

    Attributes:
        group: outputs.
        taps: of a round.
        block: cells.
        warps: of a program.
        registers: of a thread, about.
        tf32, tf32x3: instructions of a pixel that a tap reads, counted in machine code for sm_90: its
            address, its normalisation, and its products with the weights of all outputs.
    """

    group: int
    taps: int
    block: int
    warps: int
    registers: int
    tf32: float
    tf32x3: float


# Of 16 outputs at least, the rows of a product on tensor cores.
KERNELS = (
    _Kernel(16, 32, 32, 4, 128, 28, 47),
    _Kernel(16, 16, 64, 4, 160, 26, 41),
    _Kernel(16, 16, 128, 4, 168, 17, 29),
    _Kernel(16, 16, 256, 4, 240, 16, 27),
    _Kernel(32, 16, 64, 4, 248, 30, 55),
    _Kernel(32, 16, 128, 4, 248, 19, 37),
    _Kernel(64, 16, 128, 8, 255, 34, 75),
    _Kernel(128, 16, 64, 8, 208, 59, 99),
    _Kernel(128, 32, 128, 8, 255, 32, 55),
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
        registers: of a thread, about.
        read: instructions of a pixel that a tap reads.
    """

    group: int
    taps: int
    block: int
    splits: int
    program_tiles: int
    warps: int
    registers: int
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


def precision_of(products: str, dtype: torch.dtype) -> str:
    """How Triton's dot computes products: float32 in three parts of TF32, float64 without rounding."""
    precision = "ieee" if dtype == torch.float64 else PRECISION[products]
    # AMD's processors have no products in parts.
    return "ieee" if torch.version.hip is not None and precision == "tf32x3" else precision


def _tiles(spec: TapSum, shape: Shape) -> int:
    return -(-spec.cell_rows * spec.cell_columns // shape.block)


def multiplies_shared_memory(device: torch.device | str) -> bool:
    """Whether products take operands from shared memory, as on Hopper and Blackwell in data centres.

    Elsewhere they pass through registers, which the largest tiles have too few of for products in three
    parts.
    """
    device = torch.device(device)
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10)


def _shapes(
    spec: TapSum, group: int | None, precision: str, device: torch.device | str, *, sums: bool
) -> Iterator[Shape]:
    # In float64 it is the shared memory that would not do.
    large = precision == "tf32" or (precision == "tf32x3" and multiplies_shared_memory(device))
    whole = -(-spec.outputs // KERNELS[0].group) * KERNELS[0].group
    for kernel in KERNELS:
        if kernel.group != group and (group is not None or kernel.group >= 2 * whole):
            continue
        if kernel.group * kernel.block > MOST_SUMS and not large:
            continue
        read = kernel.tf32 if precision == "tf32" else kernel.tf32x3
        for splits in SPLITS:
            shape = Shape(
                kernel.group, kernel.taps, kernel.block, splits, 1, kernel.warps, kernel.registers, read
            )
            of_output = _tiles(spec, shape) * spec.side**2
            fewest = -(-of_output // MOST_PARTIALS) if sums else 1
            if splits == 1:
                for more in range(MORE_TILES):  # with which programs are dealt out more evenly
                    yield replace(shape, program_tiles=fewest + more)
            elif fewest == 1:
                yield shape


def shape_for_interpreter(spec: TapSum, group: int | None) -> Shape:
    """Few programs, tiles and rounds, which Triton's interpreter pays by, not by the element."""
    block = max(16, min(1024, triton.next_power_of_2(spec.cell_rows * spec.cell_columns)))
    shape = Shape(
        group=KERNELS[0].group if group is None else group,
        taps=16 if spec.channels <= 16 else 64,
        block=block,
        splits=1,
        program_tiles=1,
        warps=4,
        registers=0,
        read=0,
    )
    return replace(shape, program_tiles=-(-_tiles(spec, shape) * spec.side**2 // MOST_PARTIALS))


def _cost(spec: TapSum, shape: Shape, taps: int, networks: int, processors: int) -> float:
    """Cycles of a device with that many processors: the longest of three times, see ``limits``."""
    lists = -(-spec.outputs // shape.group) * spec.side**2
    tiles = _tiles(spec, shape)
    programs = -(-tiles // shape.program_tiles) * lists * shape.splits * networks
    # Of a tile, and of all: rounds, and instructions of a warp.
    rounds = -(-taps // (lists * shape.taps * shape.splits))
    threads = 32 * shape.warps
    of_round = shape.read * shape.taps * shape.block / threads
    of_tile = rounds * of_round + WRITTEN * shape.group * shape.block / threads
    instructions = PROGRAM + shape.program_tiles * of_tile
    reads = tiles * lists * shape.splits * networks * rounds * shape.taps * shape.block
    uneven = -(-programs // processors) * processors / programs  # some processors have one more
    resident = max(1, REGISTERS // (shape.registers * threads))
    waves = -(-programs // (processors * resident))
    limits = (
        uneven * programs * instructions * threads / (INSTRUCTIONS_A_CYCLE * processors),
        uneven * reads * BYTES_OF_A_READ / (BYTES_A_CYCLE * processors),
        waves * (instructions * max(ALONE, threads / INSTRUCTIONS_A_CYCLE) + rounds * ROUND),
    )
    return max(limits) + (ADDED if shape.splits > 1 else 0)


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
    sums: bool = True,
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
        sums: the epilogue adds up something of each output, all but STORE.
    """
    precision = precision_of(products, dtype)
    count = functools.cache(functools.partial(count_grouped_taps, spec.taps))

    def cost(shape: Shape) -> float:
        return _cost(spec, shape, count(shape.group, shape.taps), networks, processors)

    best = min(_shapes(spec, group, precision, device, sums=sums), key=cost) if shape is None else shape
    lists = tap_lists(spec.taps, spec.outputs, spec.side**2, best.group, best.taps, device)
    return TapSumPlan(spec, lists, best, precision)
