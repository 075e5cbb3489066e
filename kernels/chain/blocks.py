"""A convolution of a chain with the norms behind it, and what they have on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton.language as tl
from oes_fast.kernels.chain.conv_taps import ConvTaps
from oes_fast.kernels.chain.finalise import (
    Loss,
    NormBackward,
    NormForward,
    ShiftBackward,
    finalise_settings,
    finalise_sizes,
    shift_tables,
)
from oes_fast.kernels.chain.kinds import GRAD_NUMBERS, PROLOGUE_NUMBERS, READ_SECOND, READ_VALUE
from oes_fast.kernels.chain.reader import Image, Reader
from oes_fast.kernels.chain.specs import ConvSpec, NormSpec
from oes_fast.kernels.chain.tap_sum_plan import TapSumPlan
from oes_fast.kernels.chain.weight_grad_plan import WeightGradPlan
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where a chain's tensors lie: N networks of so many weights, of one dtype on one device."""

    networks: int
    weights: int
    dtype: torch.dtype
    device: torch.device

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor [N, *shape] without values, of one element where that has none."""
        empty = any(size == 0 for size in shape)
        shape = (1,) if empty else (self.networks, *shape)
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def indices(self, numbers: Sequence[int]) -> Tensor:
        """An int32 tensor, of one element where there are none."""
        return torch.tensor(list(numbers) or [0], dtype=torch.int32, device=self.device)


class Norm:
    """A norm: its tables, and what its statistics come to.

    Attributes:
        spec: of it.
        rstd: float64 [N, channels].
        grads: [N, channels, GRAD_NUMBERS].
        constants: [N, constants] of its result.
    """

    def __init__(self, spec: NormSpec, channels: int, place: Place) -> None:
        self.spec = spec
        self.gamma, self.beta = place.indices(spec.gamma), place.indices(spec.beta)
        self.stats_index = place.indices(spec.stats_index)
        self.tracked = place.indices(spec.tracked)
        self.tracked_stats_index = place.indices(spec.tracked_stats_index)
        self.betas = place.indices(spec.constants)
        self.rstd = place.new(channels, dtype=torch.float64)
        self.grads = place.new(channels, GRAD_NUMBERS.value)
        self.constants = place.new(len(spec.constants))


@dataclass(eq=False)
class Block:
    """A convolution with what belongs to it; the buffers are made when the chain is finished.

    Attributes:
        spec: of the convolution, without its taps.
        taps: what it comes to.
        place: of its tensors.
        before: block whose result it reads, None of the first.
        forward, weight_grad, input_grad: plans; the last is None where nobody needs it.
        packed, packed_grad: where the weights of ``forward`` and ``input_grad`` lie, see FlatWeights.
        partials: where those of ``weight_grad`` lie.
        norms: at most two; the first has the activation.
        y: its own result, [N, outputs, rows, columns].
        prologue: [N, outputs, PROLOGUE_NUMBERS].
    """

    spec: ConvSpec
    taps: ConvTaps
    place: Place
    before: Block | None
    forward: TapSumPlan
    weight_grad: WeightGradPlan
    input_grad: TapSumPlan | None
    packed: int
    packed_grad: int
    partials: int
    norms: list[Norm] = field(default_factory=list)
    y: Tensor = field(init=False)
    prologue: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.place.device
        self._shift_bias, self._shift_first, self._shift_taps = shift_tables(
            self.spec.bias, self.spec.constant_taps, device
        )
        before = None if self.before is None else self.before.norms[-1]
        self._read = self.place.new(0) if before is None else before.constants
        self._read_betas = self.place.indices([]) if before is None else before.betas
        self._read_count = 0 if before is None else len(before.spec.constants)
        self._read_slope = 1.0 if before is None else before.spec.slope
        self.read_act = 0 if before is None else int(before.spec.act)
        self._sizes: dict[tuple[int, int], Tensor] = {}
        self._settings: dict[int, Tensor] = {}
        self._unmoved: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def outputs(self) -> int:
        """Channels of the result that vary."""
        return self.spec.outputs

    @property
    def rows(self) -> int:
        """Of the result."""
        return self.taps.out_rows

    @property
    def columns(self) -> int:
        """Of the result."""
        return self.taps.out_columns

    @property
    def pixels(self) -> int:
        """Of a channel of the result."""
        return self.rows * self.columns

    @property
    def act(self) -> int:
        """Activation behind the first norm, as kinds.py numbers them."""
        return int(self.norms[0].spec.act)

    @property
    def slope(self) -> tl.constexpr:
        """Of that activation."""
        return tl.constexpr(float(self.norms[0].spec.slope))

    @property
    def two(self) -> bool:
        """Whether a second norm follows."""
        return len(self.norms) > 1

    def image(self) -> Image:
        """The result as the next block reads it."""
        read = READ_SECOND if self.two else READ_VALUE
        return Image(Reader(self.y, None, self.prologue, self.slope), read.value, self.act)

    def make_buffers(self) -> None:
        """What the passes write, for a chain that is finished."""
        self.y = self.place.new(self.outputs, self.rows, self.columns)
        self.prologue = self.place.new(self.outputs, PROLOGUE_NUMBERS.value)

    # ---- what the last program of a launch takes

    def prepare(self, which: int, chunks: int) -> None:
        """Put on the device what sums in so many chunks need, of norm ``which`` or, -1, of none."""
        spec = None if which < 0 else self.norms[which].spec
        if (which, chunks) not in self._sizes:
            self._sizes[which, chunks] = finalise_sizes(
                channels=self.outputs,
                chunks=chunks,
                pixels=self.pixels,
                weights=self.place.weights,
                device=self.place.device,
                tracked=0 if spec is None else len(spec.tracked),
                constants=0 if spec is None else len(spec.constants),
                constants_before=len(self.norms[0].spec.constants) if which == 1 else 0,
                shift_outputs=len(self.spec.bias),
                shift_constants=self._read_count,
                shift_taps=len(self.spec.constant_taps) // 3,
            )
        if which not in self._settings:
            self._settings[which] = self._settings_of(spec, 0.0 if spec is None else spec.momentum)
            if spec is not None and spec.tracks:
                channels = 1 + max([*spec.stats_index, *spec.tracked_stats_index], default=0)
                mean, var = (self.place.new(channels).zero_() for _ in range(2))
                if self.place.networks == 1:
                    mean, var = mean[0], var[0]
                self._unmoved[which] = mean, var, self._settings_of(spec, 0.0)

    def _settings_of(self, spec: NormSpec | None, momentum: float) -> Tensor:
        return finalise_settings(
            device=self.place.device,
            eps=0.0 if spec is None else spec.eps,
            momentum=momentum,
            copies=1.0 if spec is None else float(spec.copies),
            factor=self.spec.scale * (4 if self.spec.box else 1),
            slope=self._read_slope if spec is None else spec.slope,
        )

    def norm_forward(
        self,
        which: int,
        chunks: int,
        partials: Tensor,
        weights: Tensor,
        running: tuple[Tensor | None, Tensor | None],
    ) -> NormForward:
        """Statistics of a norm from its moments; ``running``: mean and variance, updated, or None."""
        norm = self.norms[which]
        mean, var = running if norm.spec.tracks else (None, None)
        settings = self._settings[which]
        if mean is None and norm.spec.tracks:
            # Of nobody, by nothing: without statistics another kernel would be compiled, at a run's very end.
            mean, var, settings = self._unmoved[which]
        return NormForward(
            partials=partials,
            sizes=self._sizes[which, chunks],
            settings=settings,
            weights=weights,
            gamma=norm.gamma,
            beta=norm.beta,
            prologue=self.prologue,
            rstd=norm.rstd,
            running_mean=mean,
            running_var=var,
            running_stride=0 if mean is None or mean.ndim == 1 else mean.shape[1],
            stats_index=norm.stats_index,
            tracked=norm.tracked,
            tracked_stats_index=norm.tracked_stats_index,
            betas=norm.betas,
            constants=norm.constants,
            constants_before=self.norms[0].constants,
            shift_bias=self._shift_bias,
            shift_first=self._shift_first,
            shift_taps=self._shift_taps,
            shift_constants=self._read,
        )

    def norm_backward(self, which: int, chunks: int, partials: Tensor, grad_weights: Tensor) -> NormBackward:
        """Gradient of a norm from its two sums."""
        norm = self.norms[which]
        return NormBackward(
            partials=partials,
            sizes=self._sizes[which, chunks],
            gamma=norm.gamma,
            beta=norm.beta,
            prologue=self.prologue,
            grads=norm.grads,
            rstd=norm.rstd,
            grad_weights=grad_weights,
        )

    def loss(self, chunks: int, partials: Tensor, weights: Tensor, loss: Tensor | None) -> Loss:
        """What a last convolution adds to its outputs, and the error of the image where ``loss`` is given."""
        return Loss(
            partials=None if loss is None else partials,
            sizes=self._sizes[-1, chunks],
            settings=self._settings[-1],
            weights=weights,
            loss=loss,
            shift_bias=self._shift_bias,
            shift_first=self._shift_first,
            shift_taps=self._shift_taps,
            shift_constants=self._read,
        )

    @property
    def shifts(self) -> bool:
        """Whether the convolution adds anything to its outputs."""
        return bool(self.spec.constant_taps) or any(index >= 0 for index in self.spec.bias)

    def shift_backward(
        self, chunks: int, partials: Tensor, weights: Tensor, grad_weights: Tensor
    ) -> ShiftBackward:
        """Gradient of what a last convolution adds to its outputs."""
        return ShiftBackward(
            partials=partials,
            sizes=self._sizes[-1, chunks],
            settings=self._settings[-1],
            weights=weights,
            grad_weights=grad_weights,
            shift_bias=self._shift_bias,
            shift_first=self._shift_first,
            shift_taps=self._shift_taps,
            shift_constants=self._read,
            shift_betas=self._read_betas,
        )
