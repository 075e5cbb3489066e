"""The layers that the generators are built of, with initial weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from oes_fast._checks import FLOAT_DTYPES, check_integer
from oes_fast.errors import InputError
from oes_fast.models.drawn import drawn_conv2d
from oes_fast.models.base import append

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2, inplace=True),
    "ELU": nn.ELU,
    "SiLU": nn.SiLU,
    "Swish": nn.SiLU,
    "none": nn.Sequential,
}


@dataclass(frozen=True)
class Layers:
    """Makes the layers of a network; the order in which they are asked for is that of the random numbers."""

    pad: str
    bias: bool
    act_fun: str
    generator: torch.Generator | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        pad: str,
        bias: bool,
        act_fun: str,
        *,
        seed: int | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> Layers:
        """From the arguments of a network.

        Args:
            pad: "reflection" or "zero".
            bias: convolutions have a bias.
            act_fun: one of :data:`ACTIVATIONS`.
            seed: of the weights, None for the global random state.
            dtype: of the weights; None for torch.get_default_dtype().
            device: of the weights; None for torch.get_default_device().

        Raises:
            InputError: another dtype than float32 and float64, or a seed out of range.
        """
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise InputError(f"dtype: expected float32 or float64, got {dtype}")
        return cls(
            pad,
            bias,
            act_fun,
            None if seed is None else _generator(seed),
            torch.get_default_dtype() if dtype is None else dtype,
            torch.get_default_device() if device is None else torch.device(device),
        )

    def add_conv(
        self, sequence: nn.Sequential, inputs: int, outputs: int, kernel: int, downsample: str | None = None
    ) -> None:
        """Append convolution, batch norm and activation, with the down-sampling ``downsample`` names."""
        append(sequence, self.conv(inputs, outputs, kernel, downsample))
        append(sequence, self.norm(outputs))
        append(sequence, self.activation())

    def conv(self, inputs: int, outputs: int, kernel: int, downsample: str | None = None) -> nn.Sequential:
        """Padding and convolution, with the down-sampling that ``downsample`` names."""
        stride = 2 if downsample == "stride" else 1
        reach = kernel // 2
        layers: list[nn.Module] = []
        if self.pad == "reflection":
            layers.append(nn.ReflectionPad2d(reach))
            reach = 0
        layers.append(
            drawn_conv2d(
                inputs,
                outputs,
                kernel,
                generator=self.generator,
                dtype=self.dtype,
                device=self.device,
                stride=stride,
                padding=reach,
                bias=self.bias,
            )
        )
        if downsample == "avg":
            layers.append(nn.AvgPool2d(2, 2))
        if downsample == "max":
            layers.append(nn.MaxPool2d(2, 2))
        return nn.Sequential(*layers)

    def norm(self, channels: int, *, affine: bool = True) -> nn.BatchNorm2d:
        """Batch norm, with a scale and a shift of its own if ``affine``."""
        return nn.BatchNorm2d(channels, affine=affine, dtype=self.dtype, device=self.device)

    def activation(self) -> nn.Module:
        """The activation."""
        return ACTIVATIONS[self.act_fun]()


def _generator(seed: int) -> torch.Generator:
    # Not seeded_generator, which keeps streams apart: these are the words of torch.manual_seed(seed), so that
    # a seed gives the network that PyTorch gives under it.
    return torch.Generator("cpu").manual_seed(check_integer("seed", seed, minimum=0, below=2**64))
