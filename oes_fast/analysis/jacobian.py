"""How much the image moves with the weights: norms of the Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast._checks import check_integer, check_number
from oes_fast.analysis.weights import (
    KeptFunction,
    check_second_order,
    check_seed,
    dot,
    kept_function,
    probe,
)
from oes_fast.entry import Entry
from oes_fast.mask import Mask


@dataclass(frozen=True)
class JacobianNorm:
    """Norms of J, the derivative of all pixels of the image by all kept weights.

    Attributes:
        frobenius: estimate of the root of the sum of squares of all entries.
        frobenius_error: standard error of it, from the spread over the probes; NaN for a single probe.
        spectral: estimate of the largest singular value, from below.
        residual: how far the singular vector found is from one, |J'J v - s^2 v| / s^2; within that share of
            s^2 lies the square of a singular value.
        iterations: of the power iteration.
        probes: drawn.
        weights: kept weights, columns of J.
        pixels: values of the image in all channels, rows of J.
    """

    frobenius: float
    frobenius_error: float
    spectral: float
    residual: float
    iterations: int
    probes: int
    weights: int
    pixels: int

    @property
    def stable_rank(self) -> float:
        """(frobenius / spectral)^2: in how many directions the image moves; NaN where J is zero."""
        return (self.frobenius / self.spectral) ** 2 if self.spectral else math.nan


def jacobian_norm(
    net: nn.Module,
    mask: Mask | None,
    z: Tensor,
    *,
    entry: Entry | None = None,
    probes: int = 20,
    iterations: int = 100,
    tolerance: float = 1e-2,
    seed: int = 0,
    backend: str = "torch",
    verify: bool = True,
) -> JacobianNorm:
    """Frobenius and spectral norm of the Jacobian J of the image by the kept weights.

    The squared Frobenius norm is the trace of JJ', estimated by Hutchinson (1990) as the mean of |J'u|^2 over
    vectors u of random signs: without bias, with a relative standard deviation of at most sqrt(2 / probes).
    The published code reports the same mean over Gaussian vectors, divided by the fourth power of the image's
    side. The spectral norm is found by power iteration on J'J (Golub and Van Loan, Matrix Computations,
    section 8.2) from a vector of random signs; Jv is the derivative of u -> J'u, which is linear.

    Args:
        net: generator at the weights in question; copied, and left alone.
        mask: which weights are kept, None for all.
        z: fixed input, shape [1, C, H, W].
        entry: which of several results of the network is the image.
        probes: vectors u, one backward pass each.
        iterations: of the power iteration at most, two backward passes each; 0 for no spectral norm (NaN).
        tolerance: residual to stop at.
        seed: of the vectors.
        backend: "torch" for the rewritten network, "reference" for the network as it is.
        verify: compare the rewritten network with ``net`` first, see :func:`oes_fast.sparsify`.

    Returns:
        :class:`JacobianNorm`.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        TraceError: the network's code cannot be traced and ``backend`` is "torch".

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> norm = oes.analysis.jacobian_norm(net, None, z, probes=4, iterations=30)
        >>> norm.spectral < norm.frobenius
        True
    """
    check_integer("probes", probes, minimum=1, below=2**31)
    check_integer("iterations", iterations, minimum=0)
    check_number("tolerance", tolerance, minimum=0.0)
    check_seed(seed)
    function = kept_function(
        net, mask, z, None, entry=entry, backend=check_second_order(backend), verify=verify
    )
    jacobian = _Jacobian(function)
    squares = []
    for index in range(probes):
        pulled = jacobian.transposed(probe(seed, index, jacobian.image.shape, jacobian.image))
        squares.append(dot(pulled, pulled))
    mean = sum(squares) / probes
    frobenius = math.sqrt(mean)
    error = math.nan
    if probes > 1:
        variance = sum((square - mean) ** 2 for square in squares) / (probes - 1)
        # d sqrt(x) = dx / (2 sqrt(x))
        error = math.sqrt(variance / probes) / (2 * frobenius) if frobenius else 0.0
    spectral, residual, made = _power_iteration(jacobian, seed, probes, iterations, tolerance)
    return JacobianNorm(
        frobenius,
        error,
        spectral,
        residual,
        made,
        probes,
        jacobian.weights.numel(),
        jacobian.image.numel(),
    )


class _Jacobian:
    """Products with J and its transpose; the graph of the image is made once."""

    def __init__(self, function: KeptFunction) -> None:
        self.weights = function.initial_weights().requires_grad_()
        with torch.enable_grad():
            self._output = function(self.weights, update_stats=False)
            self.image = self._output.detach()
            self._u = torch.zeros_like(self.image, requires_grad=True)
            (self._pulled,) = torch.autograd.grad(
                self._output, self.weights, self._u, create_graph=True, materialize_grads=True
            )

    def transposed(self, u: Tensor) -> Tensor:
        """J'u, shape [kept]."""
        (product,) = torch.autograd.grad(
            self._output, self.weights, u, retain_graph=True, materialize_grads=True
        )
        return product.detach()

    def times(self, v: Tensor) -> Tensor:
        """Jv, shape of the image."""
        if not self._pulled.requires_grad:  # nothing is alive
            return torch.zeros_like(self.image)
        (product,) = torch.autograd.grad(self._pulled, self._u, v, retain_graph=True, materialize_grads=True)
        return product.detach()


def _power_iteration(
    jacobian: _Jacobian, seed: int, index: int, iterations: int, tolerance: float
) -> tuple[float, float, int]:
    """(largest singular value, residual, iterations made)."""
    v = probe(seed, index, jacobian.weights.shape, jacobian.weights.detach())
    v /= math.sqrt(v.numel())
    square, residual = math.nan, math.nan
    for made in range(1, iterations + 1):
        pushed = jacobian.times(v)
        square = dot(pushed, pushed)  # Rayleigh's quotient of J'J, as |v| = 1
        pulled = jacobian.transposed(pushed)
        length = math.sqrt(dot(pulled, pulled))
        if square == 0 or length == 0:
            return 0.0, 0.0, made
        difference = pulled - square * v
        residual = math.sqrt(dot(difference, difference)) / square
        if residual <= tolerance:
            return math.sqrt(square), residual, made
        v = pulled / length
    return math.sqrt(square), residual, iterations
