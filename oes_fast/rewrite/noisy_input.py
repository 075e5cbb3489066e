"""An input with noise that is drawn anew in each step, written where the first convolutions read it.

A fixed input is laid out once as the C++ chains read it: padded, summed, in phases (csrc/cpu/chain/). With
noise it is laid out again in each step, by one kernel that draws the noise on the way; chains take it for
constant all the same. Where another stage reads the input, the noisy image is made and read as any other.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary, proxy

import torch
import torch.nn.functional as F
from torch import Tensor

from oes_fast._checks import check_integer, check_number
from oes_fast.ops import _library
from oes_fast.ops.philox import add_normal_noise
from oes_fast.reference.philox import STEP_INPUT_NOISE
from oes_fast.rewrite import ir
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.run.chain_autograd import ConstantRead
from oes_fast.rewrite.run.context import Value


@dataclass(frozen=True)
class StepNoise:
    """std * N(0, 1) of one step, see :func:`oes_fast.ops.philox.add_normal_noise`.

    Attributes:
        std: standard deviation, > 0.
        seed: in [0, 2^64).
        step: in [0, 2^32).
        stream: in [0, 2^32).
    """

    std: float
    seed: int
    step: int
    stream: int = STEP_INPUT_NOISE

    def added(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """z with the noise, differentiable in it; or in contiguous ``out``, if that is given."""
        known = z.detach()
        if out is None:
            out = torch.empty_like(known, memory_format=torch.contiguous_format)
        add_normal_noise(out, known, self.std, seed=self.seed, step=self.step, stream=self.stream)
        return out + (z - known) if z.requires_grad else out


def step_noise(std: float, *, step: int, seed: int) -> StepNoise | None:
    """The noise of these numbers, None for a standard deviation of 0.

    Raises:
        InputError: a number out of range.
    """
    check_number("input_noise", std, minimum=0.0)
    check_integer("step", step, minimum=0, below=2**32)
    check_integer("seed", seed, minimum=0, below=2**64)
    return StepNoise(std, seed, step) if std else None


@dataclass(frozen=True)
class _Direct:
    """What a chain reads, and how it is laid out from the input."""

    read: ConstantRead
    layout: Any  # oes_fast._C.SourceLayout


class NoisyInput:
    """The values that a plan for a fixed input begins with, for that input with noise.

    Args:
        plan: for a fixed input, in C++.
        z: input without noise, [1, C, H, W]; left alone.

    Attributes:
        values: what :meth:`Plan.run` takes as prepared.
        pays: whether a chain reads the input directly.
    """

    def __init__(self, plan: Plan, z: Tensor) -> None:
        self._plan = proxy(plan)  # which holds this one, and goes with its memory when nobody needs it
        self._z = z.detach().contiguous()
        self._drawn: StepNoise | None = None
        with torch.inference_mode(False), torch.no_grad():
            layouts = self._layouts()
            self.values = plan.prepare(self._z)
            reads = plan.constant_reads(self.values)
            wanted = {node for node in self.values if plan.only_chains_read(node)}
            # All that is read of a node, or none: what has no layout takes the image.
            wanted -= {read.source for read, layout in zip(reads, layouts, strict=True) if layout is None}
            self._direct = [
                _Direct(read, layout)
                for read, layout in zip(reads, layouts, strict=True)
                if read.source in wanted
            ]
        self._rest = [node for node in self.values if node not in wanted]
        self.pays = bool(self._direct)
        # Drawn once where several things are made of it, and where the kernel has no noise of its own.
        whole = bool(self._rest) or len(self._direct) != 1 or z.dtype != torch.float32
        self._image = torch.empty_like(self._z) if whole else None

    def draw(self, noise: StepNoise) -> dict[ir.Node, Value]:
        """The values with this noise."""
        for direct in self._direct:
            direct.read.take()
        if noise == self._drawn:
            return self.values
        self._drawn = None  # should it fail half-way
        image = None if self._image is None else noise.added(self._z, self._image)
        for direct in self._direct:
            planes = direct.read.planes
            if image is None:
                numbers = (noise.std, _library.as_signed(noise.seed), noise.step, noise.stream)
                direct.layout.write_noisy(self._z.numpy(), planes.numpy(), *numbers)
            else:
                direct.layout.write(image.numpy(), planes.numpy())
            # A backward pass through an earlier draw is refused.
            torch.autograd.graph.increment_version(planes)
        if self._rest and image is not None:
            with torch.no_grad():
                # The image is written again, so what reads the input itself takes a copy.
                fresh = self._plan.prepare(image.clone())
            self.values |= {node: fresh[node] for node in self._rest}
        self._drawn = noise
        return self.values

    def _layouts(self) -> list[Any | None]:
        """How each constant read of the plan's chains is laid out, None where that is unknown.

        Found by trying on an image of random numbers: what a chain asks of its source is its own affair.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        probe = torch.rand(self._z.shape, generator=generator, dtype=torch.float64, device="cpu")
        probe = probe.to(self._z.dtype)
        values = self._plan.prepare(probe)
        return [self._layout_of(read, probe) for read in self._plan.constant_reads(values)]

    def _layout_of(self, read: ConstantRead, probe: Tensor) -> Any | None:
        box = isinstance(read.source.stage, ir.Box) and read.source.stage.size == 2
        shown = _shown(read.source.inputs[0] if box else read.source)
        if shown is None:
            return None
        rows, columns = (indices.tolist() for indices in shown)
        channels = self._plan.alive[read.source].varying.tolist()
        extension = importlib.import_module("oes_fast._C")
        for phases, row_major in product((True, False), repeat=2):
            try:
                layout = extension.SourceLayout(
                    *probe.shape[1:],
                    channels=channels,
                    rows=rows,
                    columns=columns,
                    box=box,
                    phases=phases,
                    row_major=row_major,
                )
                found = torch.zeros_like(read.planes)
                layout.write(probe.numpy(), found.numpy())
            except ValueError:  # it has more elements
                continue
            if torch.equal(found, read.planes):
                return layout
        return None


