"""Noise on the weights after each step, as Langevin dynamics have it (Cheng et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from oes_fast.flat import FlatLayout, fixed_parameters
from oes_fast.ops.philox import add_normal_noise
from oes_fast.pipelines.hooks import StepHook
from oes_fast.pipelines.schedule import Schedule
from oes_fast.reference.philox import STEP_WEIGHT_NOISE


class WeightNoise(StepHook):
    """weights + std * N(0, 1) after each update; a function of (seed, step) alone.

    The noise of a weight is that of its place in the flat vector. Only weights of convolutions get noise,
    parameters of four dimensions as in the published code and those of one- and three-dimensional
    convolutions: biases and batch norm's scales and shifts do not, nor does what the network holds fixed
    (``requires_grad`` off).

    Args:
        net: whose parameters the flat vector holds, all of them.
        std: standard deviation, >= 0.
        rate: whose factors multiply it.
        seed: of the noise, in [0, 2^64).
    """

    def __init__(self, net: nn.Module, std: float, rate: Schedule, *, seed: int) -> None:
        weight = next(net.parameters()).detach()
        layout = FlatLayout.of(net)
        self._std = weight.new_zeros(layout.numel)
        convs = {
            f"{name}.weight".removeprefix(".") for name, m in net.named_modules() if isinstance(m, _ConvNd)
        }
        fixed = fixed_parameters(net)
        for name, view in layout.views(self._std).items():
            if name not in fixed and (view.ndim == 4 or name in convs):
                view.fill_(std)
        self._rate, self._seed = rate, seed

    def finish(self, step: int, weights: Tensor) -> None:
        """Add the noise of the step."""
        values = weights.detach()
        std = self._std * self._rate.factor(step) if self._rate.varies else self._std
        add_normal_noise(values, values, std, seed=self._seed, step=step, stream=STEP_WEIGHT_NOISE)
