"""Specs of the joins of a chain (csrc/cpu/chain/join_spec.h): sums, concatenations and maps of one result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.run.chain_find import JoinBlock
from oes_fast.rewrite.run.chain_program import Result
from oes_fast.rewrite.weights import CompactWeights


def needs_planes(block: JoinBlock) -> bool:
    """Whether it reads constant channels as images: a pixel shuffle puts them side by side with others."""
    return not block.copies and isinstance(block.core.stage, ir.PixelShuffle)


def join_spec(extension: Any, block: JoinBlock, sources: Sequence[Result], weights: CompactWeights) -> Any:
    """The spec of a join.

    Args:
        extension: the C++ module.
        block: the join.
        sources: its inputs, one for each of ``block.sources``.
        weights: where the weights lie.
    """
    spec = extension.JoinSpec()
    stage = ir.Cat() if block.copies else block.core.stage
    value = block.value
    spec.outputs = len(value.varying)
    spec.rows, spec.columns = block.core.shape[2:]
    outputs = torch.cat([value.varying, value.constant]).tolist()
    spec.bias = [-1] * len(outputs)
    if isinstance(stage, ir.PixelShuffle):
        _pixel_shuffle(spec, extension, stage, outputs, sources[0])
        return spec
    terms, constants = _sum_terms(outputs, _summed(stage, block, len(sources)), sources)
    # What nothing varies of is not read.
    used = sorted({i for _, i, _ in (*terms, *constants)})
    spec.inputs = [sources[i].number for i in used]
    order = {i: number for number, i in enumerate(used)}
    spec.terms = [n for o, i, c in terms for n in (o, order[i], c)]
    spec.constant_terms = [n for o, i, c in constants for n in (o, order[i], c, -1)]
    if not used or (not spec.outputs and not isinstance(stage, ir.PReLU)):
        return spec  # a map of constants passes them on
    if isinstance(stage, ir.Upsample):
        spec.kind = extension.JoinKind.RESAMPLE
        rows, columns = block.core.inputs[0].shape[2:]
        spec.row_index, spec.row_weights = _axis(stage, rows, spec.rows)
        spec.column_index, spec.column_weights = _axis(stage, columns, spec.columns)
    elif isinstance(stage, ir.Pool):
        kinds = {"avg": extension.JoinKind.AVERAGE_POOL, "max": extension.JoinKind.MAX_POOL}
        spec.kind = kinds[stage.kind]
        spec.window_rows, spec.window_columns = stage.kernel
        spec.stride_rows, spec.stride_columns = stage.stride
    elif isinstance(stage, ir.Crop):
        spec.kind = extension.JoinKind.CROP
        spec.top, spec.left = stage.top, stage.left
    elif isinstance(stage, ir.PReLU):
        spec.kind = extension.JoinKind.PRELU
        index = weights.index(stage.weight)
        spec.slopes = (index.expand(block.core.shape[1]) if len(index) == 1 else index)[outputs].tolist()
    return spec


def _summed(stage: ir.Stage, block: JoinBlock, count: int) -> Callable[[int], list[tuple[int, int]]]:
    """For a channel of the value the (input, channel of it) that it is the sum of."""
    if not isinstance(stage, ir.Cat) or block.copies:
        return lambda channel: [(i, channel) for i in range(count)]
    ends = torch.tensor([node.shape[1] for node in block.core.inputs], device="cpu").cumsum(0)

    def part(channel: int) -> list[tuple[int, int]]:
        i = int(torch.searchsorted(ends, channel, right=True))
        return [(i, channel - (int(ends[i - 1]) if i else 0))]

    return part


def _sum_terms(
    outputs: list[int], summed: Callable[[int], list[tuple[int, int]]], sources: Sequence[Result]
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """(output, input, plane of it) of what varies, and (output, input, number of the constant)."""
    terms, constants = [], []
    planes = [_numbers(source.varying) for source in sources]
    numbers = [_numbers(source.constant) for source in sources]
    for output, channel in enumerate(outputs):
        for i, of_input in summed(channel):
            if of_input in planes[i]:
                terms.append((output, i, planes[i][of_input]))
            elif of_input in numbers[i]:
                constants.append((output, i, numbers[i][of_input]))
    return terms, constants


def _pixel_shuffle(
    spec: Any, extension: Any, stage: ir.PixelShuffle, outputs: list[int], source: Result
) -> None:
    spec.kind = extension.JoinKind.PIXEL_SHUFFLE
    spec.factor = stage.factor
    spec.inputs = [source.number]
    phases = stage.factor**2
    planes = _numbers(torch.cat([source.varying, source.constant]) if source.planes else source.varying)
    constants = _numbers(source.constant)
    spec.terms = [
        n
        for output, channel in enumerate(outputs[: spec.outputs])
        for phase in range(phases)
        if channel * phases + phase in planes
        for n in (output, phase, planes[channel * phases + phase])
    ]
    # All phases of a constant channel are one number.
    spec.constant_terms = [
        n
        for output, channel in enumerate(outputs[spec.outputs :], spec.outputs)
        if channel * phases in constants
        for n in (output, 0, constants[channel * phases], -1)
    ]


def _axis(stage: ir.Upsample, size: int, result: int) -> tuple[list[int], list[float]]:
    """For every row or column of the result two neighbours of the image, and their weights."""
    mode = "linear" if stage.mode == "bilinear" else "nearest"
    align = stage.align_corners if mode == "linear" else None
    rows = torch.eye(size, dtype=torch.float64, device="cpu").unsqueeze(0)
    weights: Tensor = F.interpolate(rows, size=result, mode=mode, align_corners=align)[0]  # [size, result]
    index, values = [], []
    for column in weights.T:
        first = int(torch.nonzero(column)[0])
        second = min(first + 1, size - 1)
        index += [first, second]
        values += [float(column[first]), float(column[second]) if second > first else 0.0]
    return index, values


def _numbers(channels: Tensor) -> dict[int, int]:
    """Place of each channel."""
    return {channel: place for place, channel in enumerate(channels.tolist())}
