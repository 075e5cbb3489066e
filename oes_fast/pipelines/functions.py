"""A generator as a function of one flat vector of weights: what the loops differentiate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from oes_fast.backends import resolve
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, entry_of
from oes_fast.errors import BackendError, InputError, OESError, OESWarning, warn_caller
from oes_fast.flat import FlatLayout, fixed_parameters, flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.rewrite import TraceError, VerificationError, sparsify
from oes_fast.rewrite.module import candidates
from oes_fast.rewrite.noisy_input import StepNoise, noisy_input
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.run.context import FusedLoss

_SMALL_THINGS = 50_000_000  # bytes

Rewritten = TypeVar("Rewritten")


class GeneratorFunction(Protocol):
    """output = f(weights) at the input z, in training mode.

    Attributes:
        buffers: running statistics, updated in place by calls that ask for it.
    """

    buffers: dict[str, Tensor]

    def initial_weights(self) -> Tensor:
        """Weights of the network it was made from; masked weights where there is a mask."""

    def update_mask(self) -> Tensor | None:
        """Which entries of the weights are trained, bool; None for all.

        The others are those that a mask drops, which are zero, and those of parameters that the network holds
        fixed (``requires_grad`` off), which stay as they are. Each has a gradient all the same: a search may
        mask any.
        """

    def __call__(self, weights: Tensor, *, update_stats: bool, fused_loss: FusedLoss | None = None) -> Tensor:
        """Image [1, C, H, W], differentiable in ``weights``.

        Where the last layer takes ``fused_loss`` along, that loss is what is differentiable. A network may
        return what is no image: see :meth:`oes_fast.pipelines.objective.Objective.check`.
        """

    def draw_input(self, noise: StepNoise | None) -> None:
        """Read z with this noise from the next call on, or as it is."""

    def to_net(self, weights: Tensor) -> nn.Module:
        """The dense network with these weights and statistics in place, ``requires_grad`` as it was."""


class DenseFunction:
    """The network as it is, every parameter in the vector: the published semantics.

    Args:
        net: copied, and left alone.
        z: input [1, C, ...].
        mask: flat bool [numel]; the initial weights are multiplied by it.
        entry: which of several results is the image.
    """

    def __init__(
        self, net: nn.Module, z: Tensor, mask: Tensor | None = None, *, entry: Entry | None = None
    ) -> None:
        self._entry = entry
        self._net = copy_network(net)
        try:
            self._net.train()
        except NotImplementedError as error:  # what torch.export gives has one mode
            raise InputError(
                f"net: expected a network with a training mode, got one without: {error}"
            ) from error
        self._z = self._source = z
        self._mask = mask
        self._layout = FlatLayout.of(net)
        self._fixed = fixed_parameters(net)
        self._trained = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
        self._parameters = [parameter.requires_grad_() for parameter in self._net.parameters()]
        self._places = [
            (module, key, name)
            for path, module in self._net.named_modules()
            for key, _ in module.named_buffers(recurse=False)
            if (name := f"{path}.{key}".lstrip(".")) in dict(net.named_buffers())
        ]
        self.buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def initial_weights(self) -> Tensor:
        """Copy of the network's parameters times the mask, shape [numel]."""
        weights = flatten(self._net)
        return weights if self._mask is None else weights * self._mask

    def update_mask(self) -> Tensor | None:
        """See :class:`GeneratorFunction`: what the mask keeps, but for parameters held fixed."""
        if not self._fixed:
            return self._mask
        trained = torch.ones(self._layout.numel, dtype=torch.bool, device=self._z.device)
        views = self._layout.views(trained)
        for name in self._fixed:
            views[name].fill_(False)
        return trained if self._mask is None else trained & self._mask

    def __call__(self, weights: Tensor, *, update_stats: bool, fused_loss: FusedLoss | None = None) -> Tensor:
        """Image [1, C, H, W], differentiable in ``weights`` [numel]; ``fused_loss`` is never taken along."""
        # The network keeps them until the next call: its code may compute again during the backward pass.
        for parameter, view in zip(
            self._parameters, self._layout.views(weights.detach()).values(), strict=True
        ):
            parameter.data = view
        for module, key, name in self._places:
            setattr(module, key, self.buffers[name] if update_stats else self.buffers[name].clone())
        output = run_network(self._net, self._source, self._entry)
        if not isinstance(output, Tensor) or not (output.requires_grad and weights.requires_grad):
            return output
        return _Through.apply(weights, _Graph(output, self._parameters))

    def draw_input(self, noise: StepNoise | None) -> None:
        """See :class:`GeneratorFunction`."""
        self._source = self._z if noise is None else noise.added(self._z)

    def to_net(self, weights: Tensor) -> nn.Module:
        """A copy of the network with these weights and the statistics collected."""
        net = copy_network(self._net)
        unflatten_(net, weights)
        for name, buffer in net.named_buffers():
            buffer.copy_(self.buffers[name])
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(self._trained[name])
        return net


