"""SynFlow: pruning without data by synaptic flow (Tanaka, Kunin, Yamins and Ganguli, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from oes_fast._checks import check_flag, check_integer, described
from oes_fast.copies import copy_network
from oes_fast.entry import Entry, check_entry
from oes_fast.errors import InputError
from oes_fast.flat import flatten, unflatten_
from oes_fast.mask import Mask
from oes_fast.pipelines.functions import run_network
from oes_fast.pipelines.inputs import check_input, ordinary
from oes_fast.precision import DEFAULT, in_precision
from oes_fast.pruning.gradients import differentiable, finite_scores
from oes_fast.pruning.published import keep_above, published_mask, share_to_prune
from oes_fast.pruning.select import check_options, choose, select


@in_precision
def synflow_scores(
    net: nn.Module,
    z: Tensor,
    kept: Tensor | None = None,
    *,
    entry: Entry | None = None,
    backend: str = "auto",
    verify: bool = True,
) -> Tensor:
    """|w| * dR/d|w|, with R the sum of what the network gives for an input of ones under the weights |w|.

    In float64. Batch norms run in evaluation with mean 0 and variance 1, as they have at initialisation, so
    that they scale and shift alone; other norms too, which would take the signal away, since an image of one
    value has no variance. A sigmoid that gives the network's output is left out. Biases, scales and shifts
    take part by their absolute values, as in the authors' code.

    Args:
        net: network with its initial weights; left alone.
        z: input, of whose shape the ones are.
        kept: bool, shape [n]: the weights of a round before; the others count as 0. None for all.
        entry: which of several results of the network is the image.
        backend: as for :func:`oes_fast.train_sparse`.
        verify: as for :func:`oes_fast.train_sparse`.

    Returns:
        float64 on the network's device, shape [number of parameters], none negative where all layers are
        linear or pass positive values on.

    Raises:
        InputError: an argument does not fit, with its name; the signal of ones reaches no output.
        OESError: the scores are not finite.
        BackendError: the backend cannot run here.

    Example:
        >>> net = torch.nn.Conv2d(1, 2, 1, bias=False)
        >>> torch.nn.init.constant_(net.weight, -0.5).shape
        torch.Size([2, 1, 1, 1])
        >>> oes.pruning.synflow_scores(net, torch.rand(1, 1, 4, 4)).tolist()  # of 16 pixels each
        [8.0, 8.0]
    """
    return SynapticFlow(net, z, entry=entry, backend=backend, verify=verify).scores(kept)


@in_precision
def synflow(
    net: nn.Module,
    z: Tensor,
    noisy: Tensor | None = None,
    *,
    entry: Entry | None = None,
    density: float,
    scope: str = "global",
    small: str = "keep",
    seed: int = 0,
    rounds: int = 100,
    published: bool = False,
    backend: str = "auto",
    verify: bool = True,
    precision: str = DEFAULT,
) -> Mask:
    """Keep the weights through which most flows from an input of ones.

    By the score |w| * dR/d|w| of :func:`synflow_scores`.

    Round k of ``rounds`` keeps density^(k / rounds) of the weights by the scores of the network as the round
    before has left it, so that no layer loses all its weights while others have many.

    Biases, scales and shifts of norms: all kept by default, as in the authors' code. With small="score" they
    compete by the same score. A scale then takes the flow of a whole channel and is nearly always kept; a
    shift that starts at 0 has score 0 and is never kept by it.

    Args:
        net: network with its initial weights; left alone.
        z: input, of whose shape the ones are.
        noisy: not used: every way to a mask takes it.
        entry: which of several results of the network is the image.
        density: share of all parameters to keep, in (0, 1].
        scope: of every round: "global", "tensor" or "erdos_renyi_kernel", see
            :func:`oes_fast.pruning.select`.
        small: "keep" or "score", see :func:`oes_fast.pruning.select`.
        seed: of the choice among equal scores, in [0, 2^64).
        rounds: how many, >= 1; the paper has 100.
        published: the published code's mask when it is told to prune 1 - density. It has one round and scores
            by |dR/dw|, R the sum of the image that the network as it is gives for z, in training mode and
            with the sigmoid; all parameters compete, whatever ``small`` says; and it keeps the share it
            should prune, those above the int(n * (1 - density))-th highest, of all or of each tensor.
        backend: as for :func:`oes_fast.train_sparse`; in float64, which Triton's kernels have not.
        verify: as for :func:`oes_fast.train_sparse`.
        precision: as for :func:`oes_fast.train_sparse`; only ``published`` computes in float32.

    Returns:
        The mask. Warns with :class:`oes_fast.EmptyLayerWarning` of layers that lose everything.

    Raises:
        InputError: an argument does not fit, with its name; the signal of ones reaches no output.
        OESError: the scores are not finite.
        BackendError: the backend cannot run here.

    Example:
        >>> net = oes.models.skip(4, 3, num_channels_down=(8, 8), filter_size_down=3, seed=0)
        >>> z = oes.noise_input(4, (32, 32), seed=0)
        >>> oes.pruning.synflow(net, z, density=0.2, rounds=10).kept
        674
    """
    check_integer("rounds", rounds, minimum=1)
    if check_flag("published", published):
        share = share_to_prune(net, density, scope=scope, seed=seed)
        scores = _published_scores(net, z, entry=entry, backend=backend, verify=verify)
        flat = keep_above(net, scores, share, scope=scope)
        return published_mask(net, flat, density, scope=scope, seed=seed, method="synflow")
    check_options(net, density, scope=scope, small=small, seed=seed)
    flow = SynapticFlow(net, z, entry=entry, backend=backend, verify=verify)
    kept: Tensor | None = None
    for step in range(1, rounds):
        reached = density ** (step / rounds)
        kept = choose(net, flow.scores(kept), reached, scope=scope, small=small, seed=seed, among=kept)
    settings = {"method": "synflow", "rounds": int(rounds)}
    return select(
        net, flow.scores(kept), density, scope=scope, small=small, seed=seed, among=kept, **settings
    )


class SynapticFlow:
    """The network as the scores see it, bound once for all rounds.

    Args:
        net: see :func:`synflow_scores`, as for the following ones.
        z: of whose shape the ones are.
        entry: which result counts.
        backend: that runs it.
        verify: whether to compare the rewritten network.
    """

    def __init__(self, net: nn.Module, z: Tensor, *, entry: Entry | None, backend: str, verify: bool) -> None:
        check_input(net, z)
        check_entry(entry)
        check_flag("verify", verify)
        linear = copy_network(net).double().eval()
        unflatten_(linear, flatten(linear).abs())
        linear = _without_statistics(linear)
        self._ones = torch.ones_like(z, dtype=torch.float64)
        self._weights = flatten(linear)
        last = _last_sigmoid(linear, self._ones, entry)
        if isinstance(last, str):
            parent, _, key = last.rpartition(".")
            setattr(linear.get_submodule(parent), key, nn.Identity())
        self._call: int | None = last if isinstance(last, int) else None
        # What is left out by its number among the calls is not seen by a trace.
        chosen = backend if self._call is None else "reference"
        # For all rounds: most are too dense for sparse convolutions to make up for binding anew.
        self._function = differentiable(linear, self._ones, chosen, entry=entry, verify=verify)

    def scores(self, kept: Tensor | None) -> Tensor:
        """|w| * dR/d|w| [n] of the weights that ``kept`` [n] leaves, 0 of the others."""
        weights = self._weights if kept is None else self._weights * kept.to(self._weights.device)
        weights = weights.detach().clone().requires_grad_()
        with torch.enable_grad(), _Sigmoids(left_out=self._call):
            output = _checked(self._function(weights, self._ones))
            (gradient,) = torch.autograd.grad(output.sum(), weights)
        flow = finite_scores("synaptic flow", (weights * gradient).detach())
        if kept is None and not bool(flow.any()):
            raise InputError(
                "net: expected a signal from an input of ones to the output, got an output on which no "
                "weight has an effect"
            )
        return flow


class _Affine(nn.Module):
    """What a norm does beside normalising: its scale and shift."""

    def __init__(self, norm: nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = getattr(norm, "bias", None)
        self._by_channel = isinstance(norm, nn.GroupNorm)

    def forward(self, x: Tensor) -> Tensor:
        for number, parameter in enumerate((self.weight, self.bias)):
            if parameter is not None:
                if self._by_channel:
                    parameter = parameter.view(-1, *[1] * (x.ndim - 2))
                x = x + parameter if number else x * parameter
        return x


class _Sigmoids(TorchFunctionMode):
    """Counts the sigmoids that are computed inside, by modules as well, and leaves one of them out.

    Attributes:
        results: what each gave.
    """

    def __init__(self, left_out: int | None = None) -> None:
        super().__init__()
        self.results: list[Tensor] = []
        self._calls = 0
        self._left_out = left_out

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _SIGMOIDS:
            return func(*args, **(kwargs or {}))
        call, self._calls = self._calls, self._calls + 1
        if call == self._left_out:
            return args[0] if args else kwargs["input"]
        result = func(*args, **(kwargs or {}))
        self.results.append(result)
        return result


_SIGMOIDS = {torch.sigmoid, Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_, torch.special.expit}


def _last_sigmoid(net: nn.Module, ones: Tensor, entry: Entry | None) -> str | int | None:
    """The sigmoid whose result, or a part of it, is the output: a module's name, or its number among all.

    None where there is none. A module that runs more than once is known by its number.
    """
    runs: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Sigmoid):
            results = runs.setdefault(name, [])
            hooks.append(
                module.register_forward_hook(lambda _, __, result, keep=results: keep.append(result))
            )
    with torch.no_grad(), _Sigmoids() as sigmoids:
        output = _checked(run_network(net, ones, entry))
    for hook in hooks:
        hook.remove()
    for name, results in runs.items():
        if len(results) == 1 and _shares_memory(results[0], output):
            return name
    calls = [index for index, result in enumerate(sigmoids.results) if _shares_memory(result, output)]
    return calls[-1] if calls else None


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _without_statistics(net: nn.Module) -> nn.Module:
    """``net``, changed in place: its norms scale and shift alone, in evaluation."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._NormBase):
            like = next(net.parameters())
            module.running_mean = like.new_zeros(module.num_features, requires_grad=False)
            module.running_var = like.new_ones(module.num_features, requires_grad=False)
            module.track_running_stats = True
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            if not name:
                return _Affine(module).eval()
            parent, _, key = name.rpartition(".")
            setattr(net.get_submodule(parent), key, _Affine(module).eval())
    return net


def _published_scores(
    net: nn.Module, z: Tensor, *, entry: Entry | None, backend: str, verify: bool
) -> Tensor:
    """|dR/dw|, R the sum of the image for z in training mode."""
    check_input(net, z)
    check_flag("verify", verify)
    net = copy_network(net).train()
    z = ordinary(z)
    function = differentiable(net, z, backend, entry=entry, verify=verify)
    weights = flatten(net).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(_checked(function(weights, z)).sum(), weights)
    return finite_scores("gradient", gradient.abs())


def _checked(output: object) -> Tensor:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise InputError(f"net: expected an image as output, got {described(output)}")
    return output
