"""A chain as a differentiable function of its weights and its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from oes_fast.rewrite import ir
from oes_fast.rewrite.liveness import Alive
from oes_fast.rewrite.run.chain_find import Chain
from oes_fast.rewrite.run.chain_program import NativeChain
from oes_fast.rewrite.run.context import is_unit_gradient
from oes_fast.rewrite.weights import CompactWeights


class ChainFunction:
    """A chain bound to its channels and weights.

    Args:
        chain: to run.
        alive: channels by node.
        weights: what the mask keeps, and where it lies in the flat vector.
        engine: what runs it.
        constant_input: the source depends on the input alone.
        networks: how many networks of the mask are evaluated at once, N: with weights [N, kept], running
            statistics [N, channels] and targets (and their weights) [N, C, H, W], a source of one image for all or [N, C, H, W],
            the result [N, C, H, W] and losses [N]. The shapes below are those for one, the usual case.
    """

    def __init__(
        self,
        chain: Chain,
        alive: dict[ir.Node, Alive],
        weights: CompactWeights,
        engine: type[NativeChain],
        *,
        constant_input: bool,
        networks: int = 1,
    ) -> None:
        self.chain = chain
        self._engine = engine
        self._networks = networks
        self._alive = alive
        self._weights = weights
        self._constant_input = constant_input
        self._natives: dict[tuple[torch.dtype, bool, str], NativeChain] = {}
        self._planes: tuple[Tensor, Tensor] | None = None
        self._norms = [norm for block in chain.blocks for norm in block.norms]
        end = chain.end.stage
        # Constant channels of the result: in training a batch norm gives its beta for them.
        self._beta = None
        if isinstance(end, ir.Norm) and len(alive[chain.end].constant):
            assert end.bias is not None
            self._beta = weights.request(end.bias, alive[chain.end].constant + end.first)

    def constants(self, blocks: list[Tensor], activate: Callable[..., Tensor]) -> Tensor | None:
        """Values of the constant channels of the result, or None."""
        if self._beta is None:
            return None
        end = self.chain.end.stage
        assert isinstance(end, ir.Norm)
        beta = blocks[self._beta]
        return beta if end.act is None else activate(beta, end.act)

    def __call__(
        self,
        weights: Tensor,
        source: Tensor,
        buffers: Mapping[str, Tensor],
        *,
        update_stats: bool,
        counted: list[str],
        target: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The chain's result [1, C, H, W], and its mean (weighted) squared error to the target.

        Args:
            weights: kept weights, flat.
            source: channels that vary of the source [1, C, H, W].
            buffers: running statistics by name, updated in place if ``update_stats``.
            update_stats: update them.
            counted: batch counts to add one to after the pass, by name; see
                :func:`oes_fast.rewrite.run.norm_ops.count_batches`.
            target: [1, C, H, W], or None; a chain that ends in a batch norm takes none.
            weight: of each squared error to it, of its shape, or None for 1.
        """
        constant_input = self._constant_input and not source.requires_grad
        native = self._native(source.dtype, source.device, constant_input)
        running: list[Tensor | None] = []
        for node in self._norms:
            norm = node.stage
            assert isinstance(norm, ir.Norm)
            if update_stats and norm.tracks:
                assert norm.mean is not None
                assert norm.var is not None
                running += [buffers[norm.mean], buffers[norm.var]]
                if norm.count is not None and norm.counts:
                    counted.append(norm.count)
            else:
                running += [None, None]
        if constant_input:
            source = self._read(source, native)
        elif source.requires_grad and self._networks > 1:
            source = source.expand(self._networks, -1, -1, -1)  # a gradient each, added up by autograd
        if target is None or self.chain.blocks[-1].norms:
            return _Evaluate.apply(weights, source, native, running), None
        # Contiguous here, where it is kept for the backward pass: an engine may read it again.
        target = target.detach().contiguous()
        weight = None if weight is None else weight.detach().contiguous()
        return _EvaluateLoss.apply(weights, source, target, weight, native, running)

    def explain(self, dtype: torch.dtype, device: torch.device) -> dict[ir.Node, str]:
        """What runs each stage; binds the chain where its engine has more to say than its name."""
        names = dict.fromkeys(self.chain.nodes, self._engine.name)
        if not self._engine.explains:
            return names
        lines = self._native(dtype, device, self._constant_input).explain()
        return names | {block.conv: line for block, line in zip(self.chain.blocks, lines, strict=True)}

    def _native(self, dtype: torch.dtype, device: torch.device, constant_input: bool) -> NativeChain:
        key = dtype, constant_input, self._engine.products_of(dtype)
        if key not in self._natives:
            with torch.device("cpu"):  # whatever the caller's default
                self._natives[key] = self._engine(
                    self.chain,
                    self._alive,
                    self._weights,
                    dtype,
                    device,
                    constant_input=constant_input,
                    products=key[-1],
                    networks=self._networks,
                )
        return self._natives[key]

    def _read(self, source: Tensor, native: NativeChain) -> Tensor:
        """A constant source as the first convolution reads it, made once."""
        if self._planes is None or self._planes[0] is not source:
            planes = native.as_read(source)
            if source.is_inference():
                return planes
            self._planes = (source, planes)
        return self._planes[1]


