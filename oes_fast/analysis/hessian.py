"""How strongly the loss is curved: the outer eigenvalues of its Hessian."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oes_fast._checks import check_choice, check_integer, check_number
from oes_fast.analysis.weights import check_second_order, check_seed, dot, kept_function, probe
from oes_fast.entry import Entry
from oes_fast.errors import InputError, OESError
from oes_fast.mask import Mask
from oes_fast.pipelines.inputs import ordinary
from oes_fast.pipelines.objective import SquaredError

# scipy's names for which eigenvalues are sought.
_WHICH = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
_DENSE = 64  # weights up to which the whole matrix is made: ARPACK finds fewer eigenvalues than there are


@dataclass(frozen=True, eq=False)
class HessianEigenvalues:
    """Eigenvalues of the Hessian of the loss by the kept weights.

    Attributes:
        values: float64 on the CPU, shape [k], in descending order.
        vectors: eigenvectors of length 1, shape [kept, k], dtype and device of the network.
        residuals: |Hx - value x| of each, shape [k]: within that distance lies an eigenvalue.
        products: Hessian-vector products computed.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int

    def __repr__(self) -> str:
        """Without the vectors."""
        numbers = ", ".join(f"{value:.4g}" for value in self.values.tolist())
        return f"HessianEigenvalues([{numbers}] of {len(self.vectors)} weights, {self.products} products)"


class HessianProduct:
    """Products of the Hessian of the loss with vectors; the graph of the gradient is made once and kept.

    Args:
        net: generator at the weights in question; copied, and left alone.
        mask: which weights are kept, None for all.
        z: input [1, C, H, W].
        noisy: what the image is compared with.
        entry: which of several results of the network is the image.
        backend: "torch" or "reference".
        verify: compare the rewritten network with ``net`` first.

    Attributes:
        weights: kept weights, without gradient, shape [kept].
        loss: at these weights.
        made: products computed.
    """

    def __init__(
        self,
        net: nn.Module,
        mask: Mask | None,
        z: Tensor,
        noisy: Tensor,
        *,
        entry: Entry | None,
        backend: str,
        verify: bool,
    ) -> None:
        check_second_order(backend)
        function = kept_function(net, mask, z, noisy, entry=entry, backend=backend, verify=verify)
        objective = SquaredError(ordinary(noisy))
        self._leaf = function.initial_weights().requires_grad_()
        with torch.enable_grad():
            loss = objective.loss(objective.check(function(self._leaf, update_stats=False)))
            (self._gradient,) = torch.autograd.grad(
                loss, self._leaf, create_graph=True, materialize_grads=True
            )
        self.weights = self._leaf.detach()
        self.loss = float(loss.detach())
        self.made = 0

    def __call__(self, vector: Tensor) -> Tensor:
        """H times ``vector`` [kept]."""
        self.made += 1
        if not self._gradient.requires_grad:  # nothing is alive: the gradient is a constant zero
            return torch.zeros_like(self.weights)
        (product,) = torch.autograd.grad(
            self._gradient, self._leaf, vector, retain_graph=True, materialize_grads=True
        )
        return product.detach()


