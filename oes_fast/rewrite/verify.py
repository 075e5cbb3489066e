"""The rewritten network held against the dense one, once, before anything relies on it.

Both are run on the caller's own input with weights drawn about the present ones: loss, image, gradients and
running statistics must agree, and so must the image of a second call, without gradients: what a network
keeps from call to call shows there. The dense network makes one step and the forward half of another, in
float64 where memory allows: with all that is compared, 12 to 15 of its steps in float32 (docs/results.md).

What is compared is the mathematics, so the eps of every norm is raised on both sides: a dense network
amplifies the rounding of a constant channel by 1 / sqrt(eps), 316 times, in each batch norm, where the
rewritten one has no rounding at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oes_fast.copies import copy_network
from oes_fast.entry import Entry, entry_of
from oes_fast.errors import OESError
from oes_fast.flat import FlatLayout, unflatten_
from oes_fast.rewrite import ir
from oes_fast.rewrite.run.context import FusedLoss, Value, activate
from oes_fast.rewrite.tracing.dataflow import content
from oes_fast.rewrite.verify_problem import (
    DrawsNumbersError,
    Watch,
    an_ulp_away,
    drawn_weights,
    fits_in_float64,
    gradients,
    same_random_numbers,
    target_image,
    with_raised_eps,
)

if TYPE_CHECKING:
    from oes_fast.rewrite.module import SparseGenerator
    from oes_fast.rewrite.plan import Plan


class VerificationError(OESError):
    """The rewritten network computes something else than the dense one."""


@dataclass(frozen=True)
class Tolerance:
    """How far two sides may be apart.

    An element by ``relative`` of itself and of the root mean square of its tensor, and by ``floor`` of that
    of all gradients. With ``norms``, whole tensors are compared by their norms.
    """

    relative: float
    floor: float
    norms: bool = False

    def apart(self, ours: Tensor, theirs: Tensor, overall: float) -> int | None:
        """The index of the element that is farthest outside, None where all agree."""
        if theirs.numel() == 0:
            return None
        ours, theirs = ours.detach().double().flatten(), theirs.detach().double().flatten()
        distance, size = (ours - theirs).abs(), float(theirs.square().mean().sqrt())
        if self.norms:
            within = float(distance.square().mean().sqrt()) <= self.relative * size + self.floor * overall
            return None if within else int(distance.argmax())
        excess = distance - (self.relative * (theirs.abs() + size) + self.floor * overall)
        return None if bool((excess <= 0).all()) else int(excess.nan_to_num(float("inf")).argmax())


TIGHT = Tolerance(1e-6, 1e-9)  # float64 on both sides
CAST = Tolerance(1e-2, 1e-4)  # float64, but the network's own code computes in a narrower type
LOOSE = Tolerance(5e-2, 2e-3, norms=True)  # float32 on one side at least
# Of what an ulp of the weights does to a dense gradient in float64: differences of that size are rounding,
# if they are small beside the largest gradient as well.
_ROUNDING, _ROUNDING_AT_MOST = 10.0, 1e-5


@dataclass(frozen=True)
class Outcome:
    """What one side makes of the drawn weights.

    Attributes:
        loss: scalar.
        output: image.
        grad: of the kept weights, flat.
        buffers: running statistics afterwards, by name.
        again: image of a second call, without gradients.
        random: drawn with the random numbers of :func:`same_random_numbers`.
    """

    loss: Tensor
    output: Tensor
    grad: Tensor
    buffers: dict[str, Tensor]
    again: Tensor
    random: bool = False


def verify(
    generator: SparseGenerator,
    net: nn.Module,
    mask: Tensor | None,
    z: Tensor,
    kernels: str,
    *,
    entry: Entry | None = None,
) -> None:
    """Compare a rewritten generator with its network.

    Args:
        generator: rewritten; weights are drawn about its present ones.
        net: dense, its layers in the mode to verify; left alone.
        mask: flat bool, or None.
        z: input [N, C, H, W].
        kernels: those of ``generator``.
        entry: which of the network's results is the image.

    Raises:
        VerificationError: they differ; the message says in what, and where they part.
    """
    comparison = _Comparison(generator, net, mask, z, entry)
    exact = _exact_kernels(kernels, comparison.dtype)
    try:
        ours = comparison.dense_and_rewritten(exact)
    except _NoImageError:
        return
    if exact != kernels or comparison.dtype != z.dtype:
        comparison.in_own_dtype(kernels, ours)


def _exact_kernels(kernels: str, dtype: torch.dtype) -> str:
    """The kernels that stand for ``kernels`` in the dtype of the comparison: Triton's take no float64."""
    return "torch" if kernels == "triton" and dtype == torch.float64 else kernels


