"""A generator rewritten to compute only what is alive, as a module."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from oes_fast._checks import check_tensor
from oes_fast.backends import resolve
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, check_entry
from oes_fast.errors import InputError, MaskMismatchError
from oes_fast.flat import FlatLayout, check_network, flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.rewrite.explain import table
from oes_fast.rewrite.ir import Graph, Node
from oes_fast.rewrite.named_weights import NamedWeights
from oes_fast.rewrite.noisy_input import StepNoise, noisy_input, step_noise
from oes_fast.rewrite.plan import Plan
from oes_fast.rewrite.rules import (
    conv_before_upsample,
    fuse_activation,
    norm_before_upsample,
    pool_before_conv,
    split_concat,
)
from oes_fast.rewrite.run.context import FusedLoss, Value
from oes_fast.rewrite.tracing.side_effects import refuse_gradient_hooks
from oes_fast.rewrite.tracing.trace import trace
from oes_fast.rewrite.uncompiled import refuse_transforms, uncompiled
from oes_fast.rewrite.verify import verify

# In this order: each makes matches for the ones after it.
RULES = (fuse_activation, pool_before_conv, split_concat, norm_before_upsample, conv_before_upsample)


class SparseGenerator(nn.Module):
    """The masked network, rewritten: same outputs, gradients and running statistics, fewer operations.

    Attributes:
        weights: one parameter of shape [kept weights], in parameters() order of the dense network. Weights
            that the network held fixed (``requires_grad`` off) are among them, with gradient zero; an
            optimiser with weight decay moves them all the same, see :meth:`named_weights`.
        fixed_input: True at first: the same input comes again and again, and what depends on it alone is
            made once. Where inputs change from call to call, as with noise added to one, False spares the
            work of preparing each of them.

    Buffers are the running statistics of the dense network, complete. Of a layer that the output depends on,
    those of channels that reach no output in any mode, as the mask drops what reads them, stay as they were.
    A plan is made for every input shape and mode when it is first seen, and what depends on the input alone
    is kept as long as the same tensor comes again.
    """

    _net: nn.Module
    _modes: dict[str, bool] | None

    def __init__(
        self,
        net: nn.Module,
        mask: Mask | None,
        *,
        kernels: str = "torch",
        verify: bool = False,
        entry: Entry | None = None,
    ) -> None:
        super().__init__()
        self._entry = entry
        refuse_gradient_hooks(net)
        self._given_mask = mask
        self._verify = verify
        self._check = True
        self.fixed_input = True
        layout = FlatLayout.of(net)
        flat = flatten(net)
        self._mask = None if mask is None else mask.flat
        self.weights = nn.Parameter(self._kept(flat))
        self._layout = layout
        self._named = NamedWeights(layout, self._mask, [p.requires_grad for p in net.parameters()])
        self._named.trained(flat.device)  # kept from here on
        # The network is kept for its code and shape, out of sight of parameters() and state_dict().
        self.__dict__["_net"] = copy_network(net)
        self._kernels = kernels
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._prepared: tuple[Plan, Tensor, tuple[int, int], dict[Node, Value]] | None = None
        self._last_channels: int | None = None
        self._buffer_names: dict[str, str] = {}
        for name, buffer in net.named_buffers():
            own = name.replace(".", "__")
            while hasattr(self, own):
                own += "_"
            self.register_buffer(own, buffer.clone(memory_format=torch.contiguous_format))
            self._buffer_names[name] = own
        self.train(net.training)
        # Layers held in another mode than the network, such as a frozen batch norm, until train() is called.
        modes = {name: module.training for name, module in net.named_modules()}
        self._modes = None if set(modes.values()) == {net.training} else modes

    def train(self, mode: bool = True) -> SparseGenerator:
        """Set the mode of all layers, as in the dense network."""
        self._modes = None
        return super().train(mode)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in any module; the parts of :meth:`named_weights` follow to another ``weights``."""
        super().register_parameter(name, param)
        if name == "weights" and param is not None and "_named" in self.__dict__:
            self._named.rebind(param)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradient of ``weights`` and those of :meth:`named_weights`."""
        super().zero_grad(set_to_none)
        self._named.clear(set_to_none=set_to_none)

    @uncompiled
    def forward(self, z: Tensor, *, input_noise: float = 0.0, step: int = 0, seed: int = 0) -> Tensor:
        """Image [N, C', H, W] of the input [N, C, H, W]; in training mode running statistics are updated.

        Args:
            z: input.
            input_noise: standard deviation, >= 0, of Gaussian noise added to ``z``, a function of
                (seed, step): that of :func:`oes_fast.train_sparse`. Of one image on "cpu" it is drawn
                while the input is laid out, which costs less than a ``z`` that changes; a backward pass goes
                through the last draw alone.
            step: of the noise, in [0, 2^32).
            seed: of the noise, in [0, 2^64).

        Raises:
            InputError: ``z`` is no such tensor, or not of the weights' dtype and device; or as in
                :meth:`named_weights`.
            TraceError: the network's code cannot be traced.
            VerificationError: with ``verify``, at the first input of a shape: the rewritten network computes
                something else than the network.
        """
        weights: Tensor = self.weights
        self._named.check(weights)
        trained = self.trained()
        if trained is not None:  # parameters that the network holds fixed get no gradient here either
            weights = torch.where(trained, weights, weights.detach())
        noise = step_noise(input_noise, step=step, seed=seed)
        return self.evaluate(weights, z, dict(self.dense_buffers()), update_stats=True, noise=noise)

    @uncompiled
    def evaluate(
        self,
        weights: Tensor,
        z: Tensor,
        buffers: dict[str, Tensor],
        *,
        update_stats: bool,
        fused_loss: FusedLoss | None = None,
        noise: StepNoise | None = None,
    ) -> Tensor:
        """:meth:`forward` with other weights and running statistics.

        Args:
            weights: shape of ``self.weights``, its dtype and device.
            z: input [N, C, H, W].
            buffers: of the dense network by name, updated in place if ``update_stats``.
            update_stats: update them.
            fused_loss: a loss that the last layer may take along.
            noise: on the input, or None.

        Raises:
            InputError: a tensor does not fit, has a tangent of forward-mode differentiation or is a batch of
                torch.func.vmap.
        """
        refuse_transforms(z=z, weights=weights)
        check_tensor("z", z, ndim=4, like=self.weights)
        check_tensor("weights", weights, shape=self.weights.shape, like=z)
        self._check_buffers(buffers)
        plan = self.plan(z)
        laid_out = noisy_input(plan, z) if noise is not None and self.fixed_input else None
        if laid_out is not None and noise is not None:
            prepared = laid_out.draw(noise)
        else:
            z = z if noise is None else noise.added(z)
            prepared = self._prepare(plan, z)
        return plan.run(weights, buffers, z, prepared, update_stats=update_stats, fused_loss=fused_loss)

    def plan(self, z: Tensor) -> Plan:
        """The plan for inputs like ``z`` in the present mode."""
        self._last_channels = z.shape[1]
        fixed = self.fixed_input
        key = (tuple(z.shape), z.dtype, z.device, z.requires_grad, self.training, self._modes is None, fixed)
        if key not in self._plans:
            self._net.train(self.training)
            for name, mode in (self._modes or {}).items():
                self._net.get_submodule(name).training = mode
            # The analysis is done on the CPU and for later gradients, whatever the caller's defaults.
            with torch.device("cpu"), torch.inference_mode(False):
                graph = rewritten(self._net, z, check=self._check, entry=self._entry)
                plan = Plan(
                    graph, self._net, self._mask, device=z.device, kernels=self._kernels, fixed_input=fixed
                )
            self._plans[key] = plan
            if self._verify and not torch._C._functorch.is_functorch_wrapped_tensor(z):
                self._verified(key, z)
        return self._plans[key]

    def plan_of_networks(self, z: Tensor, networks: int) -> Plan:
        """A plan of its own for so many networks of the mask at once, see :class:`Plan`.

        Args:
            z: an input [1, C, H, W] of one of them.
            networks: how many.
        """
        graph = self.plan(z).graph
        with torch.device("cpu"), torch.inference_mode(False):
            return Plan(
                graph,
                self._net,
                self._mask,
                device=z.device,
                kernels=self._kernels,
                fixed_input=self.fixed_input,
                networks=networks,
            )

    def _verified(self, key: tuple[object, ...], z: Tensor) -> None:
        try:
            with torch.inference_mode(False), torch.enable_grad(), temporarily_clear_interpreter_stack():
                verify(
                    self,
                    self._net,
                    self._mask,
                    z.clone() if z.is_inference() else z,
                    self._kernels,
                    entry=self._entry,
                )
        except Exception:
            del self._plans[key]  # the next call does not go on with it
            raise

    def twin(self, net: nn.Module, kernels: str) -> SparseGenerator:
        """The same rewriting of a network of the same layers, in the mode that ``net`` is in."""
        twin = SparseGenerator(net, self._given_mask, kernels=kernels, entry=self._entry)
        twin._check = False  # it was checked for this one
        twin.fixed_input = self.fixed_input
        return twin

    def sibling(self, net: nn.Module) -> SparseGenerator:
        """The rewriting of another network of the same layers, with what was found out here, unverified.

        Args:
            net: of the same layers, in the same modes. The plans must allow it, see :meth:`Plan.sibling`.
        """
        sibling = self.twin(net, self._kernels)
        sibling.training, sibling._modes = self.training, self._modes
        siblings = {plan: plan.sibling() for plan in self._plans.values()}
        sibling._plans = {key: siblings[plan] for key, plan in self._plans.items()}
        if self._prepared is not None:
            plan, z, version, prepared = self._prepared
            sibling._prepared = (siblings[plan], z, version, prepared)
        return sibling

    def lay_out(self, z: Tensor) -> None:
        """Make what depends on the input alone, if it is fixed, as the chains read it."""
        plan = self.plan(z)
        if self.fixed_input:
            plan.constant_reads(self._prepare(plan, z))

    def _check_buffers(self, buffers: dict[str, Tensor]) -> None:
        for name, own in self._buffer_names.items():
            if name not in buffers:
                raise InputError(f"buffers: expected {name!r} among them, got {', '.join(buffers) or 'none'}")
            mine = self.get_buffer(own)
            if buffers[name] is not mine:
                check_tensor(
                    f"buffers[{name!r}]", buffers[name], shape=mine.shape, dtypes=(mine.dtype,), like=mine
                )

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The kept weights of each parameter of the dense network, for an optimiser with groups.

        Every value is a leaf tensor in the memory of ``self.weights`` and with its gradient: shape
        [weights kept of the parameter], in their order within it; without a mask, the parameter's shape. It
        stays the same tensor in every call, moves with the module, and is to take the place of
        ``parameters()`` in an optimiser, not to stand beside it:

            weights = fast.named_weights()
            decayed = [w for name, w in weights.items() if name.endswith("weight")]
            others = [w for name, w in weights.items() if not name.endswith("weight")]
            optimizer = torch.optim.AdamW(
                [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}], lr=1e-2
            )
            weights["1.2.bias"].requires_grad_(False)  # fixed from here on

        A loss may use the parts themselves, as in a penalty: their gradients add up with that of the image.
        ``zero_grad`` of this module clears the parts and the vector at once. That of an optimiser, or of a
        module around this one, clears what it holds, parts or vector; the other shows the old gradient until
        the next backward pass, which starts from nothing. Gradients that ``torch.autograd.grad`` returns for
        the image are those of the flat vector alone. A hook on the gradient of a part (``register_hook`` and
        the like) is not called for the gradient of the image, which reaches the flat vector, only for that of
        a loss that uses the part itself; put hooks on ``self.weights``.

        Values given by ``.data = ``, as :func:`torch.nn.utils.vector_to_parameters` does, to parts or to the
        vector, are taken over at the next call, backward pass, copy or ``state_dict()``.

        Parameters that the network held fixed (``requires_grad`` off) are fixed here, and stay so in an
        optimiser of the parts. An optimiser of ``parameters()`` has the flat vector, fixed weights among it:
        they have gradient zero, but weight decay moves them.

        An optimiser takes the parts one after the other, which costs more than the single vector of
        ``parameters()``, much of it spared by ``fused=True``.

        Returns:
            The parts by the names of the dense network's parameters, in parameters() order; those of which
            the mask keeps nothing are empty.

        Raises:
            InputError: values given by ``.data = `` do not fit, or both a part and the vector got other ones.
        """
        return self._named.parts(self.weights)

    def trained(self) -> Tensor | None:
        """Which of ``weights`` are of parameters that the network does not hold fixed, bool; None for all."""
        return self._named.trained(self.weights.device)

    def dense_buffers(self) -> list[tuple[str, Tensor]]:
        """The running statistics under their names in the dense network."""
        return [(name, self.get_buffer(own)) for name, own in self._buffer_names.items()]

    def dense_weights(self, weights: Tensor | None = None) -> Tensor:
        """All parameters of the dense network, flat: ``weights``, by default its own, and zeros."""
        self._named.check(self.weights)
        kept = (self.weights if weights is None else weights).detach()
        if self._mask is None:
            return kept.clone()
        dense = kept.new_zeros(self._layout.numel)
        dense[self._mask.to(kept.device)] = kept
        return dense

    def to_dense(self) -> nn.Module:
        """The dense network with the present weights and running statistics; dropped weights are zero."""
        net = copy_network(self._net).to(self.weights)
        unflatten_(net, self.dense_weights())
        with torch.no_grad():
            buffers = dict(net.named_buffers())
            for name, buffer in self.dense_buffers():
                buffers[name].copy_(buffer)
        return net.train(self.training)

    def explain(self, size: tuple[int, int] = (512, 512), file: TextIO | None = None) -> str:
        """Print and return a table of every stage: channels alive, density, multiply-accumulates, kernel.

        Args:
            size: (H, W) of the input; it has the channels of the last one seen, or of the first convolution.
            file: where to print, by default standard output.
        """
        convs = [m for m in self._net.modules() if isinstance(m, nn.Conv2d)]
        if self._last_channels is None and not convs:
            raise InputError("explain: expected to have seen an input, or a network with a convolution")
        z = self.weights.new_empty(1, self._last_channels or convs[0].in_channels, *size)
        plan = self.plan(z)
        text = table(trace(self._net, z, check=False, entry=self._entry), plan, self._layout, z.dtype)
        print(text, file=sys.stdout if file is None else file)
        return text

    def get_extra_state(self) -> Tensor:
        """What state_dict() keeps beside weights and statistics: the network and the mask they belong to.

        Text as bytes, uint8: formats that hold tensors alone take it as well.
        """
        return torch.tensor(list(self._belongs_to().encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse weights of another network or mask.

        Raises:
            InputError: no such text.
            MaskMismatchError: naming both.
        """
        check_tensor("state", state, ndim=1, dtypes=(torch.uint8,))
        found = bytes(state.tolist()).decode(errors="replace")
        if found != self._belongs_to():
            raise MaskMismatchError(f"state: made for {found}, loaded into {self._belongs_to()}")

    def _belongs_to(self) -> str:
        bits = b"" if self._mask is None else self._mask.numpy().tobytes()
        return f"network {self._layout.fingerprint}, mask {hashlib.sha256(bits).hexdigest()[:16]}"

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._named.check(self.weights)
        super()._load_from_state_dict(*arguments, **options)
        self._named.rebind(self.weights)  # another tensor with assign=True

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._named.check(self.weights)
        super()._save_to_state_dict(*arguments, **options)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SparseGenerator:
        """Moves to another dtype or device take the network along that is kept for its code."""
        self._named.check(self.weights)
        super()._apply(fn, recurse)
        self._net._apply(fn)
        self._plans, self._prepared = {}, None
        self._named.rebind(self.weights)
        return self

    def __getstate__(self) -> dict[str, Any]:
        self._named.check(self.weights)
        # Plans hold functions, which do not pickle; they are made again when needed.
        return self.__dict__ | {"_plans": {}, "_prepared": None}

    def extra_repr(self) -> str:
        """How many weights are kept."""
        return f"{self.weights.numel()} of {self._layout.numel} weights"

    def _prepare(self, plan: Plan, z: Tensor) -> dict[Node, Value]:
        """What depends on the input alone, kept while the same unchanged tensor comes again.

        Changes that PyTorch does not count, through ``z.data`` or memory shared with NumPy, are not seen.
        """
        kept = self.fixed_input and not (z.requires_grad or z.is_inference())
        if not kept or torch.is_inference_mode_enabled():
            return plan.prepare(z)
        version = z._version, z.data_ptr()
        if self._prepared is not None:
            for_plan, tensor, seen, prepared = self._prepared
            if for_plan is plan and tensor is z and seen == version:
                return prepared
        with torch.no_grad():
            prepared = plan.prepare(z)
        self._prepared = (plan, z, version, prepared)
        return prepared

    def _kept(self, flat: Tensor) -> Tensor:
        return flat if self._mask is None else flat[self._mask.to(flat.device)]


def sparsify(
    net: nn.Module,
    mask: Mask | None = None,
    *,
    entry: Entry | None = None,
    backend: str = "auto",
    verify: bool = True,
) -> SparseGenerator:
    """Rewrite a generator exactly, so that only what the mask keeps alive is computed.

    Args:
        net: any generator of standard layers; copied, and left alone. What the rules do not know runs
            as it is.
        mask: which weights to keep; None for the dense network, rewritten, as the mask search uses it.
        entry: which of several results is the image, where the network gives a tuple or list (an index) or
            a dict or named tuple (a name); None where it gives the image. The others are not
            computed, but for layers with running statistics.
        backend: "torch" for plain PyTorch operations; "cpu" for C++ kernels, "cuda" for CUDA C++ kernels and
            "triton" for Triton kernels (float32 only) where they are faster; "auto" for the first of them
            that can run here, see :func:`oes_fast.backends`. The kernels have no second derivative.
        verify: at the first input of a shape, compare loss, image, gradients and running statistics with
            those of ``net`` on that input, which takes as long as 12 to 15 dense steps, in float64 where
            memory allows. Where they differ, the call raises :class:`VerificationError`.

    Returns:
        :class:`SparseGenerator` in the mode (training or evaluation) of ``net``.

    Raises:
        InputError: no such backend, a network without parameters or that cannot be copied; when the module is
            first called, no such ``entry``.
        MaskMismatchError: the mask belongs to another network.
        BackendError: the backend cannot run here.
        TraceError: a parameter has a hook on its gradient. (Code that cannot be traced is refused when the
            module is first called, since a trace needs the shape of the input.)

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> keep = torch.arange(sum(p.numel() for p in net.parameters())) % 5 > 0
        >>> fast = oes.sparsify(net, oes.Mask.from_flat(net, keep))
        >>> adam = torch.optim.Adam(fast.parameters(), lr=1e-2)
        >>> loss = (fast(z) - 0.5).square().mean()
        >>> loss.backward()
        >>> adam.step()
        >>> dense = fast.to_dense()  # the network with the new weights, and zeros where the mask drops
    """
    check_network(net)
    if mask is not None and not isinstance(mask, Mask):
        raise InputError(f"mask: expected an oes_fast.Mask, got {type(mask).__name__}")
    chosen = resolve(backend, _device(net), candidates(next(net.parameters()).dtype))
    if mask is not None:
        mask.check(net)
    return SparseGenerator(net, mask, kernels=chosen, verify=verify, entry=check_entry(entry))


def candidates(dtype: torch.dtype) -> tuple[str, ...]:
    """What a rewritten network of this dtype can run on: the Triton kernels are float32 only."""
    return ("cpu", "cuda", "triton", "torch") if dtype == torch.float32 else ("cpu", "cuda", "torch")


def rewritten(net: nn.Module, z: Tensor, *, check: bool = True, entry: Entry | None = None) -> Graph:
    """The graph of ``net`` for inputs like ``z`` after every rule; the rest is for the trace."""
    graph = trace(net, z, check=check, entry=entry)
    for rule in RULES:
        rule.apply(graph)
    graph.sweep()
    return graph


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
