"""A chain as a differentiable function of its weights and its sources."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oes_fast.errors import InputError
from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.chain_find import Chain
from oes_fast.rewrite.run.chain_program import NativeChain
from oes_fast.rewrite.run.context import Value, is_unit_gradient
from oes_fast.rewrite.weights import CompactWeights


@dataclass(frozen=True)
class ConstantRead:
    """A constant source as a chain reads it.

    Attributes:
        source: node.
        planes: its memory; who writes to it has the chain read that.
        take: make the chain read these planes for the source, whatever it has read since.
    """

    source: ir.Node
    planes: Tensor
    take: Callable[[], None]


class ChainFunction:
    """A chain bound to its channels and weights.

    Args:
        chain: to run.
        alive: channels by node.
        weights: what the mask keeps, and where it lies in the flat vector.
        engine: what runs it.
        input_only: nodes that depend on the input alone: sources among them are made once.
        networks: how many networks of the mask are evaluated at once, N: with weights [N, kept], running
            statistics [N, channels] and targets (and their weights) [N, C, H, W], a source of one image for
            all or [N, C, H, W], the result [N, C, H, W] and losses [N]. The shapes below are those for one,
            the usual case.
    """

    def __init__(
        self,
        chain: Chain,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        engine: type[NativeChain],
        *,
        input_only: Collection[ir.Node],
        networks: int = 1,
    ) -> None:
        self.chain = chain
        self._engine = engine
        self._networks = networks
        self._alive = alive
        self._weights = weights
        self._constant = tuple(source in input_only for source in chain.sources)
        self._natives: dict[tuple[torch.dtype, tuple[bool, ...], str], NativeChain] = {}
        self._planes: dict[int, tuple[Tensor, Tensor]] = {}
        end = chain.end.stage
        # Constant channels of the result: in training a batch norm gives its beta for them.
        self._beta = None
        if isinstance(end, ir.Norm) and len(alive[chain.end].constant):
            assert end.bias is not None
            self._beta = weights.request(end.bias, alive[chain.end].constant + end.first)

    def sibling(self) -> ChainFunction:
        """The same with buffers of its own; constant sources stay as they are laid out."""
        other = copy.copy(self)
        other._natives, other._planes = {}, dict(self._planes)
        return other

    def constants(self, blocks: list[Tensor], activate: Callable[..., Tensor]) -> Tensor | None:
        """Values of the constant channels of the result, or None where they are planes of it."""
        if self._beta is None:
            return None
        end = self.chain.end.stage
        assert isinstance(end, ir.Norm)
        beta = blocks[self._beta]
        return beta if end.act is None else activate(beta, end.act)

    def __call__(
        self,
        weights: Tensor,
        sources: Sequence[Tensor],
        buffers: Mapping[str, Tensor],
        *,
        update_stats: bool,
        counted: list[str],
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The chain's result [1, C, H, W], and its mean (weighted) squared error to the target.

        Constant channels of a result that does not come from a norm are planes behind the others.

        Args:
            weights: kept weights, flat.
            sources: channels that vary of each source [1, C, H, W].
            buffers: running statistics by name, updated in place if ``update_stats``.
            update_stats: update them.
            counted: batch counts to add one to after the pass, by name; see
                :func:`oes_fast.rewrite.run.norm_ops.count_batches`.
            target: [1, C, H, W], or None; a chain that ends in a batch norm takes none.
            weight: of each squared error to it, of its shape, or None for 1.
        """
        constant = tuple(
            of_chain and not source.requires_grad
            for of_chain, source in zip(self._constant, sources, strict=True)
        )
        native = self._native(sources[0].dtype, sources[0].device, constant)
        running: list[Tensor | None] = []
        for node in self.chain.norms:
            norm = node.stage
            if isinstance(norm, ir.Norm) and update_stats and norm.tracks:
                assert norm.mean is not None
                assert norm.var is not None
                running += [buffers[norm.mean], buffers[norm.var]]
                if norm.count is not None and norm.counts:
                    counted.append(norm.count)
            else:
                running += [None, None]
        entries = [
            self._read(entry, sources[number], native, constant[number])
            for entry, (number, _) in enumerate(native.entries)
        ]
        if target is None or not native.takes_target:
            return _Evaluate.apply(weights, native, running, *entries), None
        # Contiguous here, where it is kept for the backward pass: an engine may read it again.
        target = target.detach().contiguous()
        weight = None if weight is None else weight.detach().contiguous()
        return _EvaluateLoss.apply(weights, target, weight, native, running, *entries)

    def constant_reads(self, values: Mapping[ir.Node, Value]) -> list[ConstantRead]:
        """Of the sources among ``values`` that depend on the input alone, laid out now if need be."""
        known = [
            values[node].x for node, fixed in zip(self.chain.sources, self._constant, strict=True) if fixed
        ]
        if not known:
            return []
        native = self._native(known[0].dtype, known[0].device, self._constant)
        return [
            self._constant_read(entry, self.chain.sources[number], values, native)
            for entry, (number, _) in enumerate(native.entries)
            if self._constant[number]
        ]

    def _constant_read(
        self, entry: int, node: ir.Node, values: Mapping[ir.Node, Value], native: NativeChain
    ) -> ConstantRead:
        source = values[node].x
        planes = self._read(entry, source, native, constant=True)
        if planes.data_ptr() == source.data_ptr():  # who writes to it is not to write to the source
            planes = planes.clone()

        def take() -> None:
            self._planes[entry] = (source, planes)

        return ConstantRead(node, planes, take)

    def takes_target(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it compares its result with a target; binds the chain."""
        return self._native(dtype, device, self._constant).takes_target

    def memory(self, dtype: torch.dtype, device: torch.device) -> int:
        """See :class:`NativeChain`; binds the chain."""
        return self._native(dtype, device, self._constant).memory

    def explain(self, dtype: torch.dtype, device: torch.device) -> dict[ir.Node, str]:
        """What runs each stage; binds the chain where its engine has more to say than its name."""
        names = dict.fromkeys(self.chain.nodes, self._engine.name)
        if not self._engine.explains:
            return names
        lines = self._native(dtype, device, self._constant).explain()
        return names | {block.conv: line for block, line in zip(self.chain.convolutions, lines, strict=True)}

    def _native(self, dtype: torch.dtype, device: torch.device, constant: tuple[bool, ...]) -> NativeChain:
        key = dtype, constant, self._engine.products_of(dtype)
        if key not in self._natives:
            with torch.device("cpu"):  # whatever the caller's default
                self._natives[key] = self._engine(
                    self.chain,
                    self._alive,
                    self._weights,
                    dtype,
                    device,
                    constant=constant,
                    products=key[-1],
                    networks=self._networks,
                )
        return self._natives[key]

    def _read(self, entry: int, source: Tensor, native: NativeChain, constant: bool) -> Tensor:
        """A source as its readers take it, made once where it is constant."""
        if not constant:
            # A gradient for each network, added up by autograd.
            several = source.requires_grad and self._networks > 1
            return source.expand(self._networks, -1, -1, -1) if several else source
        if entry not in self._planes or self._planes[entry][0] is not source:
            planes = native.as_read(entry, source)
            if source.is_inference():
                return planes
            self._planes[entry] = (source, planes)
        return self._planes[entry][1]


class _Evaluate(torch.autograd.Function):
    """The chain as a function of weights and sources."""

    @staticmethod
    def forward(
        weights: Tensor, native: NativeChain, running: list[Tensor | None], *sources: Tensor
    ) -> Tensor:
        return native.forward(weights, sources, running)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, ctx.native, _, *sources = inputs
        ctx.save_for_backward(weights, *sources)
        ctx.evaluation = ctx.native.evaluation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        needs_weights, _, _, *needs_sources = ctx.needs_input_grad
        grad_weights, *grad_sources = _Differentiate.apply(
            weights, grad, ctx.native, ctx.evaluation, needs_sources, None, None, *sources
        )
        return (
            grad_weights if needs_weights else None,
            None,
            None,
            *(_needed(grad_sources, needs_sources)),
        )


class _EvaluateLoss(torch.autograd.Function):
    """The chain with the error of its result to a target, as a function of weights and sources."""

    @staticmethod
    def forward(
        weights: Tensor,
        target: Tensor,
        weight: Tensor | None,
        native: NativeChain,
        running: list[Tensor | None],
        *sources: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output, loss = native.forward(weights, sources, running, target, weight)
        assert loss is not None
        return output, loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights, target, weight, ctx.native, _, *sources = inputs
        ctx.save_for_backward(weights, target, weight, output[0], *sources)
        ctx.evaluation = ctx.native.evaluation
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        weights, target, weight, output, *sources = ctx.saved_tensors
        needs_weights, _, _, _, _, *needs_sources = ctx.needs_input_grad
        evaluation, factor = ctx.evaluation, grad_loss
        if grad is not None:  # of the image as well: all of it from there, the buffers hold another gradient
            evaluation, factor = ctx.native.NONE, None
            if grad_loss is not None:
                per_image = grad_loss if grad_loss.ndim == 0 else grad_loss.view(-1, 1, 1, 1)
                elements = target.numel() // max(grad_loss.numel(), 1)
                error = output - target if weight is None else weight * (output - target)
                grad = grad + per_image * (2 / elements) * error
            target = weight = None
        elif grad_loss is None:
            return (None,) * (5 + len(sources))
        grad_weights, *grad_sources = _Differentiate.apply(
            weights, grad, ctx.native, evaluation, needs_sources, target, weight, *sources
        )
        # Known without reading it, which would wait for the device.
        if factor is not None and not is_unit_gradient(factor):
            grad_weights = grad_weights * factor.unsqueeze(-1)
            grad_sources = [
                each * factor.view(-1, 1, 1, 1) if needed else each
                for each, needed in zip(grad_sources, needs_sources, strict=True)
            ]
        return (
            grad_weights if needs_weights else None,
            None,
            None,
            None,
            None,
            *(_needed(grad_sources, needs_sources)),
        )


class _Differentiate(torch.autograd.Function):
    """The chain's derivative; it has none itself."""

    @staticmethod
    def forward(
        weights: Tensor,
        grad: Tensor | None,
        native: NativeChain,
        evaluation: int,
        needs_sources: Sequence[bool],
        target: Tensor | None,
        weight: Tensor | None,
        *sources: Tensor,
    ) -> tuple[Tensor, ...]:
        of_weights, of_sources = native.backward(
            weights, sources, grad, evaluation, needs_sources=needs_sources, target=target, weight=weight
        )
        return (of_weights, *of_sources)

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[Any], weights: Tensor, grad: Tensor, *others: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Of torch.func.jacrev, which has a batch of gradients of one evaluation: one after the other."""
        of_weights, of_grad, *of_others = in_dims
        if any(isinstance(dim, int) for dim in (of_weights, *of_others)):
            raise InputError("weights: expected a tensor outside torch.func.vmap, got a batch of them")
        each = [_Differentiate.apply(weights, one, *others) for one in grad.unbind(of_grad)]
        found = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return found, (0,) * len(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[2].backend

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(f'backend "{ctx.backend}" has no second derivative; use backend="torch"')


def _needed(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    return [grad if needed else None for grad, needed in zip(grads, needs, strict=True)]