@dataclass(frozen=True)
class _Graph:
    """An output with the graph it has over the parameters of a network."""

    output: Tensor
    parameters: list[Tensor]


class _Through(torch.autograd.Function):
    """The output as a function of the flat vector that the parameters are views of."""

    @staticmethod
    def forward(weights: Tensor, graph: _Graph) -> Tensor:
        return graph.output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.graph = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        output, parameters = ctx.graph.output, ctx.graph.parameters
        grads = torch.autograd.grad(output, parameters, grad, allow_unused=True, materialize_grads=True)
        return torch.cat([each.flatten() for each in grads]), None


class RewrittenFunction:
    """The network rewritten to compute only what is alive; the vector holds the kept weights alone.

    Args:
        net: copied, and left alone.
        z: input [1, C, H, W].
        mask: which weights to keep; None for all.
        backend: for :func:`oes_fast.sparsify`.
        verify: for :func:`oes_fast.sparsify`.
        noisy: :meth:`draw_input` will be called.
        entry: which of several results is the image.

    Raises:
        InputError: the network gives no such entry.
        TraceError: the network's code cannot be traced.
        VerificationError: the rewritten network computes something else.
    """

    def __init__(
        self,
        net: nn.Module,
        z: Tensor,
        mask: Mask | None,
        backend: str,
        *,
        verify: bool = True,
        noisy: bool = False,
        entry: Entry | None = None,
    ) -> None:
        self._module = sparsify(net, mask, entry=entry, backend=backend, verify=verify).train()
        self._fixed = fixed_parameters(net)
        self._numel = FlatLayout.of(net).numel
        self._z = self._source = z
        self._noise: StepNoise | None = None
        self._noisy = noisy
        if noisy and not self._lays_out(backend):
            # One image, written again in each step, where recorded steps find it; nothing made of it is kept.
            self._module.fixed_input = False
            self._source = z.clone(memory_format=torch.contiguous_format)
        self._module.plan(self._source)  # refuses here
        self.buffers = dict(self._module.dense_buffers())

    def _lays_out(self, backend: str) -> bool:
        """Whether noise is drawn where the kernels lay the input out."""
        if backend != "cpu" or self._z.shape[0] != 1:
            return False
        return noisy_input(self._module.plan(self._z), self._z) is not None

    def sibling(self, net: nn.Module, z: Tensor) -> RewrittenFunction:
        """The function of another network of the same kind, without finding out all that is known here.

        Where the input is the same tensor, it is read where it was laid out. To be asked of one that is
        :attr:`in_one_chain`.

        Args:
            net: of the same layers, in the same modes; copied, and left alone.
            z: input of the same size.
        """
        other = copy.copy(self)
        if self._source is self._z and self._noise is None and not self._noisy:
            self._module.lay_out(self._source)
        other._module = self._module.sibling(net)
        other._z = other._source = z
        other._noise = None
        if self._source is not self._z:
            other._source = z.clone(memory_format=torch.contiguous_format)
        other.buffers = dict(other._module.dense_buffers())
        return other

    def plan_of_networks(self, networks: int) -> Plan:
        """A plan for so many networks of the same kind at once."""
        return self._module.plan_of_networks(self._source, networks)

    @property
    def in_one_chain(self) -> bool:
        """Whether the kernels of one chain compute all of it and the squared error as well.

        No random number is drawn then, and on the CPU bits do not depend on the number of threads.
        """
        return self._module.plan(self._source).in_one_chain(self._z.dtype)

    @property
    def memory(self) -> int:
        """About the bytes that a run of it takes, beside its image and what it shares with others.

        The kernels' buffers and the input as they read it; of each parameter of the dense network an index
        of 64 bits, a flag and two copies; 50 MB of small things. What PyTorch's operations keep for a
        backward pass is not counted.
        """
        plan = self._module.plan(self._source)
        element = self._z.element_size()
        of_parameters = self._numel * (9 + 2 * element)
        return plan.memory(self._z.dtype) + 2 * self._z.numel() * element + of_parameters + _SMALL_THINGS

    def draw_input(self, noise: StepNoise | None) -> None:
        """See :class:`GeneratorFunction`."""
        if self._source is self._z:
            self._noise = noise
        elif noise is None:
            self._source.copy_(self._z)
        else:
            noise.added(self._z, self._source)

    def initial_weights(self) -> Tensor:
        """Copy of the kept parameters, shape [kept]."""
        return self._module.weights.detach().clone()

    def update_mask(self) -> Tensor | None:
        """See :class:`GeneratorFunction`: all kept weights, but for parameters held fixed."""
        return self._module.trained() if self._fixed else None

    def __call__(self, weights: Tensor, *, update_stats: bool, fused_loss: FusedLoss | None = None) -> Tensor:
        """Image [1, C, H, W] of ``weights`` [kept]; ``fused_loss`` is taken along where it can be."""
        return self._module.evaluate(
            weights,
            self._source,
            self.buffers,
            update_stats=update_stats,
            fused_loss=fused_loss,
            noise=self._noise,
        )

    def to_net(self, weights: Tensor) -> nn.Module:
        """A copy of the dense network with these weights and the statistics collected."""
        with torch.no_grad():
            self._module.weights.copy_(weights)
        return self._module.to_dense()


