"""How fast the loss rises around the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast._checks import check_flag, check_integer, check_number
from oes_fast.analysis.weights import KeptFunction, check_seed, dot, kept_function, probe
from oes_fast.entry import Entry
from oes_fast.mask import Mask
from oes_fast.pipelines.inputs import ordinary
from oes_fast.pipelines.objective import SquaredError

_SMALLEST_STEP = 1e-3  # of the ball's radius: an ascent that has come to it has arrived


@dataclass(frozen=True)
class Sharpness:
    """How much the loss can rise within a ball around the kept weights.

    Attributes:
        loss: L(w), in the middle.
        largest: the largest L(w + e) - L(w) found in the ball.
        first_order: L(w + e) - L(w) where the gradient points to, on the edge of the ball.
        average: mean of L(w + e) - L(w) over random directions, on the edge of the ball; NaN without probes.
        average_error: standard error of it; NaN below two probes.
        rho: radius of the ball.
        adaptive: the ball is one in units of the weights.
        evaluations: of the loss.
    """

    loss: float
    largest: float
    first_order: float
    average: float
    average_error: float
    rho: float
    adaptive: bool
    evaluations: int


def sharpness(
    net: nn.Module,
    mask: Mask | None,
    z: Tensor,
    noisy: Tensor,
    *,
    entry: Entry | None = None,
    rho: float = 0.05,
    adaptive: bool = False,
    steps: int = 20,
    probes: int = 8,
    seed: int = 0,
    backend: str = "auto",
    verify: bool = True,
) -> Sharpness:
    """The largest rise of mean((image - noisy)^2) in a ball of radius ``rho`` around the kept weights.

    max L(w + e) - L(w) over |e| <= rho, the sharpness of Foret, Kleiner, Mobahi and Neyshabur (2021), over
    the kept weights alone. They take the first-order point e = rho g / |g| for the maximum; here it is where
    a projected gradient ascent starts from (or the random direction with the largest loss, where that is
    higher), whose step is halved where the loss falls, so that ``largest`` is never below ``first_order``. It
    is a bound of the maximum from below.

    A network with batch norm gives the same image for weights of any scale, and its sharpness depends on that
    scale. With ``adaptive`` the ball is |e / w| <= rho, element by element, as Kwon, Kim, Park and Choi
    (2021) have it, which does not depend on it; weights at 0, such as the shifts of a fresh batch norm, stay
    there.

    Args:
        net: generator at the weights in question; copied, and left alone.
        mask: which weights are kept, None for all.
        z: fixed input, shape [1, C, H, W].
        noisy: image to compare with, shape [1, C', H', W'].
        entry: which of several results of the network is the image.
        rho: radius of the ball, > 0; Foret et al. use 0.05, Kwon et al. 0.5 to 2 for their ball.
        adaptive: measure the ball in units of the weights.
        steps: of the ascent at most, a forward and a backward pass each; 0 for the start alone.
        probes: random directions, a forward pass each.
        seed: of the directions.
        backend: any that can run here, see :func:`oes_fast.backends`: no second derivative is needed.
        verify: compare the rewritten network with ``net`` first, see :func:`oes_fast.sparsify`.

    Returns:
        :class:`Sharpness`.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        BackendError: the backend cannot run here.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> sharp = oes.analysis.sharpness(net, None, z, noisy, steps=3, probes=2)
        >>> sharp.largest >= sharp.first_order > 0
        True
    """
    check_number("rho", rho, above=0.0)
    check_flag("adaptive", adaptive)
    check_integer("steps", steps, minimum=0)
    check_integer("probes", probes, minimum=0, below=2**31)
    check_seed(seed)
    function = kept_function(net, mask, z, noisy, entry=entry, backend=backend, verify=verify)
    ball = _Ball(function, SquaredError(ordinary(noisy)), rho, adaptive)
    loss, gradient = ball.gradient(ball.middle)
    rises = []
    best, highest = ball.middle, loss
    for index in range(probes):
        point = ball.edge(probe(seed, index, ball.middle.shape, ball.middle))
        rises.append((value := ball.loss(point)) - loss)
        if value > highest:
            best, highest = point, value
    first_order = ball.edge(gradient)
    first = ball.loss(first_order)
    if first >= highest:
        best, highest = first_order, first
    highest = max(highest, ball.climb(best, steps))
    average = sum(rises) / len(rises) if rises else math.nan
    error = math.nan
    if len(rises) > 1:
        error = math.sqrt(sum((r - average) ** 2 for r in rises) / (len(rises) - 1) / len(rises))
    return Sharpness(
        loss, highest - loss, first - loss, average, error, float(rho), adaptive, ball.evaluations
    )


class _Ball:
    """The loss at points of a ball around the weights, in units of its axes: w + axes * point."""

    def __init__(self, function: KeptFunction, objective: SquaredError, rho: float, adaptive: bool) -> None:
        self._function = function
        self._objective = objective
        self._rho = rho
        self._weights = function.initial_weights()
        self._axes = self._weights.abs() if adaptive else torch.ones_like(self._weights)
        self.middle = torch.zeros_like(self._weights)
        self.evaluations = 0

    def loss(self, point: Tensor) -> float:
        """L(w + e)."""
        with torch.no_grad():
            return float(self._loss(self._weights + self._axes * point))

    def gradient(self, point: Tensor) -> tuple[float, Tensor]:
        """L(w + e), and its derivative by the point."""
        with torch.enable_grad():
            weights = (self._weights + self._axes * point).requires_grad_()
            loss = self._loss(weights)
            (gradient,) = torch.autograd.grad(loss, weights, materialize_grads=True)
        return float(loss.detach()), self._axes * gradient

    def edge(self, direction: Tensor) -> Tensor:
        """The point of the ball's edge in a direction; the middle where it has no length."""
        length = math.sqrt(dot(direction, direction))
        return direction * (self._rho / length) if length else self.middle

    def climb(self, point: Tensor, steps: int) -> float:
        """The highest loss that an ascent from a point comes to."""
        size = 1.0
        loss, gradient = self.gradient(point) if steps else (-math.inf, point)
        for _ in range(steps):
            moved = point + size * self.edge(gradient)
            if dot(moved, moved) > self._rho**2:
                moved = self.edge(moved)
            value, new_gradient = self.gradient(moved)
            if value > loss:
                point, loss, gradient = moved, value, new_gradient
            elif (size := size / 2) < _SMALLEST_STEP:
                break
        return loss

    def _loss(self, weights: Tensor) -> Tensor:
        self.evaluations += 1
        return self._objective.loss(self._objective.check(self._function(weights, update_stats=False)))