class _Comparison:
    def __init__(
        self,
        generator: SparseGenerator,
        net: nn.Module,
        mask: Tensor | None,
        z: Tensor,
        entry: Entry | None,
    ) -> None:
        self._entry = entry
        self._generator = generator
        self._name = type(net).__name__
        self._raised = with_raised_eps(net)
        self._exact = self._raised
        if fits_in_float64(generator, net, z):
            self._exact = copy_network(self._raised).double()
        self.dtype = next(self._exact.parameters()).dtype
        self._z = z.detach()
        self._mask = None if mask is None else mask.to(z.device)
        layout = FlatLayout.of(net)
        flat = torch.ones(layout.numel, dtype=torch.bool, device="cpu") if mask is None else mask.cpu()
        self._kept = {name: int(view.sum()) for name, view in layout.views(flat).items()}
        self._frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
        self._weights = drawn_weights(net, generator.dense_weights(), flat)
        self._rounding: tuple[Tensor, ...] | None = None  # see _is_rounding

    def dense_and_rewritten(self, kernels: str) -> Outcome:
        """What the rewritten side computes, once it is found to be what the dense one does."""
        twin = self._generator.twin(self._exact, kernels)
        watch = Watch(self.dtype)
        try:
            dense = self._dense(watch)
        except DrawsNumbersError:  # such as dropout: both sides are given the same numbers
            watch = Watch(self.dtype, may_draw=True)
            with same_random_numbers(self._z.device):
                dense = replace(self._dense(watch), random=True)
        exact = self.dtype == torch.float64
        tolerance = TIGHT if exact and not watch.narrower else CAST if exact else LOOSE
        for ours in self._rewritten_twice(twin, dense, self.dtype):
            problem = self._difference(ours, dense, tolerance, twin)
            if problem is not None:
                raise VerificationError(
                    f"{self._name}: rewritten, it computes something else: {problem}. They part at "
                    f"{self._stage(dense.random, kernels, tolerance)}"
                )
        return ours

    def in_own_dtype(self, kernels: str, exact: Outcome) -> None:
        """The kernels in the caller's dtype against the rewritten side in float64."""
        twin = self._generator.twin(self._raised, kernels)
        for ours in self._rewritten_twice(twin, exact, self._z.dtype):
            problem = self._difference(ours, exact, LOOSE, twin)
            if problem is not None and not self._rounds_as_much(exact, twin):
                raise VerificationError(
                    f"{self._name}: rewritten, it computes something else on the kernels of backend "
                    f"{kernels!r} in {str(self._z.dtype).removeprefix('torch.')} than in float64: {problem}"
                )

    def _rounds_as_much(self, exact: Outcome, twin: SparseGenerator) -> bool:
        """Whether the dense network in the caller's dtype is as far from float64, by rounding or overflow."""
        with same_random_numbers(self._z.device) if exact.random else nullcontext():
            dense = self._dense(raised=self._raised)
        return self._difference(dense, exact, LOOSE, twin) is not None

    # ---- the two sides

    def _dense(
        self, watch: Watch | None = None, *, raised: nn.Module | None = None, weights: Tensor | None = None
    ) -> Outcome:
        # The module itself, its own parameters filled in: its code may look at what they are.
        net = copy_network(self._exact if raised is None else raised)
        dtype = next(net.parameters()).dtype
        z = self._z.to(dtype)
        unflatten_(net, (self._weights if weights is None else weights).to(self._z.device, dtype))
        with nullcontext() if watch is None else watch:
            output = entry_of(net(z), self._entry, of=self._name)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise _NoImageError
        loss = F.mse_loss(output, target_image(output.shape, z.to(output.dtype)))
        grads = gradients(loss, [p for p in net.parameters() if p.requires_grad])
        flat = torch.cat(
            [grads.pop(0) if p.requires_grad else torch.zeros_like(p).flatten() for p in net.parameters()]
        )
        # After the backward pass, which may compute again and count a batch twice.
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        with torch.no_grad():
            again = entry_of(net(z), self._entry, of=self._name)
        return Outcome(loss.detach(), output.detach(), self._kept_of(flat), buffers, again)

    def _rewritten_twice(self, twin: SparseGenerator, like: Outcome, dtype: torch.dtype) -> Iterator[Outcome]:
        """With the loss that the last layer may take along, and with that of the image it gives."""
        for fused in (True, False):
            with same_random_numbers(self._z.device) if like.random else nullcontext():
                yield replace(self._rewritten(twin, dtype, fused=fused), random=like.random)

    def _rewritten(self, twin: SparseGenerator, dtype: torch.dtype, *, fused: bool) -> Outcome:
        leaf = self._kept_of(self._weights.to(self._z.device, dtype)).clone().requires_grad_()
        z = self._z.to(dtype)
        buffers = {name: buffer.clone() for name, buffer in twin.dense_buffers()}
        target = target_image(twin.plan(z).graph.output.shape, z)
        fused_loss = FusedLoss(target) if fused else None
        output = twin.evaluate(leaf, z, buffers, update_stats=True, fused_loss=fused_loss)
        loss = (
            F.mse_loss(output, target) if fused_loss is None or fused_loss.loss is None else fused_loss.loss
        )
        (grad,) = gradients(loss, [leaf])
        after = {name: buffer.clone() for name, buffer in buffers.items()}
        with torch.no_grad():
            again = twin.evaluate(leaf, z, buffers, update_stats=True)
        return Outcome(loss.detach(), output.detach(), grad, after, again)

    def _kept_of(self, flat: Tensor) -> Tensor:
        return flat if self._mask is None else flat[self._mask]

    # ---- what differs

    def _difference(
        self, ours: Outcome, theirs: Outcome, tolerance: Tolerance, twin: SparseGenerator
    ) -> str | None:
        """The first thing that differs, in words, or None."""
        if ours.output.shape != theirs.output.shape:
            return f"an image of shape {tuple(ours.output.shape)}, expected {tuple(theirs.output.shape)}"
        if not bool(torch.isfinite(theirs.output).all() & torch.isfinite(theirs.loss)):
            return None  # nothing can be said
        for name, one, other in (("loss", ours.loss, theirs.loss), ("image", ours.output, theirs.output)):
            at = tolerance.apart(one, other, 1e-3)
            if at is not None:
                return f"{name} {_number(one, at)} instead of {_number(other, at)}"
        at = tolerance.apart(ours.again, theirs.again, 1e-3)
        if at is not None:
            second = f"{_number(ours.again, at)} instead of {_number(theirs.again, at)}"
            return f"image {second} in a second call, without gradients"
        wrong = self._wrong_gradients(ours, theirs, tolerance)
        if wrong:
            name, at, one, other = wrong[-1]
            return f"gradient {_number(one, at)} of {name} instead of {_number(other, at)}"
        for name, one, other in _running_statistics(twin.plan(self._z.to(ours.output.dtype)), ours, theirs):
            at = tolerance.apart(one, other, 1.0)
            if at is not None:
                return f"{name} {_number(one, at)} instead of {_number(other, at)}"
        return None

    def _wrong_gradients(
        self, ours: Outcome, theirs: Outcome, tolerance: Tolerance
    ) -> list[tuple[str, int, Tensor, Tensor]]:
        """(parameter, element, our gradient, theirs) of the parameters whose gradients differ, in order."""
        overall = 1e-3  # where all gradients are 0 but for rounding
        if theirs.grad.numel():
            overall += float(theirs.grad.double().square().mean().sqrt())
        sizes = list(self._kept.values())
        wrong = []
        for name, one, other in zip(
            self._kept, ours.grad.split(sizes), theirs.grad.split(sizes), strict=True
        ):
            at = None if name in self._frozen else tolerance.apart(one, other, overall)
            if at is not None and not (tolerance is TIGHT and self._is_rounding(name, one, theirs)):
                wrong.append((name, at, one, other))
        return wrong

    def _is_rounding(self, name: str, ours: Tensor, theirs: Outcome) -> bool:
        """Whether our gradient of a parameter is off by no more than the dense one is by its own rounding.

        Behind a layer that lost everything, channels are constant and gradients 0. The dense network has
        rounding there, which every norm amplifies. It is measured: by the same step from weights that
        differ by an ulp, where a gradient that is not 0 but for rounding hardly changes.
        """
        sizes = list(self._kept.values())
        if self._rounding is None:
            with same_random_numbers(self._z.device) if theirs.random else nullcontext():
                near = self._dense(weights=an_ulp_away(self._weights.double()))
            self._rounding = (near.grad - theirs.grad).abs().split(sizes)
        index = list(self._kept).index(name)
        distance = (ours - theirs.grad.split(sizes)[index]).abs()
        rounding, largest = self._rounding[index].max(), theirs.grad.abs().max()
        return bool((distance <= torch.minimum(_ROUNDING * rounding, _ROUNDING_AT_MOST * largest)).all())

    # ---- where they part

    def _stage(self, random: bool, kernels: str, tolerance: Tolerance) -> str:
        """The first stage whose result differs, else the last parameter whose gradient does."""
        with same_random_numbers(self._z.device) if random else nullcontext():
            dense, expected = self._dense_stages()
        for name in dict.fromkeys(("torch", kernels)):
            where = "" if name == "torch" else f" on the kernels of backend {name!r}"
            twin = self._generator.twin(self._exact, name)
            with same_random_numbers(self._z.device) if random else nullcontext():
                found = self._first_stage(twin, dict(expected), tolerance)
            if found is not None:
                return f"stage {found}{where}"
            for ours in self._rewritten_twice(twin, replace(dense, random=random), self.dtype):
                if ours.output.shape != dense.output.shape:
                    continue
                if tolerance.apart(ours.loss, dense.loss, 1e-3) is not None:
                    return f"the loss of the last stage{where}"
                if tolerance.apart(ours.again, dense.again, 1e-3) is not None:
                    return f"what a call leaves for the next, or does with gradients alone{where}"
                wrong = self._wrong_gradients(ours, dense, tolerance)
                if wrong:
                    return f"the backward pass of {wrong[-1][0]}{where}"
        return "the output, outside any layer"

    def _dense_stages(self) -> tuple[Outcome, dict[str, Tensor]]:
        """What the dense network computes, and the result of every layer's first call by its name."""
        results: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor):  # a copy: the next layer may work in place
                    results.setdefault(name, output.detach().clone())

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in self._exact.named_modules()]
        try:
            return self._dense(), results  # of a copy, which has the hooks
        finally:
            for handle in handles:
                handle.remove()

    def _first_stage(
        self, twin: SparseGenerator, expected: dict[str, Tensor], tolerance: Tolerance
    ) -> str | None:
        z = self._z.to(self.dtype)
        plan = twin.plan(z)
        weights = self._kept_of(self._weights.to(z.device, self.dtype))
        buffers = {name: buffer.clone() for name, buffer in twin.dense_buffers()}
        found: list[str] = []

        def observe(node: ir.Node, value: Value) -> None:
            if found or node.name not in expected:
                return
            theirs = expected.pop(node.name)
            varying = plan.alive[node].varying
            ours = value.x if value.shift is None else value.x + value.shift.view(-1, 1, 1)
            if tuple(theirs.shape) != node.shape or ours.shape[1:2] != varying.shape:
                return  # a rule has moved it past another layer
            theirs = theirs[:, varying.to(theirs.device)]
            act = getattr(node.stage, "act", None)
            if act is not None:
                theirs = activate(theirs, act)
            reader = plan.graph.sole_user(node)
            if (
                isinstance(node.stage, ir.Conv | ir.UpConv)
                and reader is not None
                and isinstance(reader.stage, ir.Norm)
            ):
                # Norms subtract what is the same for all pixels: it need not be there.
                ours, theirs = (x - x.mean((0, 2, 3), keepdim=True) for x in (ours, theirs))
            if ours.shape != theirs.shape or tolerance.apart(ours, theirs, 1e-3) is not None:
                found.append(node.name or type(self._exact).__name__)

        with torch.no_grad():
            plan.run(weights, buffers, z, plan.prepare(z), update_stats=False, observe=observe)
        return found[0] if found else None


class _NoImageError(Exception):
    """The network gives no real numbers: its user will be told, there is nothing to compare."""


def _running_statistics(plan: Plan, ours: Outcome, theirs: Outcome) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, ours, theirs) of all buffers that differ, the running statistics among them.

    Of the stages that compute what the mask keeps, those of channels that reach an output.
    """
    channels: dict[str, list[Tensor]] = {}
    for node in plan.graph.nodes:
        norm = node.stage
        if isinstance(norm, ir.Norm) and norm.tracks:
            alive = plan.alive[node]
            for name in (norm.mean, norm.var):
                if name is not None:
                    at = torch.cat([alive.varying, alive.tracked]) + norm.first
                    channels.setdefault(name, []).append(at)
    for name, other in theirs.buffers.items():
        one = ours.buffers[name]
        if name in channels:
            at = torch.cat(channels[name]).to(other.device)
            one, other = one[at], other[at]
        one = one.to(other.dtype)
        if content(one) != content(other):  # an infinity is as far from itself as from anything
            yield name, one, other


def _number(tensor: Tensor, at: int) -> str:
    return f"{float(tensor.flatten()[at]):.4g}"