def make_function(
    net: nn.Module,
    z: Tensor,
    mask: Mask | None,
    backend: str,
    *,
    verify: bool = True,
    noisy: bool = False,
    entry: Entry | None = None,
) -> tuple[GeneratorFunction, str]:
    """The generator function that ``backend`` names, and the name that "auto" came to.

    Args:
        net: generator.
        z: input [1, C, H, W].
        mask: which weights to keep, or None for all.
        backend: one of the names of :func:`oes_fast.backends`, or "auto". "reference" takes the network as it
            is, all others rewrite it.
        verify: compare the rewritten network with ``net`` first; where they differ, whatever the backend,
            warn and take the network as it is.
        noisy: :meth:`GeneratorFunction.draw_input` will be called.
        entry: which of several results is the image.

    Raises:
        InputError: the network gives no such entry.
        BackendError: the backend cannot run here, or not in the network's dtype.
        TraceError: the network's code cannot be traced and the backend was named; "auto" warns and takes the
            network as it is.
    """
    dense = DenseFunction(net, z, None if mask is None else mask.flat.to(z.device), entry=entry)
    options: dict[str, Any] = {"verify": verify, "noisy": noisy, "entry": entry}

    def made(chosen: str) -> RewrittenFunction:
        return RewrittenFunction(net, z, mask, chosen, **options)

    function, name = rewritten(made, z, backend)
    if function is None:
        return dense, name
    other = "triton"  # has kernels for the stages that the CUDA engine leaves to PyTorch
    if backend == "auto" and name == "cuda" and not function.in_one_chain and runs_on(other, z):
        return made(other), other
    return function, name


def runs_on(backend: str, z: Tensor) -> bool:
    """Whether a backend can run networks of inputs like ``z`` here."""
    try:
        return resolve(backend, z.device, candidates(z.dtype)) == backend
    except BackendError:
        return False


def rewritten(
    make: Callable[[str], Rewritten], z: Tensor, backend: str, *, auto: str = "auto"
) -> tuple[Rewritten | None, str]:
    """What ``make`` makes of the network rewritten for a backend; None where the network runs as it is.

    Args:
        make: given the name of a backend that can run here, rewrites the network and plans it for ``z``.
        z: input.
        backend: as for :func:`make_function`, and so are the exceptions and warnings.
        auto: the backend to take for "auto".

    Returns:
        (what was made or None, name of the backend that runs the network).
    """
    if backend == "reference":
        return None, backend
    # Where a backend has no kernel for a stage, plain PyTorch runs it.
    chosen = resolve(auto if backend == "auto" else backend, z.device, candidates(z.dtype))
    try:
        if z.ndim != 4:
            raise TraceError(f"rewriting needs a z of shape [1, C, H, W], got {tuple(z.shape)}")
        return make(chosen), chosen
    except (TraceError, VerificationError) as error:
        if isinstance(error, TraceError) and backend != "auto":
            raise
        warn_caller(f"{error}; it runs as it is, on the reference path", OESWarning)
        return None, "reference"


def run_network(net: nn.Module, z: Tensor, entry: Entry | None = None) -> Any:
    """Whatever ``net`` gives for ``z``, or the given entry of it.

    Raises:
        InputError: its code fails, or it gives no such entry.
    """
    try:
        return entry_of(net(z), entry, of=type(net).__name__)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError | OESError):
            raise
        raise InputError(
            f"net: expected a network that takes z of shape {tuple(z.shape)}, its code raises "
            f"{type(error).__name__}: {error}"
        ) from error
