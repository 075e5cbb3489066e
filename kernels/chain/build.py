"""How the program of a chain becomes plans, tables and buffers, all of them made once."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
import triton.language as tl
from oes_fast.kernels import tuning
from oes_fast.kernels.chain import kinds
from oes_fast.kernels.chain.blocks import Block, Norm, Place
from oes_fast.kernels.chain.conv_taps import TapSum, conv_taps
from oes_fast.kernels.chain.flat_weights import FlatWeights
from oes_fast.kernels.chain.norm_pass import pass_chunks
from oes_fast.kernels.chain.specs import ConvKind, ConvSpec, NormSpec, OutputAct, Padding
from oes_fast.kernels.chain.tap_sum_plan import PROCESSORS, TapSumPlan, plan_tap_sum, shape_for_interpreter
from oes_fast.kernels.chain.weight_grad_plan import plan_weight_grad
from torch import Tensor


class ChainBuilder:
    """A chain of convolutions and norms for N networks at once.

    First the convolutions and norms are added in their order, then it is finished, then it is evaluated.

    Args:
        networks: N, 1 to 65535.
        channels, rows, columns: of the source.
        constant_input: nobody needs the gradient of the source.
        weights: length of a network's flat vector.
        products: of float32 numbers, one of :data:`oes_fast.precision.PRECISIONS`.
        dtype: of all tensors, float32 or float64.
        device: of all tensors.
        group: outputs of a program, None for the best choice.
        processors: of the device, None to ask it.
    """

    def __init__(
        self,
        networks: int,
        channels: int,
        rows: int,
        columns: int,
        *,
        constant_input: bool,
        weights: int,
        products: str,
        dtype: torch.dtype,
        device: torch.device | str,
        group: int | None = None,
        processors: int | None = None,
    ) -> None:
        self._place = Place(networks, weights, dtype, torch.device(device))
        self._source = channels, rows, columns
        self._constant_input = constant_input
        self._products = products
        self._group = group
        self._processors = _processors(self._place.device) if processors is None else processors
        self._blocks: list[Block] = []
        self._flat = FlatWeights(weights, networks, self._place.device, dtype)
        self._finished = False
        self._target: Tensor | None = None
        self._weight: Tensor | None = None  # of the squared errors to it

    # ---- the program

    def add_conv(self, spec: ConvSpec) -> None:
        """A convolution of the source or of what the last norm gives.

        Raises:
            ValueError: one that the kernels do not have, or in the wrong place.
        """
        before = self._blocks[-1] if self._blocks else None
        _expect(not self._finished, "convolution: expected a chain that is not finished")
        _expect(before is None or before.norms, "convolution: expected a norm before it")
        _expect(spec.padding != Padding.CIRCULAR, "padding: expected one of the kernels', not circular")
        _expect(
            spec.kind != ConvKind.UPSAMPLE or spec.padding in (Padding.ZEROS, Padding.REPLICATE),
            "padding: expected zeros or replicated pixels around an up-sampled image",
        )
        image = self._source if before is None else (before.outputs, before.rows, before.columns)
        taps = conv_taps(spec, *image)
        _expect(
            min(taps.out_rows, taps.out_columns) > 0, "convolution: expected an image as large as the kernel"
        )
        weights = self._flat
        forward = self._planned(taps.forward, sums=True)
        of_weights = plan_weight_grad(
            taps.forward,
            forward.lists,
            networks=self._place.networks,
            products=self._products,
            dtype=self._place.dtype,
            processors=self._processors,
        )
        packed = weights.add_packed(forward.lists.index, spec.scale)
        partials = weights.add_grads(forward.lists.index, spec.scale, of_weights.chunks)
        of_input, packed_grad = None, 0
        if before is not None or not self._constant_input:
            of_input = self._planned(taps.input_grad, sums=before is not None and not taps.folds)
            packed_grad = weights.add_packed(of_input.lists.index, spec.scale)
        spec = dataclasses.replace(spec, taps=[], weights=[])  # in the lists now
        self._blocks.append(
            Block(
                spec, taps, self._place, before, forward, of_weights, of_input, packed, packed_grad, partials
            )
        )

    def _planned(self, spec: TapSum, *, sums: bool) -> TapSumPlan:
        return plan_tap_sum(
            spec,
            networks=self._place.networks,
            products=self._products,
            dtype=self._place.dtype,
            processors=self._processors,
            device=self._place.device,
            group=self._group,
            sums=sums,
            shape=shape_for_interpreter(spec, self._group) if tuning.interpreted() else None,
        )

    def add_norm(self, spec: NormSpec) -> None:
        """A norm behind the last convolution, the first or second.

        Raises:
            ValueError: in the wrong place, or not of the convolution's channels.
        """
        _expect(
            self._blocks and len(self._blocks[-1].norms) < 2 and not self._finished,
            "norm: expected one or two behind a convolution",
        )
        block = self._blocks[-1]
        sizes = {len(spec.gamma), len(spec.beta), *([len(spec.stats_index)] if spec.tracks else [])}
        _expect(sizes == {block.outputs}, f"norm: expected {block.outputs} channels, got {sizes}")
        block.norms.append(Norm(spec, block.outputs, self._place))

    def finish(self, act: OutputAct, slope: float) -> None:
        """Make the buffers. The image leaves through an activation, but where a norm is last."""
        _expect(self._blocks and not self._finished, "chain: expected a convolution, and to be finished once")
        self._act, self._slope = int(act), tl.constexpr(float(slope))
        place = self._place
        largest, partials, tickets, workspace = math.prod(self._source), 1, 1, 0
        for block, after in itertools.zip_longest(self._blocks, self._blocks[1:]):
            block.make_buffers()
            chunks = {block.forward.chunks, pass_chunks(block.pixels)}
            if after is not None and not after.taps.folds:
                chunks.add(after.input_grad.chunks)
            for which in range(len(block.norms)) if block.norms else (-1,):
                for count in chunks:
                    block.prepare(which, count)
            partials = max(partials, block.outputs * max(chunks) * kinds.PARTIAL_NUMBERS.value)
            tickets = max(tickets, block.outputs)  # of a pass
            largest = max(largest, block.outputs * block.pixels)
            for plan in (block.forward, block.input_grad):
                if plan is not None:
                    tickets, workspace = max(tickets, plan.tickets), max(workspace, plan.workspace)
                    largest = max(largest, plan.spec.outputs * plan.spec.rows * plan.spec.columns)
        self._grads = [place.new(largest) for _ in range(2)]
        read = [b.outputs * b.pixels for b in self._blocks if b.norms and b.input_grad is not None]
        self._read_grad = place.new(max(read)) if read else None  # of a result, as its reader takes it
        self._partials = place.new(partials, dtype=torch.float64)
        self._workspace = place.new(workspace) if workspace else None
        self._tickets = torch.zeros(place.networks, tickets, dtype=torch.int32, device=place.device)
        self._flat.finish()
        self._finished = True

    def explain(self) -> list[str]:
        """How each convolution is computed."""
        lines = []
        for block in self._blocks:
            parts = [f"forward: {block.forward.describe()}"]
            if block.input_grad is not None:
                parts.append(f"input gradient: {block.input_grad.describe()}")
            lines.append("; ".join([*parts, f"weights' gradient: {block.weight_grad.describe()}"]))
        return lines

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the result of a network."""
        last = self._blocks[-1]
        return last.outputs, last.rows, last.columns

    @property
    def has_loss(self) -> bool:
        """Whether the last forward had a target."""
        return self._target is not None


def _expect(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _processors(device: torch.device) -> int:
    """Of the device, or of the one that plans are for where there is none."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