class _Evaluate(torch.autograd.Function):
    """The chain as a function of weights and source."""

    @staticmethod
    def forward(weights: Tensor, source: Tensor, native: NativeChain, running: list[Tensor | None]) -> Tensor:
        return native.forward(weights, source, running)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights, source, ctx.native, _ = inputs
        ctx.save_for_backward(weights, source)
        ctx.evaluation = ctx.native.evaluation

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        weights, source = ctx.saved_tensors
        needs_weights, needs_source = ctx.needs_input_grad[:2]
        grad_weights, grad_source = _Differentiate.apply(
            weights, source, grad, ctx.native, ctx.evaluation, needs_source, None, None
        )
        return grad_weights if needs_weights else None, grad_source if needs_source else None, None, None


class _EvaluateLoss(torch.autograd.Function):
    """The chain with the error of its result to a target, as a function of weights and source."""

    @staticmethod
    def forward(
        weights: Tensor,
        source: Tensor,
        target: Tensor,
        weight: Tensor | None,
        native: NativeChain,
        running: list[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        output, loss = native.forward(weights, source, running, target, weight)
        assert loss is not None
        return output, loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        weights, source, target, weight, ctx.native, _ = inputs
        ctx.save_for_backward(weights, source, target, weight, output[0])
        ctx.evaluation = ctx.native.evaluation
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_loss: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        weights, source, target, weight, output = ctx.saved_tensors
        needs_weights, needs_source = ctx.needs_input_grad[:2]
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
            return None, None, None, None, None, None
        grad_weights, grad_source = _Differentiate.apply(
            weights, source, grad, ctx.native, evaluation, needs_source, target, weight
        )
        # Known without reading it, which would wait for the device.
        if factor is not None and not is_unit_gradient(factor):
            grad_weights = grad_weights * factor.unsqueeze(-1)
            grad_source = grad_source * factor.view(-1, 1, 1, 1) if needs_source else grad_source
        return (
            grad_weights if needs_weights else None,
            grad_source if needs_source else None,
            None,
            None,
            None,
            None,
        )


class _Differentiate(torch.autograd.Function):
    """The chain's derivative; it has none itself."""

    @staticmethod
    def forward(
        weights: Tensor,
        source: Tensor,
        grad: Tensor | None,
        native: NativeChain,
        evaluation: int,
        needs_source: bool,
        target: Tensor | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return native.backward(
            weights, source, grad, evaluation, needs_source=needs_source, target=target, weight=weight
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[3].backend

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(f'backend "{ctx.backend}" has no second derivative; use backend="torch"')