def _shown(node: ir.Node) -> tuple[Tensor, Tensor] | None:
    """Which rows and columns of the input stand where in the image of ``node``, -1 where zeros do.

    Returns:
        (rows, columns), int64, or None where the image is something else.
    """
    stage = node.stage
    if isinstance(stage, ir.Input):
        return torch.arange(node.shape[2], device="cpu"), torch.arange(node.shape[3], device="cpu")
    if not node.inputs or (shown := _shown(node.inputs[0])) is None:
        return None
    rows, columns = shown
    if isinstance(stage, ir.Pad):
        left, right, top, bottom = stage.amount
        return _padded(rows, top, bottom, stage.mode), _padded(columns, left, right, stage.mode)
    if isinstance(stage, ir.Crop):
        return rows[stage.top :][: stage.height], columns[stage.left :][: stage.width]
    if isinstance(stage, ir.Opaque) and stage.target == "index_select":
        index = node.inputs[1].stage if len(node.inputs) > 1 else None
        if isinstance(index, ir.Constant) and len(stage.args) == 3:
            at = index.value.cpu()
            if stage.args[1] in (2, -2):
                return rows[at], columns
            if stage.args[1] in (3, -1):
                return rows, columns[at]
    return None


def _padded(indices: Tensor, before: int, after: int, mode: str) -> Tensor:
    """Indices of a padded dimension."""
    if mode == "zeros":
        return F.pad(indices, (before, after), value=-1)
    line = indices.double().view(1, 1, -1)
    return F.pad(line, (before, after), mode=mode).flatten().long()


_INPUTS: WeakKeyDictionary[Plan, tuple[Tensor, tuple[int, int], NoisyInput]] = WeakKeyDictionary()


def noisy_input(plan: Plan, z: Tensor) -> NoisyInput | None:
    """The one of a plan and its input, made once while the same unchanged tensor comes again.

    Returns:
        None where it does not pay: the noisy image is to be read then as any other.
    """
    if plan.kernels != "cpu" or z.shape[0] != 1 or z.requires_grad or z.is_inference():
        return None
    version = z._version, z.data_ptr()
    found = _INPUTS.get(plan)
    if found is None or found[0] is not z or found[1] != version:
        found = _INPUTS[plan] = z, version, NoisyInput(plan, z)
    return found[2] if found[2].pays else None
