"""Types of the C++ extension: csrc/cpu/module.cpp and csrc/cpu/chain/bindings.cpp.

Importing it registers the CPU kernels with torch, as those operators of ``torch.ops.oes_fast`` whose names
end in ``_cpu``. Lists are copied when they are read and written: assign them whole.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

BUILD: str
MOST_HEAD_OUTPUTS: int
SLACK: int

def capability() -> str: ...
def compiler() -> str: ...

class _Enum:
    def __init__(self, value: int) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class ConvKind(_Enum):
    DIRECT: ClassVar[ConvKind]
    POINTWISE: ClassVar[ConvKind]
    UPSAMPLE: ClassVar[ConvKind]
    HEAD: ClassVar[ConvKind]

class Padding(_Enum):
    ZEROS: ClassVar[Padding]
    REFLECT: ClassVar[Padding]
    REPLICATE: ClassVar[Padding]
    CIRCULAR: ClassVar[Padding]

class Act(_Enum):
    LEAKY_RELU: ClassVar[Act]
    ELU: ClassVar[Act]
    SILU: ClassVar[Act]

class OutputAct(_Enum):
    LEAKY_RELU: ClassVar[OutputAct]
    SIGMOID: ClassVar[OutputAct]

class TapPlanes:
    inputs: int
    stride: int
    rows: int
    columns: int
    row_major: bool
    def __init__(
        self, inputs: int, stride: int, rows: int, columns: int, row_major: bool = False
    ) -> None: ...
    def plane_of(self, c: int, u: int, v: int) -> int: ...
    def offset_of(self, c: int, u: int, v: int) -> int: ...

class PaddedGradPlanes:
    stride: int
    rows: int
    pitch: int
    top: int
    left: int
    def __init__(self, stride: int, rows: int, pitch: int, top: int, left: int) -> None: ...
    def offset_of(self, o: int, u: int, v: int) -> int: ...

def tap_margin(kernel_side: int, stride: int) -> int: ...

class ConvSpec:
    kind: ConvKind
    padding: Padding
    border: list[int]
    box: bool
    stride: int
    kernel_rows: int
    kernel_columns: int
    outputs: int
    taps: list[int]
    weights: list[int]
    first_weight: int
    dense: bool
    scale: float
    bias: list[int]
    constant_taps: list[int]
    def __init__(self) -> None: ...

class NormSpec:
    gamma: list[int]
    beta: list[int]
    eps: float
    momentum: float
    copies: int
    tracks: bool
    stats_index: list[int]
    tracked: list[int]
    tracked_stats_index: list[int]
    act: Act
    slope: float
    constants: list[int]
    def __init__(self) -> None: ...

class JoinKind(_Enum):
    SUM: ClassVar[JoinKind]
    RESAMPLE: ClassVar[JoinKind]
    AVERAGE_POOL: ClassVar[JoinKind]
    MAX_POOL: ClassVar[JoinKind]
    CROP: ClassVar[JoinKind]
    PIXEL_SHUFFLE: ClassVar[JoinKind]
    PRELU: ClassVar[JoinKind]

class JoinSpec:
    kind: JoinKind
    inputs: list[int]
    outputs: int
    rows: int
    columns: int
    terms: list[int]
    bias: list[int]
    constant_terms: list[int]
    scale: float
    row_index: list[int]
    column_index: list[int]
    row_weights: list[float]
    column_weights: list[float]
    window_rows: int
    window_columns: int
    stride_rows: int
    stride_columns: int
    top: int
    left: int
    factor: int
    slopes: list[int]
    def __init__(self) -> None: ...

class _Chain:
    def __init__(
        self, channels: int, rows: int, columns: int, constant_input: bool, weights: int
    ) -> None: ...
    def add_source(self, channels: int, rows: int, columns: int, constant: bool) -> int: ...
    def add_conv(self, spec: ConvSpec, source: int = -1) -> int: ...
    def add_join(self, spec: JoinSpec) -> int: ...
    def add_norm(self, spec: NormSpec, groups: int = 0) -> None: ...
    def add_act(self, act: Act, slope: float) -> None: ...
    def add_planes(self) -> None: ...
    def finish(self, act: OutputAct, slope: float) -> None: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def memory(self) -> int: ...
    def source_size(self, number: int) -> int: ...
    def source_row_major(self, number: int) -> bool: ...

class SourceLayout:
    def __init__(
        self,
        image_channels: int,
        image_rows: int,
        image_columns: int,
        channels: Sequence[int],
        rows: Sequence[int],
        columns: Sequence[int],
        box: bool,
        phases: bool,
        row_major: bool,
    ) -> None: ...
    def write(
        self, image: NDArray[np.float32 | np.float64], planes: NDArray[np.float32 | np.float64]
    ) -> None: ...
    def write_noisy(
        self,
        image: NDArray[np.float32],
        planes: NDArray[np.float32],
        std: float,
        seed: int,
        step: int,
        stream: int,
    ) -> None: ...

class ChainFloat(_Chain):
    def forward(
        self,
        weights: NDArray[np.float32],
        sources: Sequence[NDArray[np.float32]],
        out: NDArray[np.float32],
        running: Sequence[NDArray[np.float32] | None],
        target: NDArray[np.float32] | None,
        weight: NDArray[np.float32] | None,
    ) -> float: ...
    def backward(
        self,
        weights: NDArray[np.float32],
        sources: Sequence[NDArray[np.float32]],
        grad: NDArray[np.float32] | None,
        grad_weights: NDArray[np.float32],
        grad_sources: Sequence[NDArray[np.float32] | None],
    ) -> None: ...

class ChainDouble(_Chain):
    def forward(
        self,
        weights: NDArray[np.float64],
        sources: Sequence[NDArray[np.float64]],
        out: NDArray[np.float64],
        running: Sequence[NDArray[np.float64] | None],
        target: NDArray[np.float64] | None,
        weight: NDArray[np.float64] | None,
    ) -> float: ...
    def backward(
        self,
        weights: NDArray[np.float64],
        sources: Sequence[NDArray[np.float64]],
        grad: NDArray[np.float64] | None,
        grad_weights: NDArray[np.float64],
        grad_sources: Sequence[NDArray[np.float64] | None],
    ) -> None: ...
