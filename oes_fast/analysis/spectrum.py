"""How the curvature of the loss is distributed: the spectrum of its Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oes_fast._checks import check_integer, check_number, check_tensor
from oes_fast.analysis.hessian import HessianProduct
from oes_fast.analysis.weights import check_seed, dot, probe
from oes_fast.entry import Entry
from oes_fast.mask import Mask


@dataclass(frozen=True, eq=False)
class HessianSpectrum:
    """The distribution of the eigenvalues of a Hessian, as probes see it.

    Each probe gives a few points with weights that add up to 1. The mean over the probes of the sum of
    weight * f(point) estimates the mean of f over all eigenvalues, exactly for polynomials f of a degree
    below twice the number of points; the outermost points are close to the outermost eigenvalues.

    Attributes:
        points: of each probe, float64 on the CPU, ascending.
        weights: of each probe, as ``points``.
        count: of eigenvalues: the number of kept weights.
        products: Hessian-vector products computed.
    """

    points: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    count: int
    products: int

    def __repr__(self) -> str:
        """The ends and the trace."""
        return (
            f"HessianSpectrum({self.count} eigenvalues from {self.smallest:.4g} to {self.largest:.4g}, trace "
            f"{self.trace:.4g} +- {self.trace_error:.2g}, {self.products} products)"
        )

    @property
    def largest(self) -> float:
        """The largest point: no eigenvalue is found above it."""
        return max(float(points[-1]) for points in self.points)

    @property
    def smallest(self) -> float:
        """The smallest point."""
        return min(float(points[0]) for points in self.points)

    @property
    def trace(self) -> float:
        """Estimate of the sum of all eigenvalues."""
        traces = self._traces()
        return sum(traces) / len(traces)

    @property
    def trace_error(self) -> float:
        """Standard error of the trace, from the spread over the probes; NaN for a single probe."""
        traces, mean = self._traces(), self.trace
        if len(traces) < 2:
            return math.nan
        return math.sqrt(sum((t - mean) ** 2 for t in traces) / (len(traces) - 1) / len(traces))

    def share(self, below: float) -> float:
        """Estimate of the share of eigenvalues below a number."""
        shares = [float(w[p < below].sum()) for p, w in zip(self.points, self.weights, strict=True)]
        return sum(shares) / len(shares)

    def density(self, grid: Tensor, width: float) -> Tensor:
        """Density of the eigenvalues, each point drawn as a Gaussian of standard deviation ``width``.

        Args:
            grid: where to evaluate it, float of shape [m].
            width: > 0, in units of eigenvalues.

        Returns:
            float64 of shape [m] on the CPU; its integral is 1.
        """
        check_number("width", width, above=0.0)
        x = check_tensor("grid", grid, ndim=1).detach().to("cpu", torch.float64)
        density = torch.zeros_like(x)
        for points, weights in zip(self.points, self.weights, strict=True):
            bumps = torch.exp(-0.5 * ((x[:, None] - points) / width) ** 2)
            density += bumps @ weights / (width * math.sqrt(2 * math.pi))
        return density / len(self.points)

    def _traces(self) -> list[float]:
        pairs = zip(self.points, self.weights, strict=True)
        return [self.count * float(points @ weights) for points, weights in pairs]


def hessian_spectrum(
    net: nn.Module,
    mask: Mask | None,
    z: Tensor,
    noisy: Tensor,
    *,
    entry: Entry | None = None,
    probes: int = 4,
    steps: int = 30,
    seed: int = 0,
    backend: str = "torch",
    verify: bool = True,
) -> HessianSpectrum:
    """Spectrum of the Hessian of mean((image - noisy)^2) by the kept weights.

    Stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017; for networks Ghorbani, Krishnan and Xiao 2019):
    Lanczos from a vector of random signs, reorthogonalised twice against all vectors before; the eigenvalues
    of the tridiagonal matrix are the points, the squared first components of its eigenvectors their weights.

    Args:
        net: generator at the weights in question; copied, and left alone.
        mask: which weights are kept, None for all.
        z: fixed input, shape [1, C, H, W].
        noisy: image to compare with, shape [1, C', H', W'].
        entry: which of several results of the network is the image.
        probes: vectors to start from.
        steps: of Lanczos for each, a Hessian-vector product a step; as many vectors of the kept weights are
            held in memory. Fewer are made where the vector spans a smaller space.
        seed: of the vectors.
        backend: "torch" for the rewritten network, "reference" for the network as it is.
        verify: compare the rewritten network with ``net`` first, see :func:`oes_fast.sparsify`.

    Returns:
        :class:`HessianSpectrum`.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        TraceError: the network's code cannot be traced and ``backend`` is "torch".

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> spectrum = oes.analysis.hessian_spectrum(net, None, z, noisy, probes=2, steps=8)
        >>> spectrum.smallest < spectrum.largest, len(spectrum.points[0])
        (True, 8)
    """
    check_integer("probes", probes, minimum=1, below=2**31)
    check_integer("steps", steps, minimum=1)
    check_seed(seed)
    product = HessianProduct(net, mask, z, noisy, entry=entry, backend=backend, verify=verify)
    points, weights = [], []
    for index in range(probes):
        start = probe(seed, index, product.weights.shape, product.weights)
        values, vectors = torch.linalg.eigh(_lanczos(product, start, steps))
        points.append(values)
        weights.append(vectors[0].square())
    return HessianSpectrum(tuple(points), tuple(weights), product.weights.numel(), product.made)


def _lanczos(product: HessianProduct, start: Tensor, steps: int) -> Tensor:
    """The Hessian in the Krylov space of ``start``: tridiagonal, float64 [m, m], m <= ``steps``."""
    count = start.numel()
    # Below this a vector is what rounding has left: the space is exhausted.
    negligible = math.sqrt(count) * torch.finfo(start.dtype).eps
    basis = start.new_empty(min(steps, count), count)
    basis[0] = start / math.sqrt(count)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(len(basis)):
        vector = product(basis[step])
        diagonal.append(dot(vector, basis[step]))
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, section 6.9)
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        length = math.sqrt(dot(vector, vector))
        scale = max(map(abs, diagonal + beside))
        if step + 1 == len(basis) or length <= negligible * scale:
            break
        beside.append(length)
        basis[step + 1] = vector / length
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    for i, length in enumerate(beside):
        matrix[i, i + 1] = matrix[i + 1, i] = length
    return matrix
