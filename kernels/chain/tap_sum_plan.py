"""How a sum over taps is laid out on a device: groups of outputs, tiles of cells, and parts of the taps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from oes_fast.kernels.chain.conv_taps import TapSum
from oes_fast.kernels.chain.kinds import PAD_NONE
from oes_fast.kernels.chain.tap_lists import TapLists, count_grouped_taps, tap_lists

GROUPS = (16, 32, 64, 128)  # of outputs: a product on tensor cores has 16 rows at least
MOST_PARTIALS = 256  # of an output, which one program adds up
MOST_SPLITS = 8
# What the choice follows from, of a processor (SM) of an H100; the first two were counted in machine code,
# the others are guesses that no device has corrected.
INSTRUCTIONS_OF_A_READ = 20.0  # of a pixel that a tap reads: address, normalisation, way to the product
INSTRUCTIONS_OF_A_PRODUCT = {"tf32": 0.10, "tf32x3": 0.35, "ieee": 1.5}  # of a multiply-accumulate
INSTRUCTIONS_A_CYCLE = 4 * 32 * 0.6
ROUND = 900.0  # cycles of a round of taps, of a program alone
PROGRAM = 2500.0  # cycles beside its rounds
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
        stages: how many rounds' loads are under way.
    """

    group: int
    taps: int
    block: int
    splits: int
    program_tiles: int
    warps: int
    stages: int


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


def _shapes(group: int, precision: str) -> Iterator[Shape]:
    for block in (32, 64, 128, 256):
        if block * group > 128 * 128 or (precision != "tf32" and block * group > 128 * 64):
            continue  # the sums would not fit the registers
        warps = 8 if block * group >= 128 * 64 else 4
        taps = 64 if block <= 64 and group <= 32 else 32
        for splits in (1, 2, 4, MOST_SPLITS):
            yield Shape(group, taps, block, splits, 1, warps, 2)


def _cost(spec: TapSum, shape: Shape, taps: int, precision: str, networks: int, processors: int) -> float:
    """Cycles of a device with that many processors."""
    lists = -(-spec.outputs // shape.group) * spec.side**2
    tiles = _tiles(spec, shape)
    programs = lists * tiles * shape.splits * networks
    of_list = taps / lists
    rounds = -(-of_list // (shape.taps * shape.splits))
    reads = rounds * shape.splits * shape.taps * lists * tiles * shape.block * networks
    instructions = reads * (INSTRUCTIONS_OF_A_READ + shape.group * INSTRUCTIONS_OF_A_PRODUCT[precision])
    work = instructions / (INSTRUCTIONS_A_CYCLE * processors)
    resident = 16 / shape.warps
    waves = max(1.0, programs / (processors * resident))
    alone = rounds * ROUND + PROGRAM * (1 if shape.splits == 1 else 2)
    return max(work, waves * alone)


def plan_tap_sum(
    spec: TapSum,
    *,
    networks: int,
    products: str,
    dtype: torch.dtype,
    processors: int,
    device: torch.device | str,
    group: int | None = None,
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
    """
    precision = "ieee" if dtype == torch.float64 else PRECISION[products]
    count = functools.lru_cache(lambda group: count_grouped_taps(spec.taps, group))
    useful = -(-spec.outputs // GROUPS[0]) * GROUPS[0]
    groups = (group,) if group is not None else [g for g in GROUPS if g < 2 * useful]

    def cost(shape: Shape) -> float:
        return _cost(spec, shape, count(shape.group), precision, networks, processors)

    best = min((shape for g in groups for shape in _shapes(g, precision)), key=cost)
    if best.splits == 1:
        tiles, phases = _tiles(spec, best), spec.side**2
        best = Shape(**vars(best) | {"program_tiles": -(-tiles * phases // MOST_PARTIALS)})
    lists = tap_lists(spec.taps, spec.outputs, spec.side**2, best.group, best.taps, device)
    return TapSumPlan(spec, lists, best, precision)
