"""Rules that stop a run without the clean image; see :mod:`oes_fast.pipelines.stop_rule`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.errors import InputError
from oes_fast.noise import estimate_sigma
from oes_fast.pipelines.checkpoint import digest
from oes_fast.pipelines.stop_rule import StopRule
from oes_fast.reference.philox import HELD_OUT, random_bits

STOPS = ("variance", "holdout", "discrepancy", "none")
MOST_PIXELS = 65_536  # of an output that a window keeps


class VarianceStop(StopRule):
    """Stop where the outputs change least: windowed moving variance (Wang et al. 2023, ES-WMV).

    The criterion is the variance of the outputs of the last ``window`` steps about their mean, mean over the
    pixels. It falls while the image forms, and rises when the network begins to fit the noise; the stop is
    its minimum ("Early Stopping for Deep Image Prior", arXiv 2112.06074, algorithm 1, where W = 100 and
    P = 1000 at a look every step).

    Of the outputs in the window one in ``every`` is kept, and of images of more than 65,536 pixels every
    second (third, ...) row and column: the variance is estimated from a share of what it is the mean of.

    Args:
        window: steps that the variance is taken over, at least two looks.
        patience: steps without a lower variance after which to stop, >= 1.
        every: steps from one look to the next, >= 1.

    Raises:
        InputError: a number is out of range.

    Example:
        >>> rule = oes.VarianceStop(window=20, patience=50, every=5)
        >>> for step in range(1000):
        ...     output = torch.full((1, 3, 8, 8), 1 / (step + 1) + max(0, step - 200) ** 2 / 1e4)
        ...     if rule.update(step, output):
        ...         break
        >>> 195 <= rule.step <= 215, step - rule.step
        (True, 50)
    """

    name = "variance"
    criterion = "variance of the outputs"

    def __init__(self, *, window: int = 200, patience: int = 600, every: int = 10) -> None:
        super().__init__(every=every, patience=patience)
        self.window = check_integer("window", window, minimum=2 * self.every)

    def _reset(self) -> None:
        super()._reset()
        self._kept: Tensor | None = None  # [looks in the window, N, C, ...], the oldest written over first
        self._count = 0

    def _criterion(self, output: Tensor, average: Tensor | None) -> Tensor | None:
        thin = _thinned(output)
        looks = self.window // self.every
        if self._kept is None:
            self._kept = thin.new_zeros((looks, *thin.shape))
        elif self._kept.device != thin.device:  # from a checkpoint
            self._kept = self._kept.to(thin.device)
        self._kept[self._count % looks].copy_(thin)
        self._count += 1
        if self._count < looks:
            # Not to go on with what is not finite: it would be in the window for long.
            return None if bool(torch.isfinite(thin).all()) else thin.new_tensor(math.nan)
        return _mean(self._kept.var(dim=0, correction=0))

    def describe(self) -> str:
        """See :meth:`StopRule.describe`."""
        return f"variance, window {self.window}, patience {self.patience}, every {self.every}"

    def _memory(self) -> dict[str, Tensor | None]:
        return {"window": self._kept, "count": torch.tensor(self._count, dtype=torch.int64, device="cpu")}

    def _remember(self, state: Mapping[str, Tensor]) -> None:
        self._count = int(state["count"])
        kept = state.get("window")
        self._kept = None if kept is None else kept.clone()


class HoldoutStop(StopRule):
    """Stop where the error on what the run is not fitted to is least: pixels left out, or a second copy.

    The criterion is the mean squared difference between the image and a measurement with noise of its own:
    of a small share of the pixels, drawn by ``seed``, which are left out of the loss by their weight; or of a
    second noisy copy, with independent noise. It is the error against the clean image plus a constant, the
    variance of the noise, as long as the noise of one pixel says nothing of another's. The image is the
    running average of the outputs where one is shown, since that is what is taken for the result, else the
    output.

    In a loop of your own, :meth:`hold_out` gives the weights to train with, and is called before the first
    :meth:`update`; :func:`oes_fast.train_sparse` calls it itself.

    Args:
        share: of the pixels to leave out, all channels of each, between 0 and 1. Without meaning beside
            ``second``.
        second: another noisy copy, of the shape, dtype and device of the first; nothing is left out then.
        seed: of the pixels, in [0, 2^64).
        smooth: steps that the criterion is the mean over.
        patience: steps without a lower criterion after which to stop, >= 1.
        every: steps from one look to the next, >= 1.

    Raises:
        InputError: a number is out of range, or ``second`` is no image.

    Example:
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> rule = oes.HoldoutStop(share=0.1, patience=50)
        >>> weight = rule.hold_out(noisy)
        >>> weight.shape, round(float(weight.mean()), 1), rule.update(0, noisy * weight)
        (torch.Size([1, 3, 32, 32]), 0.9, False)
    """

    name = "holdout"
    compares = True

    def __init__(
        self,
        *,
        share: float = 0.05,
        second: Tensor | None = None,
        seed: int = 0,
        smooth: int = 50,
        patience: int = 600,
        every: int = 10,
    ) -> None:
        self.smooth = check_integer("smooth", smooth, minimum=1)
        super().__init__(every=every, patience=patience)
        self.share = check_number("share", share, above=0.0, below=1.0)
        self.second = None if second is None else check_tensor("second", second, finite=True).detach()
        self.seed = check_integer("seed", seed, minimum=0, below=2**64)
        self._target = self.second
        # How much each number of the target counts in the criterion.
        self._counts = None if self.second is None else torch.ones_like(self.second)
        self._measured: Callable[[Tensor], Tensor] | None = None

    def _reset(self) -> None:
        super()._reset()
        self._recent = _Recent(max(1, self.smooth // self.every))

    @property
    def criterion(self) -> str:
        """See :attr:`StopRule.criterion`."""
        return f"error on {'the pixels left out' if self.second is None else 'the second copy'}"

    def hold_out(
        self,
        noisy: Tensor,
        weight: Tensor | None = None,
        *,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Choose the pixels that are left out, of those of weight above 0.

        Args:
            noisy: what is fitted, [N, C, ...], float32 or float64: the image, or what was measured.
            weight: of each squared error, of its shape and dtype; None for 1.
            forward: from an output to what is compared with ``noisy``; None for the output itself.

        Returns:
            Weights to train with, of the shape of ``noisy``: 0 where a pixel is left out, else as given.

        Raises:
            InputError: ``noisy`` is no such tensor, ``weight`` or the second copy does not fit it, or too few
                pixels have a weight to leave one out and keep one.
        """
        check_tensor("noisy", noisy)
        if noisy.ndim < 3 or noisy.numel() == 0:
            raise InputError(f"noisy: expected an image, shape (N, C, ...), got {tuple(noisy.shape)}")
        if weight is not None:
            check_tensor("weight", weight, like=noisy, shape=noisy.shape)
        weights = torch.ones_like(noisy) if weight is None else weight.detach()
        weights = weights.contiguous()
        self._target, self._measured = noisy.detach(), forward
        if self.second is not None:
            check_tensor("second", self.second, like=noisy, shape=noisy.shape)
            self._target, self._counts = self.second, weights
            return weights
        there = (weights > 0).any(dim=1).flatten()
        total = int(there.sum())
        count = max(1, round(self.share * total))
        if count >= total:
            raise InputError(f"share: expected one that leaves some of {total} pixels, got {self.share}")
        words = random_bits(self.seed, 0, there.numel(), stream=HELD_OUT, device="cpu")
        words[~there.cpu()] = 2**32
        held = torch.zeros(there.numel(), dtype=torch.bool, device="cpu")
        held[words.argsort(stable=True)[:count]] = True
        out = held.to(noisy.device).view(noisy.shape[0], 1, *noisy.shape[2:])
        self._counts = weights * out
        return weights * ~out

    def bind(
        self, noisy: Tensor, weight: Tensor | None, forward: Callable[[Tensor], Tensor] | None
    ) -> Tensor | None:
        """:meth:`hold_out`; with a second copy the weights stay as they are."""
        weights = self.hold_out(noisy, weight, forward=forward)
        return weights if self.second is None else None

    def describe(self) -> str:
        """See :meth:`StopRule.describe`."""
        by = f"share {self.share}, seed {self.seed}" if self.second is None else f"copy {digest(self.second)}"
        return f"holdout, {by}, smooth {self.smooth}, patience {self.patience}, every {self.every}"

    def _criterion(self, output: Tensor, average: Tensor | None) -> Tensor | None:
        if self._target is None or self._counts is None:
            raise InputError("stop: expected hold_out(noisy) to be called before update, got no noisy image")
        error = _error(output if average is None else average, self._target, self._counts, self._measured)
        return self._recent.add(error)

    def _memory(self) -> dict[str, Tensor | None]:
        return {"recent": self._recent.tensor()}

    def _remember(self, state: Mapping[str, Tensor]) -> None:
        self._recent = _Recent(self._recent.most, state["recent"].tolist())