def hessian_eigenvalues(
    net: nn.Module,
    mask: Mask | None,
    z: Tensor,
    noisy: Tensor,
    *,
    entry: Entry | None = None,
    k: int = 5,
    which: str = "largest",
    tolerance: float = 1e-3,
    iterations: int = 100,
    seed: int = 0,
    backend: str = "torch",
    verify: bool = True,
) -> HessianEigenvalues:
    """Outer eigenvalues of the Hessian of mean((image - noisy)^2) by the kept weights.

    The Hessian-vector product is that of Pearlmutter (1994), the derivative of the gradient along a vector;
    the eigenvalues are found from such products by the implicitly restarted Lanczos method (Lehoucq, Sorensen
    and Yang, ARPACK, 1998) of :func:`scipy.sparse.linalg.eigsh`, in float64 whatever the dtype of the
    network. Up to 64 weights, or for more than half of all eigenvalues, the whole matrix is made and
    decomposed.

    Args:
        net: generator at the weights in question; copied, and left alone.
        mask: which weights are kept, None for all.
        z: fixed input, shape [1, C, H, W].
        noisy: image to compare with, shape [1, C', H', W'].
        entry: which of several results of the network is the image.
        k: how many eigenvalues, of as many kept weights at most.
        which: "largest" or "smallest" in value, or of the largest "magnitude".
        tolerance: relative accuracy of the eigenvalues, 0 for that of float64. A float32 network cannot be
            asked for less than about 1e-5.
        iterations: restarts at most, about max(k + 1, 20 - k) products each.
        seed: of the vector to start from.
        backend: "torch" for the rewritten network, "reference" for the network as it is.
        verify: compare the rewritten network with ``net`` first, see :func:`oes_fast.sparsify`.

    Returns:
        :class:`HessianEigenvalues`.

    Raises:
        InputError: an argument does not fit, with its name.
        MaskMismatchError: the mask belongs to another network.
        TraceError: the network's code cannot be traced and ``backend`` is "torch".
        OESError: the eigenvalues have not converged after ``iterations``.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> noisy = oes.add_noise(torch.full((1, 3, 32, 32), 0.5), 0.1, seed=0)
        >>> found = oes.analysis.hessian_eigenvalues(net, None, z, noisy, k=2)
        >>> bool(found.values[0] > found.values[1])
        True
    """
    check_integer("k", k, minimum=1)
    check_choice("which", which, tuple(_WHICH))
    check_number("tolerance", tolerance, minimum=0.0)
    check_integer("iterations", iterations, minimum=1)
    check_seed(seed)
    product = HessianProduct(net, mask, z, noisy, entry=entry, backend=backend, verify=verify)
    count = product.weights.numel()
    if k > count:
        raise InputError(f"k: expected at most {count}, the number of kept weights, got {k}")
    if count <= _DENSE or 2 * k >= count:
        vectors = _dense(product, k, which)
    else:
        vectors = _arpack(product, k, which, tolerance, iterations, seed)
    return _checked(product, vectors)


def _dense(product: HessianProduct, k: int, which: str) -> Tensor:
    eye = torch.eye(product.weights.numel(), dtype=product.weights.dtype, device=product.weights.device)
    matrix = torch.stack([product(row) for row in eye]).double()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    key = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    return vectors[:, torch.argsort(key, stable=True)[:k]]


def _arpack(
    product: HessianProduct, k: int, which: str, tolerance: float, iterations: int, seed: int
) -> Tensor:
    # Not at the head of the file: `import oes_fast` would take longer for it.
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    like = product.weights
    count = like.numel()

    def times(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.reshape(-1)).to(like)).double().cpu().numpy()

    start = probe(seed, 0, like.shape, like).double().cpu().numpy()
    # What it draws where it has found an invariant subspace comes from a seed too, in versions that let it.
    drawn = {"rng": np.random.default_rng(seed)} if "rng" in inspect.signature(eigsh).parameters else {}
    try:
        _, vectors = eigsh(
            LinearOperator((count, count), matvec=times, dtype=np.float64),
            k,
            which=_WHICH[which],
            v0=start,
            tol=tolerance,
            maxiter=iterations,
            **drawn,
        )
    except ArpackNoConvergence as error:
        raise OESError(
            f"hessian_eigenvalues: {len(error.eigenvalues)} of {k} eigenvalues have converged to "
            f"{tolerance:g} after {product.made} Hessian-vector products; raise iterations or tolerance"
        ) from None
    return torch.from_numpy(np.ascontiguousarray(vectors)).to(like.device)


def _checked(product: HessianProduct, vectors: Tensor) -> HessianEigenvalues:
    """Values and residuals of the vectors by a product each, in descending order."""
    found = []
    for vector in vectors.T:
        unit = vector.to(product.weights)
        image = product(unit)
        value = dot(unit, image) / dot(unit, unit)
        difference = image.double() - value * unit.double()
        found.append((value, math.sqrt(dot(difference, difference)), unit))
    found.sort(key=lambda each: -each[0])
    values, residuals, units = zip(*found, strict=True)
    return HessianEigenvalues(
        torch.tensor(values, dtype=torch.float64, device="cpu"),
        torch.stack(units, 1),
        torch.tensor(residuals, dtype=torch.float64, device="cpu"),
        product.made,
    )