class DiscrepancyStop(StopRule):
    """Stop as soon as the fit is as close as the noise allows: the discrepancy principle (Morozov 1966).

    The criterion is the mean squared difference between the output and what is fitted, in units of the
    noise's variance: the stop is where it comes down to 1. It needs no steps beyond that, and is as good as
    the noise level is known, and as far as the noise is alike everywhere.

    In a loop of your own, :meth:`bind` says what is fitted, before the first :meth:`update`;
    :func:`oes_fast.train_sparse` calls it itself.

    Args:
        sigma: standard deviation of the noise, > 0; None for :func:`oes_fast.estimate_sigma` of the image.
        smooth: steps that the criterion is the mean over.
        every: steps from one look to the next, >= 1.

    Attributes:
        sigma: what is taken for the noise; None before it is known.

    Raises:
        InputError: a number is out of range.

    Example:
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> rule = oes.DiscrepancyStop(sigma=0.1, every=1, smooth=1)
        >>> rule.bind(noisy)
        >>> rule.update(0, noisy * 0), rule.update(1, noisy), rule.step
        (False, True, 1)
    """

    name = "discrepancy"
    compares = True
    criterion = "distance from the noisy image"

    def __init__(self, *, sigma: float | None = None, smooth: int = 50, every: int = 10) -> None:
        self.smooth = check_integer("smooth", smooth, minimum=1)
        super().__init__(every=every, patience=1)
        self._given = self.sigma = None if sigma is None else check_number("sigma", sigma, above=0.0)
        self._target: Tensor | None = None
        self._weight: Tensor | None = None
        self._measured: Callable[[Tensor], Tensor] | None = None

    def _reset(self) -> None:
        super()._reset()
        self._recent = _Recent(max(1, self.smooth // self.every))

    def bind(
        self,
        noisy: Tensor,
        weight: Tensor | None = None,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """See :meth:`StopRule.bind`; the weights stay as they are.

        Raises:
            InputError: the noise level is not given, and ``noisy`` is no image [1, C, H, W] that it can be
                estimated of: it has weights, or holds no noise.
        """
        check_tensor("noisy", noisy)
        self._target, self._weight, self._measured = noisy.detach(), weight, forward
        self.sigma = self._given
        if self.sigma is None:
            if weight is not None or noisy.ndim != 4 or noisy.shape[0] != 1:
                raise InputError(
                    "sigma: expected the noise level, which is estimated of one whole image alone, got None"
                )
            self.sigma = estimate_sigma(noisy)
            if self.sigma == 0.0:
                raise InputError("sigma: expected an image with noise, or its level, got one without")

    def describe(self) -> str:
        """See :meth:`StopRule.describe`."""
        sigma = "estimated" if self._given is None else self._given
        return f"discrepancy, sigma {sigma}, smooth {self.smooth}, every {self.every}"

    def _criterion(self, output: Tensor, average: Tensor | None) -> Tensor | None:
        if self._target is None or self.sigma is None:
            raise InputError("stop: expected bind(noisy) to be called before update, got no noisy image")
        error = _error(output, self._target, self._weight, self._measured)
        return self._recent.add(error / self.sigma**2)

    def _is_over(self, step: int, value: float) -> bool:
        return value <= 1.0

    def _why(self) -> str:
        return f"the {self.criterion} has come down to that of the noise, {self.sigma:.3g}"

    def _why_not(self) -> str:
        return f"before the {self.criterion} had come down to that of the noise, {self.sigma:.3g}"

    def _memory(self) -> dict[str, Tensor | None]:
        return {"recent": self._recent.tensor()}

    def _remember(self, state: Mapping[str, Tensor]) -> None:
        self._recent = _Recent(self._recent.most, state["recent"].tolist())


def rule_of(name: str, *, seed: int) -> StopRule | None:
    """The rule of that name with its defaults; None for "none".

    Args:
        name: one of :data:`STOPS`.
        seed: of the pixels that a holdout leaves out.
    """
    match name:
        case "variance":
            return VarianceStop()
        case "holdout":
            return HoldoutStop(seed=seed)
        case "discrepancy":
            return DiscrepancyStop()
    return None


class _Recent:
    """The mean of the last numbers.

    Args:
        most: how many.
        values: that there are.
    """

    def __init__(self, most: int, values: Sequence[float] = ()) -> None:
        self.most, self._values = most, list(values)

    def add(self, value: Tensor) -> Tensor:
        """Take a number in, and give the mean."""
        self._values = [*self._values, float(value)][-self.most :]
        return value.new_tensor(math.fsum(self._values) / len(self._values))

    def tensor(self) -> Tensor:
        """The numbers."""
        return torch.tensor(self._values, dtype=torch.float64, device="cpu")


def _error(
    image: Tensor, target: Tensor, weight: Tensor | None, forward: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Weighted mean of the squared differences, in float64.

    Raises:
        InputError: the image has another shape than the target.
    """
    measured = image if forward is None else forward(image)
    if measured.shape != target.shape:
        shapes = f"{tuple(target.shape)}, got {tuple(measured.shape)}"
        raise InputError(f"output: expected the shape of noisy {shapes}")
    squares = (measured - target).square()
    return _mean(squares) if weight is None else _sum(weight * squares) / _sum(weight)


def _thinned(output: Tensor) -> Tensor:
    """Of a large image every second (third, ...) row and column."""
    dims, pixels = output.ndim - 2, output[0, 0].numel()
    stride = 1
    while pixels > MOST_PIXELS * stride**dims:
        stride += 1
    every = (slice(None, None, stride),) * dims
    thin = (slice(None), slice(None), *every)
    return output[thin]


def _mean(values: Tensor) -> Tensor:
    """Mean in float64."""
    return _sum(values) / values.numel()


def _sum(values: Tensor) -> Tensor:
    """In float64, row by row: of all at once the order depends on the number of threads."""
    total = values.double()
    while total.ndim:
        total = total.sum(-1)
    return total
